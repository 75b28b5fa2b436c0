"""The card of a mended dataset."""

import pytest
from huggingface_hub import DatasetCard, DatasetCardData

from hf_clidmu.report import LabelReport
from hf_clidmu.report.card import dataset_card


def test_a_card_says_what_was_done_and_keeps_what_a_push_wrote(noisy_report, tmp_path):
    written = DatasetCardData(
        license="mit", tags=["films"], configs=[{"config_name": "default", "data_files": "data/*"}]
    )
    card = dataset_card(noisy_report, "drop", 700, written, title="Films")
    card.save(tmp_path / "README.md")
    loaded = DatasetCard.load(tmp_path / "README.md")
    assert loaded.data.license == "mit"
    assert loaded.data.tags == ["films", "label-noise"]
    assert loaded.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "data/*"}]
    assert loaded.text.lstrip().startswith("# Films\n\nRows whose labels are probably wrong were left out.")
    assert "- rows: 700 of 1,200" in loaded.text
    assert f"noise rate of the source: {100 * noisy_report.noise_rate.value:.1f} %" in loaded.text
    assert loaded.text.count("\n| ") == 6  # a heading and five pairs of classes
    assert written.to_dict()["tags"] == ["films"]


def test_names_and_doubts_are_text(noisy_report):
    names = ["<b>ant</b>", "b|e|e", "[cat](x)", "*dog*"]
    report = LabelReport(**{**vars(noisy_report), "label_names": names, "doubts": ["`<script>`"]})
    text = dataset_card(report, "annotate", 1200).content
    assert "<b>" not in text
    assert "<script>" not in text
    assert r"\[cat\](x)" in text
    assert r"b\|e\|e" in text


def test_an_unknown_policy_is_an_error(noisy_report):
    with pytest.raises(ValueError, match="policy must be one of annotate, drop, relabel, suggested, got 'mend'"):
        dataset_card(noisy_report, "mend", 1)
