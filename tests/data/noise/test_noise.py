"""Symmetric noise, its record, and measured noise: exact counts, exact matrices, and errors that name the row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_clidmu.data.noise import NoiseRecord, measure_noise, symmetric_noise


@pytest.mark.parametrize(
    ("rows", "classes", "rate"), [(1000, 10, 0.4), (997, 4, 0.2), (50, 2, 0.5), (7, 3, 0.5), (100, 5, 0.999)]
)
def test_symmetric_noise_flips_exactly_the_requested_number(rows: int, classes: int, rate: float) -> None:
    clean = np.arange(rows) % classes
    noisy, record = symmetric_noise(clean, classes, rate, seed=3)
    wrong = int((clean != noisy).sum())
    assert wrong == round(rate * rows)
    assert record.achieved_rate == wrong / rows
    assert record.requested_rate == rate
    assert (record.kind, record.seed) == ("symmetric", 3)
    assert noisy.dtype == np.int64 and noisy.min() >= 0 and noisy.max() < classes


def test_symmetric_noise_is_uniform_over_the_other_classes() -> None:
    clean = np.repeat(np.arange(5), 20_000)
    noisy, record = symmetric_noise(clean, 5, 0.4, seed=0)
    expected = np.full((5, 5), 0.1) + np.eye(5) * 0.5
    # 20,000 draws per row: the standard deviation of an entry is at most 0.0035.
    np.testing.assert_allclose(record.transition, expected, atol=0.012)
    np.testing.assert_allclose(record.expected_transition, expected)
    np.testing.assert_allclose(np.sum(record.transition, axis=1), 1)
    counts = np.array([[((clean == i) & (noisy == j)).mean() * 5 for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(record.transition, counts)


def test_symmetric_noise_depends_on_the_seed_alone() -> None:
    labels = list(range(10)) * 10
    first, _ = symmetric_noise(labels, 10, 0.3, seed=1)
    again, _ = symmetric_noise(np.array(labels, dtype=np.int32), 10, 0.3, seed=1)
    other, _ = symmetric_noise(labels, 10, 0.3, seed=2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_symmetric_noise_draws_the_recorded_stream() -> None:
    # Recorded once: a change of the stream changes every published number.
    noisy, _ = symmetric_noise([0] * 12, 3, 0.5, seed=0)
    assert noisy.tolist() == [2, 0, 2, 2, 1, 1, 0, 1, 0, 0, 0, 0]


def test_symmetric_noise_leaves_its_input_alone() -> None:
    labels = np.zeros(20, dtype=np.int64)
    noisy, _ = symmetric_noise(labels, 2, 0.5, seed=0)
    assert labels.sum() == 0 and noisy.sum() == 10
    untouched, record = symmetric_noise(labels, 2, 0.0, seed=0)
    assert untouched is not labels and record.transition == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_symmetric_noise_refuses_rates_outside_the_interval(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        symmetric_noise([0, 1], 2, rate, seed=0)


@pytest.mark.parametrize(
    ("labels", "classes", "error", "match"),
    [
        ([0, 1, 3, 0], 3, ValueError, r"row 2.*3 in row 2; labels must be in 0\.\.2"),
        ([0, -1, 1], 2, ValueError, "-1 in row 1"),
        ([0, 1, 0.5], 2, TypeError, "row 0 holds 0.0"),
        ([0, "cat"], 2, TypeError, "row 0 holds '0'"),
        ([0, None], 2, TypeError, "row 1 holds None"),
        ([True, False], 2, TypeError, "must be integers"),
        ([[0, 1], [1, 0]], 2, ValueError, r"one-dimensional .* shape \(2, 2\)"),
        ([[0], [0, 1]], 2, ValueError, "differ in length"),
        ([], 2, ValueError, "empty"),
        ([0, 0], 1, ValueError, "at least 2 classes"),
        ([0, 0], 0, ValueError, "num_classes must be at least 1"),
        ([0, 0], 2.0, TypeError, "num_classes must be an integer"),
    ],
)
def test_symmetric_noise_names_bad_input(labels: object, classes: int, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        symmetric_noise(labels, classes, 0.2, seed=0)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (None, TypeError), (True, TypeError), (0.5, TypeError)])
def test_symmetric_noise_refuses_bad_seeds(seed: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed must be"):
        symmetric_noise([0, 1], 2, 0.5, seed=seed)


def test_symmetric_noise_refuses_a_rate_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="rate must be a number"):
        symmetric_noise([0, 1], 2, "0.5", seed=0)


def test_measure_noise_counts_by_hand() -> None:
    clean = [0, 0, 0, 0, 1, 1, -1, 2]
    noisy = [0, 0, 0, 1, 1, 0, 1, -1]
    record = measure_noise(clean, noisy, 3)
    assert record.kind == "measured" and record.seed is None
    assert record.achieved_rate == record.requested_rate == 2 / 6
    assert record.transition == [[0.75, 0.25, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_measure_noise_agrees_with_the_injection() -> None:
    clean = np.arange(300) % 3
    noisy, injected = symmetric_noise(clean, 3, 0.25, seed=5)
    measured = measure_noise(clean, noisy, 3)
    assert measured.achieved_rate == injected.achieved_rate == 0.25
    assert measured.transition == injected.transition


@pytest.mark.parametrize(
    ("clean", "noisy", "match"),
    [
        ([0, 1], [0], "have 2 and 1 entries"),
        ([-1, 0], [0, -1], "No row has both"),
        ([], [], "No row has both"),
        ([0, 5], [0, 1], "clean: row 1.*5 in row 1"),
        ([0, 1], [0, -2], "noisy: row 1.*-1 means unknown"),
    ],
)
def test_measure_noise_names_bad_input(clean: list[int], noisy: list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        measure_noise(clean, noisy, 2)


def test_record_is_frozen_and_serialisable() -> None:
    record = NoiseRecord("symmetric", 0.5, 0.5, [[0.5, 0.5], [0.5, 0.5]], 7)
    assert record.expected_transition is None and measure_noise([0], [0], 1).expected_transition is None
    assert NoiseRecord(**json.loads(json.dumps(record.to_dict()))) == record
    _, injected = symmetric_noise([0, 1, 1], 2, 0.3, seed=0)
    assert NoiseRecord(**json.loads(json.dumps(injected.to_dict()))) == injected
    with pytest.raises(AttributeError):
        record.seed = 8
