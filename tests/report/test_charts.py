"""The charts: what they show, and that they can be drawn."""

import sys

import numpy as np
import pytest

from hf_clidmu.report.charts import MOST_CLASSES, THEMES, charts, suspected_confusions, themed, write_plots


CURVES = [{"step": 10, "clid": 4.5, "test_accuracy": 0.7}, {"step": 20, "clid": 4.4, "test_accuracy": 0.8}]


def values(part):
    """All strings that a chart holds."""
    if isinstance(part, dict):
        return {word for item in part.values() for word in values(item)}
    if isinstance(part, list):
        return {word for item in part for word in values(item)}
    return {part} if isinstance(part, str) else set()


def test_the_matrix_counts_expected_wrong_labels(noisy, noisy_report):
    names, count_CC = suspected_confusions(noisy_report)
    assert names == noisy_report.label_names
    assert np.diag(count_CC).sum() == 0
    assert count_CC.sum() == pytest.approx(noisy_report.table["p_wrong"].sum(), rel=0.1)
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (noisy.true_N[noisy.wrong_N], noisy.given_N[noisy.wrong_N]), 1)
    np.testing.assert_allclose(count_CC, pairs, atol=25)


def test_many_classes_are_cut_to_the_most_confused(noisy_report):
    names = [f"class {number}" for number in range(60)]
    table = noisy_report.table.assign(given_label=37, suggested_label=59, p_wrong=0.9)
    many = type(noisy_report)(**{**vars(noisy_report), "label_names": names, "table": table})
    shown, count_CC = suspected_confusions(many)
    assert len(shown) == MOST_CLASSES
    assert {"class 37", "class 59"} <= set(shown)
    assert count_CC.sum() == pytest.approx(0.9 * len(table))
    assert "(the 20 classes with most)" in charts(many)["confusions"]["title"]


def test_the_histogram_counts_every_sample(noisy_report):
    bars = charts(noisy_report)["histogram"]["data"]["values"]
    assert sum(bar["labels"] for bar in bars) == len(noisy_report.table)


def test_curves_are_there_where_something_was_recorded(noisy_report):
    assert "curves" not in charts(noisy_report)
    assert "curves" not in charts(noisy_report, [{"step": 1}, {"step": 2}])
    panels = charts(noisy_report, CURVES)["curves"]["vconcat"]
    assert [panel["encoding"]["y"]["title"] for panel in panels] == ["CLID", "test accuracy"]


def test_colours_follow_the_theme_and_class_names_stay(noisy_report):
    odd = type(noisy_report)(**{**vars(noisy_report), "label_names": ["first", "second", "onWeak", "dog"]})
    for theme, colours in THEMES.items():
        drawn = themed(charts(odd)["confusions"], theme)
        assert colours["text"] in values(drawn)
        assert {cell["given"] for cell in drawn["data"]["values"]} == set(odd.label_names)
        assert {"first", "second"} & values(themed(charts(noisy_report)["histogram"], theme)) == set()


def test_plots_are_png_files(noisy_report, tmp_path):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    paths = write_plots(noisy_report, tmp_path, CURVES)
    assert [path.name for path in paths] == [
        f"label_report_{name}.png" for name in ("confusions", "histogram", "curves")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_the_library_the_error_says_what_to_install(noisy_report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_clidmu\[report\]'"):
        write_plots(noisy_report, tmp_path)
