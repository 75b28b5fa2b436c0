"""Streams: the columns of every other corpus, without holding the training data."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_clidmu.data import load_corpus, prepare_corpus, stream_corpus


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"sentence": f"text {i}", "topic_label": "abc"[i % 3], "clean_label": "abc"[(i + (i % 5 == 0)) % 3]}
        for i in range(40)
    ]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{**row, "topic_label": row["clean_label"]} for row in rows[:12]])
    return tmp_path


def test_a_stream_has_the_columns_of_a_loaded_corpus(folder):
    loaded = load_corpus(folder)
    streamed = stream_corpus(str(folder), label_names=["a", "b", "c"], shuffle_buffer=0)
    assert isinstance(streamed.train, datasets.IterableDataset)
    assert list(streamed.train) == list(loaded.train.with_format(None))
    assert streamed.label_names == loaded.label_names and streamed.modality == "text" and streamed.validation is None
    assert list(streamed.test) == list(loaded.test)


def test_shuffling_is_seeded_and_loses_nothing(folder):
    def order(seed):
        stream = stream_corpus(str(folder), label_names=["a", "b", "c"], shuffle_buffer=16, seed=seed)
        return [row["text"] for row in stream.train]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(f"text {i}" for i in range(40))


def test_the_test_split_is_cut_and_that_is_said(folder):
    with pytest.warns(UserWarning, match="first 5 rows of the test split"):
        corpus = stream_corpus(str(folder), label_names=["a", "b", "c"], evaluation_rows=5)
    assert len(corpus.test) == 5


def test_classes_must_be_known(folder):
    with pytest.raises(ValueError, match="pass label_names, in order. The first 40 rows hold 'a', 'b', 'c'"):
        stream_corpus(str(folder))


def test_a_label_that_is_no_class_is_named_while_the_stream_is_read(folder):
    write(
        folder / "train.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(1001)] + [{"text": "x", "label": 7}]
    )
    (folder / "test.jsonl").unlink()
    stream = stream_corpus(str(folder), label_names=["no", "yes"], shuffle_buffer=0).train
    with pytest.raises(ValueError, match="column 'label' of the stream holds 7, which is none of the 2 classes"):
        list(stream)


def test_what_cannot_be_streamed_is_an_error(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="not on the Hub: stream its files"):
        stream_corpus("clothing1m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no train"):
        stream_corpus(str(tmp_path / "empty"))
    (folder / "train.jsonl").unlink()
    with pytest.raises(ValueError, match="no training split"):
        stream_corpus(str(folder), label_names=["a", "b", "c"])


def test_images_stream_into_model_inputs(tmp_path):
    from transformers import TimmWrapperImageProcessor

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(6)]
    feature = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=feature)
    table.to_parquet(tmp_path / "train.parquet")
    table.to_parquet(tmp_path / "test.parquet")
    corpus = stream_corpus(str(tmp_path), shuffle_buffer=0)
    processor = TimmWrapperImageProcessor(
        pretrained_cfg={"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    )
    data = prepare_corpus(corpus, processor)
    samples = list(data.train)
    assert [sample["labels"] for sample in samples] == [0, 1] * 3
    expected = prepare_corpus(load_corpus(tmp_path), processor)
    for row, sample in enumerate(samples):
        assert np.allclose(sample["pixel_values"], expected.train[row]["pixel_values"])
    assert data.collator(samples)["pixel_values"].shape == (6, 3, 8, 8)
