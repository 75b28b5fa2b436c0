"""Several annotators: the majority vote, its ties and its shares, and how they travel through a corpus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_clidmu.data import load_corpus, tokenize_corpus
from hf_clidmu.data.votes import majority_vote


def annotated(feature: Any = None, **columns: list[Any]) -> Dataset:
    rows = len(next(iter(columns.values())))
    data = {"text": [f"text {i}" for i in range(rows)], **columns}
    if feature is None:
        return Dataset.from_dict(data)
    return Dataset.from_dict(data, features=Features({"text": Value("string"), **dict.fromkeys(columns, feature)}))


def test_the_majority_wins_and_missing_votes_do_not_count() -> None:
    a, b, c = np.array([0, 1, -1, 2, -1]), np.array([0, 1, -1, -1, -1]), np.array([1, 1, 2, -1, -1])
    votes = majority_vote([a, b, c], 3)
    assert votes.label.tolist() == [0, 1, 2, 2, -1]
    np.testing.assert_allclose(votes.shares, [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="same rows"):
        majority_vote([a, b[:2]], 3)


def test_ties_go_to_a_class_in_the_lead_by_a_seeded_draw() -> None:
    a, b, c = np.full(3000, 0), np.full(3000, 2), np.full(3000, 3)
    first = majority_vote([a, b, c], 4, seed=1).label
    shares = np.bincount(first, minlength=4) / 3000
    assert shares[1] == 0 and np.abs(shares[[0, 2, 3]] - 1 / 3).max() < 0.04
    np.testing.assert_array_equal(first, majority_vote([c, a, b], 4, seed=1).label)
    assert (first != majority_vote([a, b, c], 4, seed=2).label).any()
    # Never against a majority, however the draw falls.
    assert (majority_vote([a, a, b], 4, seed=1).label == 0).all()


@pytest.mark.parametrize("columns", [["a1", "a2", "a3"], "a1,a2, a3", "a*", ("a3", "a1", "a2")])
def test_columns_are_named_in_any_way(columns: Any) -> None:
    data = annotated(a1=["x", "y", "y"], a2=["x", "x", None], a3=["y", "x", ""], id=[0, 1, 2])
    corpus = load_corpus(data, label_column=columns)
    assert corpus.label_names == ["x", "y"] and corpus.train["label"][:] == [0, 0, 1]
    np.testing.assert_allclose(corpus.train["label_votes"][:], [[2 / 3, 1 / 3], [2 / 3, 1 / 3], [0, 1]], rtol=1e-6)
    assert corpus.train.features["label_votes"].length == 2


def test_a_column_with_a_comma_in_its_name_is_one_column() -> None:
    assert load_corpus(annotated(**{"a,b": [0, 1]}), label_column="a,b").train.column_names == ["text", "label"]


def test_rows_without_a_vote() -> None:
    data = annotated(a=[0, -1, 1, -1], b=[0, -1, -1, 1])
    with pytest.raises(ValueError, match="row 1 of the train split: none of the annotators 'a', 'b' gave a label"):
        load_corpus(data, label_column=["a", "b"])
    with pytest.warns(UserWarning, match="1 of 4 training rows have no label in 'a', 'b' and are left out"):
        corpus = load_corpus(data, label_column=["a", "b"], missing_labels="drop")
    assert corpus.train["text"][:] == ["text 0", "text 2", "text 3"] and corpus.train["label"][:] == [0, 1, 1]
    with pytest.warns(UserWarning, match="3 of 4"):
        assert load_corpus(
            annotated(l=[-1, -1, 0, -1], b=[0, 1, 0, 1]),
            label_column="l",
            label_names=["u", "v"],
            missing_labels="drop",
        ).train["label"][:] == [0]
    with pytest.raises(ValueError, match="rows 0, 1: no label"):
        load_corpus(annotated(a=[-1, -1]), label_column="a", missing_labels="drop")
    with pytest.raises(ValueError, match='missing_labels must be "error" or "drop"'):
        load_corpus(data, label_column="a", missing_labels="skip")


def test_votes_travel_with_their_rows() -> None:
    names = ClassLabel(names=["p", "q", "r"])
    votes = [[row % 3, row % 3, (row + 1) % 3] for row in range(60)]
    data = annotated(names, **{f"a{i}": [vote[i] for vote in votes] for i in range(3)})
    corpus = load_corpus(data, label_column="a*", test_size=0.2, max_train_samples=30, seed=4)
    assert "label_votes" not in corpus.test.column_names
    for row in corpus.train:
        number = int(row["text"].split()[1])
        assert row["label"] == number % 3
        assert np.argmax(row["label_votes"]) == number % 3 and row["label_votes"][(number + 1) % 3] > 0.3


def test_injected_noise_has_no_votes() -> None:
    data = annotated(a=[0, 1] * 10, b=[0, 1] * 10)
    corpus = load_corpus(data, label_column="a,b", noise="symmetric", noise_rate=0.2)
    assert corpus.train.column_names == ["text", "label", "clean_label"] and corpus.noise.achieved_rate == 0.2


def test_models_never_see_the_votes(bert_folder: Any) -> None:
    from transformers import AutoTokenizer

    corpus = load_corpus(annotated(a=[0, 1], b=[0, 1]), label_column="a,b")
    tokens = tokenize_corpus(corpus.train, AutoTokenizer.from_pretrained(bert_folder[0]))
    assert "label_votes" in corpus.train.column_names
    assert "label_votes" not in tokens.column_names and "labels" in tokens.column_names


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (["a", "x"], "label_column='x' is no column"),
        ("a,a", "none of them twice; it names 'a', 'a'"),
        ([], "must name at least one column"),
        ("z*", r"label_column='z\*' is no column"),
    ],
)
def test_bad_columns(columns: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_corpus(annotated(a=[0, 1], b=[0, 1]), label_column=columns)


def test_annotators_must_name_the_same_classes() -> None:
    data = annotated(ClassLabel(names=["p", "q"]), a=[0, 1], b=[1, 0]).cast_column("b", ClassLabel(names=["q", "p"]))
    with pytest.raises(ValueError, match="do not name the same classes in the same order"):
        load_corpus(data, label_column=["a", "b"])
