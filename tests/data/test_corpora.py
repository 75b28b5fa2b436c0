"""`hf_clidmu.data.corpora`: every kind of source in one shape, and every unusable input refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    Sequence,
    Value,
    concatenate_datasets,
)
from PIL import Image as PILImage

from hf_clidmu.data import Corpus, load_corpus


TEXTS = ["a b", "c d", "e f", "g h", "i j", "k l"]


def texts(labels: list[Any], feature: Any = None, **columns: list[Any]) -> Dataset:
    data = {"text": [f"text {i}" for i in range(len(labels))], "label": labels, **columns}
    if feature is None:
        return Dataset.from_dict(data)
    features = Dataset.from_dict({key: value for key, value in data.items() if key != "label"}).features
    return Dataset.from_dict(data, features=Features({**features, "label": feature}))


# --- the built-in dataset -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Corpus:
    return load_corpus("digits")


def test_digits(digits: Corpus) -> None:
    assert (digits.name, digits.modality, digits.input_column) == ("digits", "image", "image")
    assert (len(digits.train), digits.validation, len(digits.test)) == (1438, None, 359)
    assert digits.num_labels == 10 and digits.id2label[3] == "3" and digits.label2id["3"] == 3
    assert digits.train.column_names == digits.test.column_names == ["image", "label", "clean_label"]
    assert digits.train["label"][:] == digits.train["clean_label"][:]
    assert digits.noise.achieved_rate == 0
    image = digits.train[0]["image"]
    assert image.mode == "L" and image.size == (8, 8)
    pixels = np.array([np.asarray(image) for image in digits.train["image"]])
    assert pixels.min() == 0 and pixels.max() == 255
    # Stratified: no class deviates from its share by a whole row.
    for label in range(10):
        total = digits.train["label"][:].count(label) + digits.test["label"][:].count(label)
        assert abs(digits.test["label"][:].count(label) - total * 359 / 1797) < 1


def test_digits_split_is_fixed_and_complete(digits: Corpus) -> None:
    from sklearn.datasets import load_digits

    again = load_corpus("digits", seed=5)
    assert again.test["label"][:] == digits.test["label"][:]
    both = [np.asarray(image).tobytes() for split in (digits.train, digits.test) for image in split["image"]]
    assert sorted(both) == sorted(
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images
    )


def test_digits_with_noise(digits: Corpus) -> None:
    noisy = load_corpus("digits", noise="symmetric", noise_rate=0.4, noise_seed=1)
    assert noisy.train["clean_label"][:] == digits.train["label"][:]
    wrong = np.mean(np.array(noisy.train["label"]) != np.array(noisy.train["clean_label"]))
    assert wrong == noisy.noise.achieved_rate == round(0.4 * 1438) / 1438
    assert noisy.noise.kind == "symmetric" and noisy.noise.seed == 1
    assert noisy.test["label"][:] == digits.test["label"][:]


def test_digits_hold_out_can_be_changed() -> None:
    assert load_corpus("digits", test_size=0).test is None
    assert len(load_corpus("digits", test_size=0.5).test) == 898


# --- real datasets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "names", "transition_counts"),
    [
        (
            "agnews_human",
            (6000, 500, 2000),
            ["World", "Sports", "Business", "Sci/Tech"],
            [[1333, 64, 60, 28], [61, 1412, 17, 4], [306, 7, 1098, 91], [279, 12, 276, 952]],
        ),
        ("hausa_topics", (2045, 290, 582), ["Africa", "Health", "Nigeria", "Politics", "World"], None),
        ("trec_weak", (4599, 500, 500), ["DESC", "ENTY", "HUM", "ABBR", "LOC", "NUM"], None),
    ],
)
def test_real_text_noise(
    shared_data: Callable[[str], Path],
    name: str,
    rows: tuple[int, int, int],
    names: list[str],
    transition_counts: list[list[int]] | None,
) -> None:
    corpus = load_corpus(shared_data(name))
    assert (corpus.name, corpus.modality, corpus.label_names) == (name, "text", names)
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == rows
    rate = {"agnews_human": 0.2008, "hausa_topics": 0.5037, "trec_weak": 0.461}[name]
    assert corpus.noise.achieved_rate == pytest.approx(rate, abs=5e-4)
    for split in (corpus.validation, corpus.test):
        assert split["label"][:] == split["clean_label"][:]
    if transition_counts is not None:
        counts = np.array(transition_counts)
        np.testing.assert_allclose(corpus.noise.transition, counts / counts.sum(axis=1, keepdims=True))
        assert np.bincount(corpus.train["clean_label"]).tolist() == [1485, 1494, 1502, 1519]


def test_real_hausa_counts(shared_data: Callable[[str], Path]) -> None:
    corpus = load_corpus(shared_data("hausa_topics"))
    counts = [np.bincount(split["clean_label"]).tolist() for split in (corpus.train, corpus.validation, corpus.test)]
    assert counts == [[315, 434, 449, 284, 563], [45, 62, 63, 40, 80], [90, 124, 127, 81, 160]]


@pytest.mark.parametrize(("name", "rows"), [("mr_polarity", 8530), ("sms_spam", 3669)])
def test_real_clean_text(shared_data: Callable[[str], Path], name: str, rows: int) -> None:
    corpus = load_corpus(shared_data(name), noise="symmetric", noise_rate=0.4)
    assert len(corpus.train) == rows
    assert corpus.noise.achieved_rate == round(0.4 * rows) / rows
    assert corpus.test["label"][:] == corpus.test["clean_label"][:]


@pytest.mark.parametrize(
    ("column", "rate"), [("aggre_label", 0.0941), ("random_label1", 0.1762), ("worse_label", 0.4037)]
)
def test_real_cifar10n(shared_data: Callable[[str], Path], column: str, rate: float) -> None:
    corpus = load_corpus(shared_data("cifar10n"), label_column=column)
    assert (corpus.modality, corpus.num_labels) == ("image", 10)
    assert corpus.noise.achieved_rate == pytest.approx(rate, abs=6e-5)
    assert np.bincount(corpus.train["clean_label"]).tolist() == [1200] * 10
    assert np.bincount(corpus.test["label"]).tolist() == [200] * 10
    assert corpus.train[0]["image"].size == (32, 32)


def test_real_cifar10n_asks_which_label(shared_data: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="'aggre_label', 'random_label1', 'worse_label'.*label_column"):
        load_corpus(shared_data("cifar10n"))
    # Injected noise starts from the clean labels: no choice is needed.
    corpus = load_corpus(shared_data("cifar10n"), noise="symmetric", noise_rate=0.2, max_train_samples=500)
    assert np.bincount(corpus.train["clean_label"]).tolist() == [50] * 10
    assert corpus.noise.achieved_rate == 0.2


def test_real_fashion_mnist(shared_data: Callable[[str], Path]) -> None:
    corpus = load_corpus(shared_data("fashion_mnist"))
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (12000, 1000, 2000)
    assert corpus.train["label"][:] == corpus.train["clean_label"][:]
    assert corpus.train[0]["image"].size == (28, 28)


# --- kinds of sources -----------------------------------------------------------------------------------------

ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, "yxyxyx", strict=True)]


def write(path: Path) -> Path:
    data = Dataset.from_list(ROWS)
    if path.suffix in (".csv", ".tsv"):
        data.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".jsonl":
        data.to_json(path)
    elif path.suffix == ".parquet":
        data.to_parquet(path)
    else:
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.data.schema) as writer:
            writer.write_table(data.data.table)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"])
def test_files(tmp_path: Path, suffix: str) -> None:
    corpus = load_corpus(write(tmp_path / f"mine{suffix}"))
    assert corpus.name == "mine" and corpus.label_names == ["x", "y"]
    assert corpus.train["text"][:] == TEXTS and corpus.train["label"][:] == [1, 0, 1, 0, 1, 0]
    assert corpus.validation is None and corpus.test is None and corpus.noise is None
    assert corpus.train.features["label"] == ClassLabel(names=["x", "y"])


def test_folder_of_files_in_shards_and_dict_of_files(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet")
    write(tmp_path / "train-00001-of-00002.parquet")
    write(tmp_path / "dev.parquet")
    write(tmp_path / "extra.parquet")
    corpus = load_corpus(tmp_path)
    assert (len(corpus.train), len(corpus.validation), corpus.test) == (12, 6, None)
    files = {"train": [tmp_path / "extra.parquet"], "test": str(tmp_path / "dev.parquet")}
    corpus = load_corpus(files)
    assert (len(corpus.train), corpus.validation, len(corpus.test)) == (6, None, 6)


def test_save_to_disk_is_read_and_not_written(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS), "val": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert len(load_corpus(tmp_path / "both", max_train_samples=4, noise="symmetric", noise_rate=0.5).validation) == 6
    assert len(load_corpus(tmp_path / "one", test_size=0.5).test) == 3
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_folder_names_are_no_patterns(tmp_path: Path) -> None:
    for folder in ("run[1]", "run*", "run 2"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.csv")
    for folder in ("run[1]", "run*", "run 2"):
        assert len(load_corpus(tmp_path / folder).train) == 6


def test_rewritten_files_are_read_again(tmp_path: Path) -> None:
    for labels in ("ab", "xy"):
        (tmp_path / "train.csv").write_text(f"text,label\none,{labels[0]}\ntwo,{labels[1]}\n")
        assert load_corpus(tmp_path).label_names == list(labels)


def test_files_that_cannot_be_parsed(tmp_path: Path) -> None:
    for name, content, match in (
        ("ragged.csv", b"text,label\na,b\nc,d,e,f\n", "as csv: .*Expected 2 fields in line 3, saw 4"),
        ("latin.csv", "text,label\n\xe9,b\n".encode("latin-1"), "as csv: .*utf-8"),
        ("empty.csv", b"text,label\n", "as csv: it has no rows"),
        ("broken.jsonl", b'{"text": "a", "label": 0}\n{oops\n', "as json: "),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"Cannot read '.*{name}' {match}"):
            load_corpus(tmp_path / name)


def test_in_memory_with_selection_and_format() -> None:
    data = Dataset.from_list(ROWS).select([5, 1, 2, 0]).with_format("torch")
    corpus = load_corpus(data)
    assert corpus.train["text"][:] == ["k l", "c d", "e f", "a b"]
    assert corpus.train["label"][:] == [0, 0, 1, 1]
    assert data.column_names == ["text", "label"]
    assert load_corpus({"train": data, "dev": data}).validation is not None


def test_image_folder(tmp_path: Path, make_image: Callable[..., PILImage.Image]) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for label in ("dog", "cat"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                make_image(i).save(tmp_path / split / label / f"{i}.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    corpus = load_corpus(tmp_path)
    assert (corpus.modality, corpus.label_names) == ("image", ["cat", "dog"])
    assert corpus.train["label"][:] == [0, 0, 0, 1, 1, 1] and len(corpus.test) == 2
    np.testing.assert_array_equal(np.asarray(corpus.train[2]["image"]), np.asarray(make_image(2)))
    flat = load_corpus(tmp_path / "train", test_size=1 / 3)
    assert (len(flat.train), len(flat.test)) == (4, 2)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.warns(UserWarning, match="no images .* in 'emu'"):
        load_corpus(tmp_path)
    (tmp_path / "test" / "fox").mkdir()
    make_image(0).save(tmp_path / "test" / "fox" / "0.png")
    (tmp_path / "train" / "emu").rmdir()
    with pytest.raises(ValueError, match="test split, row 2: the class 'fox' does not occur in the training labels"):
        load_corpus(tmp_path)


def test_image_paths_in_a_table(tmp_path: Path, make_image: Callable[..., PILImage.Image]) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        make_image(i).save(tmp_path / "images" / f"{i}.png")
    table = tmp_path / "table.csv"
    table.write_text("file_name,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    corpus = load_corpus(table)
    assert corpus.modality == "image" and corpus.train.column_names == ["image", "label"]
    np.testing.assert_array_equal(np.asarray(corpus.train[3]["image"]), np.asarray(make_image(3)))
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"column 'file_name' of the train split, row 2: no such image file"):
        load_corpus(table)


def test_pixel_arrays() -> None:
    pixels = np.linspace(0, 1, 4 * 9, dtype=np.float32).reshape(4, 3, 3)
    features = Features({"pixels": Array2D((3, 3), "float32"), "label": Value("int64")})
    corpus = load_corpus(Dataset.from_dict({"pixels": pixels, "label": [0, 1, 0, 1]}, features=features))
    np.testing.assert_array_equal(np.asarray(corpus.train[3]["image"]), np.rint(pixels[3] * 255).astype(np.uint8))
    lists = Dataset.from_dict({"img": [[[0, 255], [1, 2]]] * 2, "label": [0, 1]})
    assert np.asarray(load_corpus(lists).train[1]["image"]).tolist() == [[0, 255], [1, 2]]
    for bad, match in ((np.nan, "row 2: 1 pixels are not finite"), (np.inf, "not finite"), (7.0, "must lie in 0..1")):
        pixels[2, 0, 0] = bad
        with pytest.raises(ValueError, match=match):
            load_corpus(Dataset.from_dict({"pixels": pixels, "label": [0, 1, 0, 1]}, features=features))


def test_image_bytes_without_feature(image_rows: Dataset) -> None:
    corpus = load_corpus(image_rows.cast_column("image", Image(decode=False)))
    assert isinstance(corpus.train[0]["image"], PILImage.Image)


# --- labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "feature", "names", "encoded"),
    [
        (["dog", "cat", "dog"], None, ["cat", "dog"], [1, 0, 1]),
        ([5, 1, 2], None, ["1", "2", "5"], [2, 0, 1]),
        ([10, 9, 10], None, ["9", "10"], [1, 0, 1]),
        ([0.0, 1.0, 0.0], None, ["0", "1"], [0, 1, 0]),
        ([True, False, True], None, ["False", "True"], [1, 0, 1]),
        ([1, 0, 1], ClassLabel(names=["zebra", "ant"]), ["zebra", "ant"], [1, 0, 1]),
        (["NA", "None", "NA"], None, ["NA", "None"], [0, 1, 0]),
    ],
)
def test_label_mapping(labels: list[Any], feature: Any, names: list[str], encoded: list[int]) -> None:
    corpus = load_corpus(texts(labels, feature))
    assert corpus.label_names == names and corpus.train["label"][:] == encoded


def test_classes_called_none_survive_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nnull,None\nNA,n/a\n")
    corpus = load_corpus(tmp_path / "a.csv")
    assert corpus.label_names == ["None", "n/a"] and corpus.train["text"][:] == ["null", "NA"]


def test_names_are_matched_across_splits() -> None:
    train = texts([0, 1, 0], ClassLabel(names=["a", "b"]))
    test = texts([0, 0, 1], ClassLabel(names=["b", "a"]))
    assert load_corpus({"train": train, "test": test}).test["label"][:] == [1, 1, 0]
    assert load_corpus({"train": train, "test": texts(["b", "a"])}).test["label"][:] == [1, 0]
    assert load_corpus({"train": train, "test": texts([1, 0])}).test["label"][:] == [1, 0]
    gaps = load_corpus({"train": texts([3, 7, 3]), "test": texts([7, 3])})
    assert gaps.test["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "feature", "match"),
    [
        ([0, 1, None], None, r"'label' of the train split, row 2: no label \(the first is None\)"),
        ([0, 1, -1], None, r"row 2: no label \(the first is -1\)"),
        ([0, 1, -1], ClassLabel(num_classes=2), r"row 2: no label \(the first is -1\)"),
        ([0, 1, -2], None, "row 2: label -2 is negative"),
        (["a", "b", "  "], None, r"row 2: no label \(the first is '  '\)"),
        (["a", "", None], None, "rows 1, 2: no label"),
        ([None, None], None, "rows 0, 1: no label"),
        ([0.0, 1.5], None, "row 1: 1.5 is not a whole number"),
        ([0.0, float("inf")], None, "row 1: inf is not a whole number"),
        ([0.0, 1.0, float("nan")], None, r"row 2: no label \(the first is nan\)"),
        ([[0], [0, 1]], Sequence(Value("int64")), r"row 0 holds \[0\].*Multi-label targets are not supported"),
        ([{"x": 1}, {"x": 2}], None, "row 0 holds {'x': 1}"),
        ([1, 1, 1], None, r"has 1 class \('1'\): a classifier needs at least 2"),
        (["a", "a"], None, r"has 1 class \('a'\)"),
    ],
)
def test_unusable_training_labels(labels: list[Any], feature: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_corpus(texts(labels, feature))


def test_class_label_out_of_range() -> None:
    # datasets checks the range when it encodes, but not when a table with such a value is read.
    data = texts([0, 1, 2]).cast_column("label", Value("int64"))
    data.info.features["label"] = ClassLabel(names=["a", "b"])
    with pytest.raises(ValueError, match=r"row 2: label 2 is out of range, the ClassLabel has 2 names \(0\.\.1\)"):
        load_corpus(data)


def test_classes_unknown_to_training() -> None:
    with pytest.raises(ValueError, match="'label' of the test split, row 1: the class 'c' does not occur"):
        load_corpus({"train": texts(["a", "b"]), "test": texts(["a", "c"])})
    with pytest.raises(ValueError, match="validation split, row 0: the class 9 does not occur"):
        load_corpus({"train": texts([0, 1]), "val": texts([9, 1])})


def test_class_without_training_rows_warns() -> None:
    with pytest.warns(UserWarning, match="no training row is labelled 'b', 'd'"):
        corpus = load_corpus(texts([0, 2, 0], ClassLabel(names=["a", "b", "c", "d"])))
    assert corpus.num_labels == 4


def test_no_warning_without_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(texts([0, 1]))


# --- clean labels and noise -----------------------------------------------------------------------------------


def test_clean_labels_fill_missing_ones_outside_training_only() -> None:
    names = ClassLabel(names=["a", "b"])
    train = texts([0, 1, 1, 0], names, clean_label=[0, 1, 0, -1])
    test = texts([-1, 1, -1], names, clean_label=[1, 0, 0])
    corpus = load_corpus({"train": train, "test": test})
    assert corpus.train["label"][:] == [0, 1, 1, 0] and corpus.train["clean_label"][:] == [0, 1, 0, -1]
    assert corpus.test["label"][:] == [1, 1, 0] and corpus.test["clean_label"][:] == [1, 0, 0]
    assert corpus.noise.kind == "measured" and corpus.noise.achieved_rate == 1 / 3


def test_test_split_with_other_columns() -> None:
    test = Dataset.from_dict({"text": ["x", "y"], "clean_label": [1, 0]})
    corpus = load_corpus({"train": texts([0, 1, 1]), "test": test})
    assert corpus.test["label"][:] == [1, 0] and corpus.train.column_names == ["text", "label"]


def test_unlabelled_splits() -> None:
    train, bare = texts([0, 1, 1]), texts([-1, -1])
    with pytest.warns(UserWarning, match="test split has no labels and is left out"):
        assert load_corpus({"train": train, "test": bare}).test is None
    with pytest.raises(ValueError, match="rows 0, 1: no label"):
        load_corpus({"train": train, "test": bare}, test_split="test")
    with pytest.raises(ValueError, match="test split, row 1: no label. Drop these rows"):
        load_corpus({"train": train, "test": texts([0, -1])})


def test_noise_goes_onto_the_clean_labels() -> None:
    clean = [0, 1] * 10
    data = texts([0] * 20, noisy=["x"] * 20, truth=clean)
    corpus = load_corpus(data, text_column="text", clean_label_column="truth", noise="symmetric", noise_rate=0.25)
    assert corpus.train["clean_label"][:] == clean
    assert int(np.sum(np.array(corpus.train["label"]) != clean)) == 5 and corpus.noise.achieved_rate == 0.25
    again = load_corpus(data, text_column="text", clean_label_column="truth", noise="symmetric", noise_rate=0.25)
    assert corpus.train["label"][:] == again.train["label"][:]


def test_noise_without_clean_labels_takes_the_given_ones_as_clean() -> None:
    splits = {"train": texts(["a", "b"] * 10), "test": texts(["b", "a"])}
    corpus = load_corpus(splits, noise="symmetric", noise_rate=0.1, max_train_samples=10)
    rows = [int(text.split()[1]) for text in corpus.train["text"]]
    assert corpus.train["clean_label"][:] == [row % 2 for row in rows] and corpus.noise.achieved_rate == 0.1
    assert sorted(corpus.train["clean_label"]) == [0] * 5 + [1] * 5
    assert corpus.test["label"][:] == corpus.test["clean_label"][:] == [1, 0]


def test_noise_needs_every_clean_label() -> None:
    with pytest.raises(ValueError, match="'clean_label' of the train split, row 1: no label"):
        load_corpus(texts([0, 1, 1], clean_label=[0, -1, 1]), noise="symmetric", noise_rate=0.3)


def test_held_out_rows_carry_clean_labels() -> None:
    data = texts([1, 0] * 10, clean_label=[0, 1] * 10)
    corpus = load_corpus(data, test_size=0.2, seed=3)
    assert corpus.test["label"][:] == corpus.test["clean_label"][:]
    assert corpus.train["label"][:] != corpus.train["clean_label"][:]
    assert (len(corpus.train), len(corpus.test)) == (16, 4)
    assert set(corpus.train["text"]) | set(corpus.test["text"]) == set(data["text"])
    assert load_corpus(data, test_size=0.2, seed=3).test["text"][:] == corpus.test["text"][:]
    assert load_corpus(data, test_size=0.2, seed=4).test["text"][:] != corpus.test["text"][:]


def test_max_train_samples_is_stratified() -> None:
    data = texts([0] * 60 + [1] * 30 + [2] * 10)
    corpus = load_corpus(data, max_train_samples=20)
    assert np.bincount(corpus.train["label"]).tolist() == [12, 6, 2]
    assert len(load_corpus(data, max_train_samples=1000).train) == 100


# --- columns, splits and settings -----------------------------------------------------------------------------


def test_column_choice() -> None:
    data = Dataset.from_dict({"sentence": TEXTS, "coarse_label": list("ababab"), "id": list(range(6))})
    assert load_corpus(data).train.column_names == ["text", "label"]
    both = data.add_column("fine_label", list("abcabc"))
    with pytest.raises(ValueError, match="'coarse_label', 'fine_label'.*label_column"):
        load_corpus(both)
    assert load_corpus(both, label_column="fine_label").num_labels == 3
    odd = Dataset.from_dict({"utterance": TEXTS, "category": list("ababab")})
    assert load_corpus(odd).train["text"][:] == TEXTS
    noisy = Dataset.from_dict({"text": TEXTS, "label": list("aaabbb"), "noisy_label": list("ababab")})
    assert load_corpus(noisy).train["label"][:] == [0, 1] * 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label_column": "lable"}, "label_column='lable' is no column.*Available columns: 'text', 'label'"),
        ({"clean_label_column": "gold"}, "clean_label_column='gold' is no column"),
        ({"text_column": "body"}, "text_column='body' is no column"),
        ({"image_column": "body"}, "image_column='body' is no column"),
        ({"image_column": "text", "text_column": "text"}, "not both"),
        ({"text_column": "label", "label_column": "text"}, "holds Value.*not text"),
        ({"train_split": "training"}, "train_split='training' does not exist; the splits are 'train'"),
        ({"test_split": "train"}, "no training split among 'train', 'train' serves as test"),
        ({"test_split": "train", "train_split": "train"}, "cannot serve as both train and test"),
        ({"noise": "cosmic"}, "noise must be one of 'symmetric'"),
        ({"noise_rate": 0.2}, 'no effect without noise, such as noise="symmetric"'),
        ({"noise": "symmetric", "noise_rate": 1.0}, r"rate must be in \[0, 1\)"),
        ({"test_size": 1.0}, r"test_size must be in \[0, 1\)"),
        ({"test_size": 0.01}, "holds out 0"),
        ({"max_train_samples": 0}, "at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_corpus(texts([0, 1, 0, 1]), **arguments)


def test_bad_columns(image_rows: Dataset) -> None:
    with pytest.raises(ValueError, match="No label column found.*Available columns: 'text', 'score'"):
        load_corpus(Dataset.from_dict({"text": TEXTS, "score": [0.1] * 6}))
    with pytest.raises(ValueError, match="No column was found for the input"):
        load_corpus(Dataset.from_dict({"x": [1.0, 2.0], "label": [0, 1]}))
    with pytest.raises(ValueError, match="Several columns may hold the input"):
        load_corpus(Dataset.from_dict({"premise": TEXTS, "hypothesis": TEXTS, "label": [0, 1] * 3}))
    with pytest.raises(ValueError, match="There are images .* and texts"):
        load_corpus(image_rows.add_column("text", ["x"] * 10))
    with pytest.raises(ValueError, match="Several columns hold images"):
        load_corpus(
            concatenate_datasets(
                [image_rows, image_rows.select_columns("image").rename_column("image", "mask")], axis=1
            )
        )
    with pytest.raises(ValueError, match="images must be a datasets.Image column"):
        load_corpus(texts([0, 1]), image_column="label", label_column="label")
    with pytest.raises(ValueError, match="In the test split, text_column='sentence' is no column"):
        load_corpus({"train": texts([0, 1]).rename_column("text", "sentence"), "test": texts([0, 1])})


@pytest.mark.parametrize("value", ["", "  ", None])
def test_empty_texts(value: str | None) -> None:
    data = Dataset.from_dict({"text": ["x", value, "y", value], "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match="'text' of the train split, rows 1, 3: the text is missing or empty"):
        load_corpus(data)
    many = Dataset.from_dict({"text": ["x"] + [value] * 9, "label": [0, 1] * 5})
    with pytest.raises(ValueError, match=r"rows 1, 2, 3, 4, 5, \.\.\. \(9 in all\)"):
        load_corpus(many)


def test_bad_splits() -> None:
    data = texts([0, 1])
    with pytest.raises(ValueError, match="The train split .* is empty"):
        load_corpus(data.select([]))
    with pytest.raises(ValueError, match="The test split .* is empty"):
        load_corpus({"train": data, "test": data.select([])})
    with pytest.raises(ValueError, match="no training split among 'a', 'b': name it with train_split"):
        load_corpus({"a": data, "b": data})
    assert len(load_corpus({"a": data, "b": data}, train_split="b").train) == 2
    with pytest.raises(ValueError, match="dict of splits is empty"):
        load_corpus({})
    with pytest.raises(ValueError, match="has a test split"):
        load_corpus({"train": data, "test": data}, test_size=0.5)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="max_train_samples must be an integer"):
        load_corpus(texts([0, 1]), max_train_samples=1.5)
    with pytest.raises(TypeError, match="seed must be an integer"):
        load_corpus(texts([0, 1]), seed=None)
    with pytest.raises(TypeError, match="Cannot load data from int.*Accepted are"):
        load_corpus(3)
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(TypeError, match="Streams have no stable rows"):
        load_corpus(stream)
    with pytest.raises(TypeError, match="Split 'train' is a IterableDataset"):
        load_corpus({"train": stream})


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No file or folder at .*Accepted are"):
        load_corpus(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="No file or folder at 'missing.csv'"):
        load_corpus("missing.csv")
    with pytest.raises(FileNotFoundError, match="No file at"):
        load_corpus({"train": tmp_path / "missing.csv"})
    with pytest.raises(FileNotFoundError, match="holds no data that is understood. Found: none"):
        load_corpus(tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match="must share one of the endings .csv"):
        load_corpus(tmp_path / "a.xlsx")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="Cannot read '.*a.parquet' as parquet"):
        load_corpus(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("text,label\nx,0\n")
    with pytest.raises(ValueError, match="several data files, none named after a split: 'a.parquet', 'b.csv'"):
        load_corpus(tmp_path)
    with pytest.raises(ValueError, match="are for datasets on the Hub"):
        load_corpus(tmp_path, revision="main")


def test_hub_without_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'someone/something' is no local file or folder.*could not be fetched"):
        load_corpus("someone/something")


def test_hub_arguments_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **kwargs: Any) -> DatasetDict:
        calls.append((args, kwargs))
        return DatasetDict({"train": texts([0, 1]), "validation": texts([1, 0])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus("someone/something", config_name="small", revision="v1")
    assert calls == [(("someone/something", "small"), {"revision": "v1"})]
    assert corpus.source == "someone/something@v1" and corpus.name == "something (small)"

    def fail(*args: Any, **kwargs: Any) -> DatasetDict:
        raise ValueError("Config name is missing.")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="could not be loaded: Config name is missing"):
        load_corpus("someone/something")
