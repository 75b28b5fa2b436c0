"""Noise by sample: rates, dependence on the features, bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import truncnorm

from hf_clidmu.data.noise import feature_dependent_noise, instance_dependent_noise, samplewise


def stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def clusters(rows: int, classes: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Classes in a row: each overlaps with the class before and the class after it."""
    labels = np.arange(rows) % classes
    features = stream(5).standard_normal((rows, width))
    features[:, 0] += 3.0 * labels
    return features, labels


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_instance_rate_is_the_mean_of_the_truncated_normal(rate: float) -> None:
    features, labels = stream(0).standard_normal((40_000, 8)), np.arange(40_000) % 5
    noisy, record = instance_dependent_noise(features, labels, 5, rate, seed=0)
    mean = truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).mean()
    # 40,000 draws: the standard deviation of the share is at most 0.0025.
    assert record.achieved_rate == (noisy != labels).mean() == pytest.approx(mean, abs=0.01)
    assert (record.kind, record.requested_rate, record.expected_transition) == ("instance", rate, None)


def test_instance_noise_follows_the_published_softmax() -> None:
    # 20,000 copies of each of two samples: the shares of wrong labels are the softmax over the other classes.
    features = np.repeat([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]], 20_000, axis=0)
    labels = np.full(40_000, 2)
    noisy, _ = instance_dependent_noise(features, labels, 4, 0.5, seed=11, standardize=False)
    sequence = np.random.SeedSequence(11, spawn_key=(2,))
    projection = np.random.Generator(np.random.PCG64(sequence)).standard_normal((3, 4))
    for start in (0, 20_000):
        given = noisy[start : start + 20_000]
        weights = np.exp(features[start] @ projection) * [1, 1, 0, 1]
        shares = np.bincount(given[given != 2], minlength=4) / np.sum(given != 2)
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)


def test_instance_noise_depends_on_the_sample_and_on_its_class() -> None:
    # Each sample occurs twice: with standardised features of this length, both copies get the same wrong label.
    features = np.tile(stream(1).standard_normal((2000, 400)), (2, 1))
    labels = np.tile(np.arange(2000) % 10, 2)
    noisy, _ = instance_dependent_noise(features, labels, 10, 0.6, seed=0)
    first, second = noisy[:2000], noisy[2000:]
    both = (first != labels[:2000]) & (second != labels[:2000])
    assert both.sum() > 500 and (first == second)[both].mean() > 0.85
    other, _ = instance_dependent_noise(features, (labels + 1) % 10, 10, 0.6, seed=0)
    assert (other == noisy).mean() < 0.4


def test_a_constant_feature_and_the_units_do_not_matter() -> None:
    features, labels = clusters(600, 3)
    plain, _ = instance_dependent_noise(features, labels, 3, 0.4, seed=0)
    scaled, _ = instance_dependent_noise(features * 255 + 7, labels, 3, 0.4, seed=0)
    np.testing.assert_array_equal(plain, scaled)
    raw, _ = instance_dependent_noise(features, labels, 3, 0.4, seed=0, standardize=False)
    assert (plain != raw).any()
    columns = samplewise._Columns(np.column_stack([np.full(50, 0.1), np.arange(50)]), 50, True)
    (_, values), *_ = columns.chunks(np.arange(50))
    assert (values[:, 0] == 0).all()
    assert values[:, 1].mean() == pytest.approx(0) and values[:, 1].std() == pytest.approx(1)


@pytest.mark.parametrize("noise", [instance_dependent_noise, feature_dependent_noise])
def test_features_may_be_images_and_chunks_change_nothing(noise, monkeypatch: pytest.MonkeyPatch) -> None:
    images = stream(2).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(300) % 3
    whole, _ = noise(images, labels, 3, 0.4, seed=0)
    flat, _ = noise(images.reshape(300, -1).astype(np.float32), labels, 3, 0.4, seed=0)
    np.testing.assert_array_equal(whole, flat)
    monkeypatch.setattr(samplewise, "CHUNK_VALUES", 500)
    chunked, _ = noise(images, labels, 3, 0.4, seed=0)
    np.testing.assert_array_equal(whole, chunked)


def test_memory_does_not_grow_with_the_features() -> None:
    features = np.zeros((20_000, 1000), dtype=np.float32)  # 80 MB, and twice that in float64
    features[:, 0] = np.arange(20_000)
    labels = np.arange(20_000) % 10
    tracemalloc.start()
    try:
        instance_dependent_noise(features, labels, 10, 0.4, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120e6


def test_feature_noise_is_exact_and_confuses_neighbours() -> None:
    features, labels = clusters(5000, 5)
    noisy, record = feature_dependent_noise(features, labels, 5, 0.2, seed=0)
    wrong = noisy != labels
    assert wrong.sum() == 1000 and record.achieved_rate == 0.2
    assert (record.kind, record.expected_transition) == ("feature", None)
    # A class overlaps with its neighbours alone.
    assert (np.abs(noisy - labels)[wrong] == 1).mean() > 0.9
    # Wrong labels lie where classes overlap: on the side of the class that they name.
    place = features[:, 0] - 3 * labels
    assert np.mean(place[noisy == labels + 1]) > 0.4 and np.mean(place[noisy == labels - 1]) < -0.4
    assert abs(np.mean(place[~wrong])) < 0.1


@pytest.mark.parametrize("rate", [0.001, 0.5, 0.95])
def test_feature_noise_is_exact_at_any_rate(rate: float) -> None:
    features, labels = clusters(997, 4)
    noisy, record = feature_dependent_noise(features, labels, 4, rate, seed=3)
    assert (noisy != labels).sum() == round(rate * 997)
    assert abs(record.achieved_rate - rate) < 1e-3


def test_feature_noise_asks_no_model_about_rows_it_has_seen() -> None:
    # Labels without a pattern: a model knows those it has seen, and no doubt would fall on them.
    features, labels = stream(3).standard_normal((400, 300)), stream(4).integers(0, 2, 400)
    columns = samplewise._Columns(features, 400, True)
    log_doubt, wrong = samplewise._weak_opinions(columns, labels, 2, 0.25, stream(0))
    assert (log_doubt > np.log(1e-3)).all() and (wrong == 1 - labels).all()
    assert np.exp(log_doubt).mean() == pytest.approx(0.5, abs=0.1)


def test_feature_noise_doubts_what_the_model_does_not_know() -> None:
    features, labels = clusters(200, 2)
    labels = labels.copy()
    labels[17] = 2  # the only row of its class
    columns = samplewise._Columns(features, 200, True)
    log_doubt, wrong = samplewise._weak_opinions(columns, labels, 4, 0.05, stream(0))
    assert log_doubt[17] == log_doubt.max() == pytest.approx(0, abs=1e-12) and wrong[17] in (0, 1)
    noisy, record = feature_dependent_noise(features, labels, 4, 0.3, seed=0)
    assert (noisy != labels).sum() == 60 and record.transition[3] == [0.0] * 4


@pytest.mark.parametrize("noise", [instance_dependent_noise, feature_dependent_noise])
def test_no_rate_no_noise(noise) -> None:
    features, labels = clusters(30, 3)
    given = features.copy()
    noisy, record = noise(features, labels, 3, 0.0, seed=0)
    assert record.achieved_rate == 0 and noisy is not labels
    np.testing.assert_array_equal(noisy, labels)
    noise(features, labels, 3, 0.5, seed=0)
    np.testing.assert_array_equal(features, given)


@pytest.mark.parametrize("noise", [instance_dependent_noise, feature_dependent_noise])
@pytest.mark.parametrize(("features", "error", "match"), [
    (np.zeros((3, 2)), ValueError, r"one row for each of the 4 labels, got \(3, 2\)"),
    (np.zeros(4), ValueError, r"shape \(N, D\), .* got \(4,\)"),
    (np.zeros((4, 0)), ValueError, r"got \(4, 0\)"),
    (np.array([["a"]] * 4), TypeError, "array of numbers, got an array of <U1"),
    (np.array([[0.0], [1.0], [np.nan], [np.inf]]), ValueError, "features: rows 2, 3: not finite"),
])  # fmt: skip
def test_bad_features_are_named(noise, features: np.ndarray, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        noise(features, [0, 1, 0, 1], 2, 0.5, seed=0)


@pytest.mark.parametrize("share", [0, 0.6, -1, float("nan"), "half", True])
def test_feature_noise_refuses_a_bad_share(share: object) -> None:
    with pytest.raises(ValueError, match=r"share must be a number in \(0, 0\.5\]"):
        feature_dependent_noise(np.zeros((4, 1)), [0, 1, 0, 1], 2, 0.5, seed=0, share=share)


def test_feature_noise_needs_two_classes_to_fit() -> None:
    with pytest.raises(ValueError, match="at least 2 classes with 2 rows each; labels has 1"):
        feature_dependent_noise(np.zeros((4, 1)), [0, 0, 0, 1], 2, 0.5, seed=0)
