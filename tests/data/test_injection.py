"""Noise in `load_corpus`: every kind is reached, with what it needs or an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_clidmu.data import NOISE_KINDS, ImageSet, image_transforms, load_corpus


NAMES = ["ant", "bee", "cat", "dog"]
ROWS = 200


def clean_texts() -> Dataset:
    return Dataset.from_dict(
        {"text": [f"text {i}" for i in range(ROWS)], "label": [i % 4 for i in range(ROWS)]},
        features=Features({"text": Value("string"), "label": ClassLabel(names=NAMES)}),
    )


def moves(corpus: Any) -> set[tuple[int, int]]:
    given, clean = corpus.train["label"][:], corpus.train["clean_label"][:]
    return {(c, g) for c, g in zip(clean, given, strict=True) if c != g}


EXTRAS: dict[str, dict[str, Any]] = {
    "asymmetric": {"noise_map": "next"},
    "hierarchical": {"noise_superclasses": ["insect", "insect", "pet", "pet"]},
    "instance": {"noise_features": np.random.default_rng(0).normal(size=(ROWS, 3))},
    "feature": {"noise_features": np.eye(4)[np.arange(ROWS) % 4]},
    "transition": {"noise_transition": np.full((4, 4), 0.25), "noise_rate": 0.0},
}


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_kind(kind: str) -> None:
    arguments = {"noise_rate": 0.4, **EXTRAS.get(kind, {})}
    corpus = load_corpus(clean_texts(), noise=kind, **arguments)
    assert corpus.noise.kind == kind and 0.2 < corpus.noise.achieved_rate < 0.9
    assert corpus.train["clean_label"][:] == [i % 4 for i in range(ROWS)]
    assert load_corpus(clean_texts(), noise=kind, **arguments).train["label"][:] == corpus.train["label"][:]


@pytest.mark.parametrize("kind", sorted(EXTRAS))
def test_what_a_kind_needs_is_asked_for(kind: str) -> None:
    setting = next(iter(EXTRAS[kind]))
    with pytest.raises(ValueError, match=f"noise=.{kind}. needs {setting}"):
        load_corpus(clean_texts(), noise=kind, noise_rate=0.0 if kind == "transition" else 0.4)
    with pytest.raises(ValueError, match=f"{setting} is for noise=.*not for noise='symmetric'"):
        load_corpus(clean_texts(), noise="symmetric", noise_rate=0.4, **{setting: EXTRAS[kind][setting]})


def test_maps_go_by_names_or_numbers() -> None:
    by_name = load_corpus(clean_texts(), noise="asymmetric", noise_rate=0.5, noise_map={"ant": "bee", "cat": "dog"})
    by_number = load_corpus(clean_texts(), noise="asymmetric", noise_rate=0.5, noise_map={0: 1, 2: 3})
    assert moves(by_name) == moves(by_number) == {(0, 1), (2, 3)}
    assert by_name.train["label"][:] == by_number.train["label"][:]
    following = load_corpus(clean_texts(), noise="asymmetric", noise_rate=0.5, noise_map="next")
    assert moves(following) == {(0, 1), (1, 2), (2, 3), (3, 0)}
    for bad in ({"ant": "emu"}, {0: 4}):
        with pytest.raises(ValueError, match="which is no class. The classes are 'ant', 'bee'"):
            load_corpus(clean_texts(), noise="asymmetric", noise_rate=0.5, noise_map=bad)
    with pytest.raises(ValueError, match='noise_map must be "next" or map classes'):
        load_corpus(clean_texts(), noise="asymmetric", noise_rate=0.5, noise_map="last")


def test_superclasses_are_kept() -> None:
    corpus = load_corpus(clean_texts(), noise="hierarchical", noise_rate=0.5, **EXTRAS["hierarchical"])
    assert moves(corpus) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    with pytest.raises(ValueError, match="each of the 4 classes, in their order; it has 2 entries"):
        load_corpus(clean_texts(), noise="hierarchical", noise_rate=0.5, noise_superclasses=[0, 1])


def test_features_follow_their_rows() -> None:
    features = np.eye(4)[np.arange(ROWS) % 4]
    part = {"max_train_samples": 100, "test_size": 0.2, "noise": "feature", "noise_rate": 0.2}
    assert load_corpus(clean_texts(), noise_features=features, **part).noise.achieved_rate == 0.2
    with pytest.raises(ValueError, match="one row per row of the training split, 200; it has 100"):
        load_corpus(clean_texts(), noise_features=features[:100], **part)


def test_pixels_are_the_features_of_images(make_image: Callable[..., PILImage.Image]) -> None:
    images = [make_image(i, (4, 4)) for i in range(40)]
    data = Dataset.from_dict({"image": images, "label": [i % 2 for i in range(40)]}).cast_column("image", Image())
    corpus = load_corpus(data, noise="instance", noise_rate=0.4, noise_seed=3)
    pixels = np.stack([np.asarray(image) for image in images])
    given = load_corpus(data, noise="instance", noise_rate=0.4, noise_seed=3, noise_features=pixels)
    assert corpus.train["label"][:] == given.train["label"][:] and corpus.noise.achieved_rate > 0.1
    odd = Dataset.from_dict({"image": [*images[:3], make_image(3, (5, 4))], "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match=r"Images differ in shape \(row 0: \(4, 4, 3\), row 3: \(4, 5, 3\)\)"):
        load_corpus(odd.cast_column("image", Image()), noise="instance", noise_rate=0.4)


def test_images_carry_votes_that_no_model_sees(make_image: Callable[..., PILImage.Image]) -> None:
    data = Dataset.from_dict({"image": [make_image(i) for i in range(2)], "a": [0, 1], "b": [0, 1]})
    corpus = load_corpus(data.cast_column("image", Image()), label_column="a,b")
    _, evaluation = image_transforms({"input_size": (3, 12, 12)})
    assert set(ImageSet(corpus.train, evaluation)[0]) == {"pixel_values", "labels"}
    assert corpus.train[1]["label_votes"] == [0, 1]


def test_class_names_in_order() -> None:
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 2]})
    with pytest.warns(UserWarning, match="no training row is labelled 'mid'"):
        corpus = load_corpus(data, label_names=["low", "mid", "high"])
    assert corpus.label_names == ["low", "mid", "high"] and corpus.train["label"][:] == [2, 0, 2]
    words = Dataset.from_dict({"text": ["a", "b"], "label": ["high", "low"]})
    assert load_corpus(words, label_names=["low", "high"]).train["label"][:] == [1, 0]
    with pytest.raises(ValueError, match="row 0: the class 'high' does not occur"):
        load_corpus(words, label_names=["low", "mid"])
    with pytest.raises(ValueError, match="row 0: label 2 is out of range"):
        load_corpus(data, label_names=["low", "mid"])
