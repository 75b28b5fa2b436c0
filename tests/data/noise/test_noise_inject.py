"""Every kind of noise by name: what all of them promise, and the rows that are taken away."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from hf_clidmu.data import noise as noise_module
from hf_clidmu.data.noise import (
    CIFAR10_ASYMMETRIC,
    NOISE_KINDS,
    NoiseRecord,
    inject_noise,
    long_tail_rows,
    measure_noise,
    without_classes_rows,
)


LABELS = np.arange(1000) % 10
EXTRAS = {
    "class_map": CIFAR10_ASYMMETRIC,
    "superclasses": [0, 0, 1, 1, 1, 2, 2, 2, 2, 3],
    "features": np.random.Generator(np.random.PCG64(9)).standard_normal((1000, 20)),
    "transition": np.full((10, 10), 0.05) + 0.5 * np.eye(10),
}


def inject(kind: str, seed: int = 7, labels: object = LABELS) -> tuple[np.ndarray, NoiseRecord]:
    return inject_noise(kind, labels, 10, 0.0 if kind == "transition" else 0.4, seed, **EXTRAS)


# Recorded once: a change of a stream changes every published number. Only the weak model's labels are not pinned: its
# solver may change with scikit-learn.
GOLDEN = {
    "symmetric": ([0, 1, 4, 1, 8, 0, 6, 5, 8, 9, 8, 1], "56b86fca7f276fd9"),
    "uniform": ([0, 1, 2, 8, 3, 4, 6, 8, 8, 9, 8, 1], "bbdd254af28a531a"),
    "asymmetric": ([0, 1, 0, 3, 7, 5, 6, 7, 8, 1, 0, 1], "b51d76b3978f24bd"),
    "pair_flip": ([1, 2, 3, 3, 5, 5, 7, 7, 8, 0, 1, 1], "05c28d9eeaa12f13"),
    "flip": ([9, 7, 9, 3, 0, 5, 4, 7, 8, 2, 9, 1], "ab9f2b1717fdbfd8"),
    "two_flip": ([3, 9, 2, 3, 8, 5, 8, 7, 8, 2, 3, 1], "8ce8ad7a9032e180"),
    "hierarchical": ([1, 0, 3, 3, 2, 5, 8, 7, 8, 9, 1, 1], "c73da9ef9d7b2aa1"),
    "instance": ([0, 1, 2, 2, 6, 5, 4, 7, 8, 3, 5, 7], "1ec0ea54018bc61e"),
    "transition": ([2, 7, 5, 3, 4, 7, 0, 7, 8, 9, 0, 1], "57db315852b968f6"),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_every_kind_draws_the_recorded_labels(kind: str) -> None:
    first, digest = GOLDEN[kind]
    noisy, _ = inject(kind)
    assert noisy[:12].tolist() == first
    assert hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_the_names_are_complete() -> None:
    assert set(GOLDEN) | {"feature"} == set(NOISE_KINDS) and len(NOISE_KINDS) == 10
    assert all(hasattr(noise_module, name) for name in noise_module.__all__)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_kind_keeps_the_promises(kind: str) -> None:
    labels = LABELS.copy()
    noisy, record = inject(kind, labels=labels)
    np.testing.assert_array_equal(labels, LABELS)
    assert noisy.dtype == np.int64 and noisy.shape == LABELS.shape and 0 <= noisy.min() <= noisy.max() < 10
    assert (record.kind, record.seed) == (kind, 7)
    measured = measure_noise(LABELS, noisy, 10)
    assert (measured.achieved_rate, measured.transition) == (record.achieved_rate, record.transition)
    assert NoiseRecord(**json.loads(json.dumps(record.to_dict()))) == record
    if record.expected_transition is not None:
        np.testing.assert_allclose(np.sum(record.expected_transition, axis=1), 1)
    again, _ = inject(kind, labels=LABELS.astype(np.uint8).tolist())
    np.testing.assert_array_equal(noisy, again)
    other, _ = inject(kind, seed=8)
    assert (noisy != other).any()


@pytest.mark.parametrize("kind", sorted(set(NOISE_KINDS) - {"transition"}))
def test_every_kind_leaves_labels_alone_at_rate_zero(kind: str) -> None:
    noisy, record = inject_noise(kind, LABELS, 10, 0.0, 0, **EXTRAS)
    np.testing.assert_array_equal(noisy, LABELS)
    assert record.achieved_rate == record.requested_rate == 0
    assert record.expected_transition in (None, np.eye(10).tolist())


@pytest.mark.parametrize("kind", sorted(set(NOISE_KINDS) - {"transition"}))
def test_every_kind_checks_its_input(kind: str) -> None:
    for labels, rate, seed, error, match in (
        (LABELS, 1.0, 0, ValueError, r"rate must be in \[0, 1\)"),
        (LABELS, "0.4", 0, TypeError, "rate must be a number"),
        (LABELS, None, 0, TypeError, f'Noise of kind "{kind}" needs a rate'),
        (LABELS, 0.4, -1, ValueError, "seed must be at least 0"),
        (LABELS + 1, 0.4, 0, ValueError, r"10 in row 9; labels must be in 0\.\.9"),
        (LABELS / 1, 0.4, 0, TypeError, "must be integers"),
        ([], 0.4, 0, ValueError, "labels is empty"),
    ):
        with pytest.raises(error, match=match):
            inject_noise(kind, labels, 10, rate, seed, **EXTRAS)


@pytest.mark.parametrize("kind", ["symmetric", "uniform", "pair_flip", "flip", "two_flip"])
def test_noise_needs_another_class(kind: str) -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        inject_noise(kind, [0, 0], 1, 0.5, 0)
    assert inject_noise(kind, [0, 0], 1, 0.0, 0)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("asymmetric", r'kind "asymmetric" needs class_map: .*such as \{9: 1, 2: 0\}'),
        ("hierarchical", "needs superclasses: the superclass of each"),
        ("instance", r"needs features: an \(N, D\) array"),
        ("feature", r"needs features: an \(N, D\) array"),
        ("transition", r"needs transition: a \(C, C\) matrix"),
    ],
)
def test_a_missing_argument_is_named(kind: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inject_noise(kind, LABELS, 10, 0.4, 0)


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="must be one of symmetric, uniform, .* got 'asym'"):
        inject_noise("asym", LABELS, 10, 0.4, 0)
    with pytest.raises(ValueError, match="takes its rate from the matrix: leave out the rate, which is 0.4"):
        inject_noise("transition", LABELS, 10, 0.4, 0, transition=EXTRAS["transition"])
    assert inject_noise("transition", LABELS, 10, None, 0, transition=EXTRAS["transition"])[1].requested_rate > 0.4
    with pytest.raises(ValueError, match="transition must have one entry for each of the 10 classes, got 2"):
        inject_noise("transition", LABELS, 10, None, 0, transition=np.eye(2))
    with pytest.raises(ValueError, match="superclasses must have one entry for each of the 10 classes, got 3"):
        inject_noise("hierarchical", LABELS, 10, 0.4, 0, superclasses=[0, 0, 1])
    with pytest.raises(ValueError, match=r"class_map: 0 -> 10 is outside 0\.\.9"):
        inject_noise("asymmetric", LABELS, 10, 0.4, 0, class_map={0: 10})
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        inject_noise("asymmetric", LABELS, 0, 0.4, 0, class_map={0: 1})


def test_long_tail_has_the_published_profile() -> None:
    labels = np.arange(50_000) % 10
    rows = long_tail_rows(labels, 10, 100, seed=0)
    # CIFAR-10-LT at ratio 100: 12,406 images.
    assert np.bincount(labels[rows]).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, long_tail_rows(labels.tolist(), 10, 100, seed=0))
    assert not np.array_equal(rows, long_tail_rows(labels, 10, 100, seed=1))


def test_long_tail_of_balanced_data_at_one_keeps_all() -> None:
    assert long_tail_rows([0, 1, 1, 0], 2, 1, seed=0).tolist() == [0, 1, 2, 3]
    assert long_tail_rows([0, 0], 1, 50, seed=0).tolist() == [0, 1]


def test_long_tail_keeps_what_small_classes_have() -> None:
    labels = np.repeat([0, 1, 3], [100, 2, 100])
    counts = np.bincount(labels[long_tail_rows(labels, 5, 16, seed=0)], minlength=5)
    assert counts.tolist() == [100, 2, 0, 12, 0]  # 100 * 16 ** (-3 / 4) = 12.5
    labels = np.repeat([0, 1], [10, 10])
    assert np.bincount(labels[long_tail_rows(labels, 2, 1000, seed=0)]).tolist() == [10, 1]


@pytest.mark.parametrize(("labels", "imbalance", "error", "match"), [
    ([0, 1], 0.5, ValueError, "imbalance must be at least 1, got 0.5. It is the size of the first class"),
    ([0, 1], float("inf"), ValueError, "imbalance must be at least 1"),
    ([0, 1], "10", TypeError, "imbalance must be a number"),
    ([], 10, ValueError, "labels is empty"),
    ([0, 2], 10, ValueError, "2 in row 1"),
])  # fmt: skip
def test_long_tail_names_bad_input(labels: list[int], imbalance: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        long_tail_rows(labels, 2, imbalance, seed=0)


def test_without_classes_leaves_the_other_rows() -> None:
    rows = without_classes_rows([3, 0, 1, 3, 2], {3, 0, 9})
    assert rows.tolist() == [2, 4] and rows.dtype == np.int64
    assert without_classes_rows([1, 0], []).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"No row is left without the classes \[0, 1\]"):
        without_classes_rows([0, 1, 0], [0, 1])
    with pytest.raises(TypeError, match="each of classes must be an integer, got 'a'"):
        without_classes_rows([0, 1], "a")
    with pytest.raises(ValueError, match="each of classes must be at least 0"):
        without_classes_rows([0, 1], [-1])
