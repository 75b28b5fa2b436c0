"""`hf_clidmu.data.presets`: known datasets by name, from their folder or the Hub, or with directions to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_clidmu.data import PRESETS, get_preset, load_corpus
from hf_clidmu.data.presets import DATA_VARIABLE


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that presets are looked up in, empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(folder))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


def write_table(folder: Path, split: str, **columns: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_complete(name: str) -> None:
    preset = get_preset(name)
    assert preset.name == name and preset.modality in ("image", "text") and preset.metric in ("accuracy", "macro_f1")
    assert (RECIPES / preset.recipe).is_file()
    assert Path(preset.recipe).parent.name == ("vision" if preset.modality == "image" else "text")
    assert preset.input_column == preset.modality
    assert preset.licence.endswith(".") and preset.layout.endswith(".") and "http" in preset.download
    if preset.label_names is not None:
        assert len(set(preset.label_names)) == len(preset.label_names) == preset.num_labels
    if preset.noise_map is not None:
        assert {*preset.noise_map, *preset.noise_map.values()} <= set(range(preset.num_labels))
    assert preset.superclasses is None or len(preset.superclasses) == preset.num_labels
    with pytest.raises(FrozenInstanceError):
        preset.name = "other"


def test_the_issue_is_covered() -> None:
    assert {"cifar10", "cifar100", "cifar100n", "animal10n", "clothing1m", "food101n", "webvision"} <= set(PRESETS)
    assert {f"cifar10n_{kind}" for kind in ("aggre", "random1", "random2", "random3", "worse")} <= set(PRESETS)
    assert {"red_mini_imagenet", "agnews", "agnews_human", "trec", "trec_weak", "wrench"} <= set(PRESETS)
    assert {"hausa_topics", "yoruba_topics"} <= set(PRESETS)
    cifar100 = get_preset("cifar100")
    assert cifar100.label_names[0] == "apple" and cifar100.label_names[99] == "worm"
    assert cifar100.label_names[cifar100.noise_map[cifar100.label_names.index("woman")]] == "baby"


def test_unknown_names() -> None:
    with pytest.raises(KeyError, match="no preset 'cifar10n-wors'. Did you mean 'cifar10n_worse'"):
        get_preset("cifar10n-wors")
    with pytest.raises(KeyError, match="Known are 'agnews', "):
        get_preset("zzz")


def test_a_misspelt_preset_names_the_nearest(data_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Presets of a similar name: 'trec_weak'"):
        load_corpus("trec_wek")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_missing_preset_says_what_to_get_and_where_to_put_it(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = get_preset(name)
    with pytest.raises(FileNotFoundError) as caught:
        load_corpus(name)
    message = str(caught.value)
    assert repr(str(data_dir / preset.folder)) in message
    assert preset.download in message and preset.layout in message and preset.licence in message
    assert preset.hub_id is None or f"could {preset.hub_id!r} be fetched from the Hub" in message
    monkeypatch.delenv(DATA_VARIABLE)
    with pytest.raises(
        FileNotFoundError, match=rf"folder '{preset.folder}' below .* {DATA_VARIABLE} names \(not set\)"
    ):
        load_corpus(name)


@pytest.mark.parametrize("kind", ["aggre", "random1", "worse"])
def test_real_cifar10n(shared_data: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(shared_data("cifar10n").parent))
    corpus = load_corpus(f"cifar10n_{kind}")
    rate = {"aggre": 0.0941, "random1": 0.1762, "worse": 0.4037}[kind]
    assert corpus.noise.achieved_rate == pytest.approx(rate, abs=6e-5)
    assert corpus.name == f"cifar10n_{kind}" and corpus.label_names == list(get_preset("cifar10").label_names)
    by_vote = load_corpus(f"cifar10n_{kind}", label_column="*r*_label,random_label1", max_train_samples=100)
    assert len(by_vote.train[0]["label_votes"]) == 10


@pytest.mark.parametrize("name", ["agnews_human", "trec_weak", "hausa_topics", "mr_polarity", "sms_spam"])
def test_real_texts(shared_data: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data(name)
    monkeypatch.setenv(DATA_VARIABLE, str(folder.parent))
    corpus, same = load_corpus(name), load_corpus(folder)
    assert corpus.label_names == same.label_names == list(get_preset(name).label_names)
    assert corpus.train["label"][:] == same.train["label"][:]
    assert corpus.noise == same.noise


def test_real_asymmetric_noise_needs_no_map(
    shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(shared_data("cifar10n").parent))
    corpus = load_corpus("cifar10n_worse", noise="asymmetric", noise_rate=0.4)
    transition = np.array(corpus.noise.transition)
    moved = {(i, j) for i, j in zip(*np.nonzero(transition), strict=True) if i != j}
    assert moved == {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}
    assert corpus.noise.achieved_rate == pytest.approx(0.2)


def test_numbers_get_the_published_names(data_dir: Path) -> None:
    write_table(data_dir / "agnews", "train", text=["a", "b", "c", "d"], label=[3, 0, 1, 2])
    write_table(data_dir / "agnews", "test", text=["a"], label=["Sports"])
    corpus = load_corpus("agnews")
    assert corpus.label_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert corpus.train["label"][:] == [3, 0, 1, 2] and corpus.test["label"][:] == [1]
    write_table(data_dir / "agnews", "train", text=["a", "b"], label=[0, 4])
    with pytest.raises(ValueError, match="row 1: label 4 is out of range, .* has 4 names"):
        load_corpus("agnews")


def test_other_class_names_are_kept_and_a_wrong_number_of_classes_warns(data_dir: Path) -> None:
    write_table(data_dir / "sms_spam", "train", text=["a", "b"], label=["good", "bad"])
    assert load_corpus("sms_spam").label_names == ["bad", "good"]
    write_table(data_dir / "hausa_topics", "train", text=["a", "b"], noisy_label=["x", "y"])
    with pytest.warns(UserWarning, match="preset 'hausa_topics' has 5 classes, but these data have 2"):
        load_corpus("hausa_topics")


def test_the_noisy_column_of_a_preset_must_be_there(data_dir: Path) -> None:
    write_table(data_dir / "trec_weak", "train", text=["a", "b"], label=[0, 1])
    with pytest.raises(ValueError, match="label_column='noisy_label' is no column.*'text', 'label'"):
        load_corpus("trec_weak")


def test_from_the_hub(data_dir: Path, make_image: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    misspelt = [f"n{i}" for i in range(10)]
    features = Features({"img": Image(), "label": ClassLabel(names=misspelt)})
    rows = Dataset.from_dict({"img": [make_image(i) for i in range(10)], "label": list(range(10))}, features=features)

    def load_dataset(*args: Any, **kwargs: Any) -> DatasetDict:
        calls.append((args, kwargs))
        return DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus("cifar10", noise="asymmetric", noise_rate=0.9)
    assert calls == [(("uoft-cs/cifar10", None), {"revision": None})]
    assert corpus.label_names == list(get_preset("cifar10").label_names) and corpus.source == "uoft-cs/cifar10"
    assert corpus.train["label"][:] == [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]
    assert rows.features["label"].names == misspelt
    with pytest.raises(ValueError, match="'cifar10' is a preset, which knows its own"):
        load_corpus("cifar10", revision="main")


def test_a_folder_wins_over_the_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "trec", "train", text=["a", "b"], label=["x", "y"])
    monkeypatch.chdir(tmp_path)
    assert load_corpus("trec").source == "trec"


# --- WRENCH -----------------------------------------------------------------------------------------------------------


def write_wrench(folder: Path, rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "label.json").write_text(json.dumps({"0": "ham", "1": "spam"}))
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows))


def wrench_row(label: int, weak_labels: list[int]) -> dict[str, Any]:
    return {"label": label, "weak_labels": weak_labels, "data": {"text": f"{label} {weak_labels}"}}


def test_wrench(data_dir: Path) -> None:
    votes = [[1, 1, 0], [-1, 0, -1], [-1, -1, -1], [1, 1, 1]]
    write_wrench(data_dir / "wrench", {str(i): wrench_row(i % 2, vote) for i, vote in enumerate(votes)})
    with pytest.raises(ValueError, match="row 2 of the train split: none of the annotators 'weak_label_00', "):
        load_corpus("wrench")
    with pytest.warns(UserWarning, match="1 of 4 training rows have no label"):
        corpus = load_corpus("wrench", missing_labels="drop")
    assert corpus.label_names == ["ham", "spam"]
    assert corpus.train["label"][:] == [1, 0, 1] and corpus.train["clean_label"][:] == [0, 1, 1]
    np.testing.assert_allclose(corpus.train["label_votes"][:], [[1 / 3, 2 / 3], [1, 0], [0, 1]], rtol=1e-6)
    # Test rows that no rule labels have their true label.
    assert corpus.test["label"][:] == [1, 0, 0, 1] and "label_votes" not in corpus.test.column_names


def test_broken_wrench(data_dir: Path) -> None:
    write_wrench(data_dir / "wrench", {"0": wrench_row(0, [1]), "7": {"label": 0}})
    with pytest.raises(ValueError, match="train.json', row '7': expected label, weak_labels and data with a text"):
        load_corpus("wrench")
    write_wrench(data_dir / "wrench", {"0": wrench_row(0, [1]), "1": wrench_row(1, [1, 0])})
    with pytest.raises(ValueError, match=r"train.json': the rows have \[1, 2\] weak labels"):
        load_corpus("wrench")


def test_other_folders_with_a_file_of_labels_are_no_wrench(tmp_path: Path) -> None:
    (tmp_path / "label.json").write_text("{}")
    (tmp_path / "train.json").write_text(json.dumps([{"text": "a", "label": 0}, {"text": "b", "label": 1}]))
    assert len(load_corpus(tmp_path).train) == 2
