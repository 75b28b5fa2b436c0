"""Noise by class: exact counts, the published matrices, and errors that say what to do."""

from __future__ import annotations

import numpy as np
import pytest

from hf_clidmu.data.noise import (
    CIFAR10_ASYMMETRIC,
    CIFAR100_SUPERCLASS_NAMES,
    CIFAR100_SUPERCLASSES,
    asymmetric_noise,
    cifar100_next_in_superclass,
    flip_noise,
    hierarchical_noise,
    measure_noise,
    pair_flip_noise,
    symmetric_noise,
    transition_noise,
    two_flip_noise,
    uniform_noise,
)


CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()

# The coarse label of every fine label, as the files of CIFAR-100 have them.
PUBLISHED_SUPERCLASSES = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def labels_of(classes: int, rows_per_class: int) -> np.ndarray:
    return np.tile(np.arange(classes), rows_per_class)


def test_uniform_noise_keeps_one_label_in_c_of_those_redrawn() -> None:
    clean = labels_of(4, 20_000)
    noisy, record = uniform_noise(clean, 4, 0.4, seed=0)
    # p (1 - 1 / C); the standard deviation of the share is sqrt(0.4 * 0.75 * 0.25 / 80,000) = 0.001.
    assert record.achieved_rate == (noisy != clean).mean() == pytest.approx(0.4 * 0.75, abs=0.004)
    assert (record.kind, record.requested_rate) == ("uniform", 0.4)
    np.testing.assert_allclose(record.expected_transition, 0.6 * np.eye(4) + 0.1)
    np.testing.assert_allclose(record.transition, record.expected_transition, atol=0.012)


def test_uniform_noise_redraws_an_exact_number() -> None:
    # With so many classes, nearly every redrawn label is another one.
    noisy, _ = uniform_noise(np.zeros(1000, dtype=int), 500, 0.3, seed=0)
    assert 294 <= (noisy != 0).sum() <= 300


def test_asymmetric_noise_on_cifar10_is_as_published() -> None:
    named = {CIFAR10[source]: CIFAR10[target] for source, target in CIFAR10_ASYMMETRIC.items()}
    assert named == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    _, record = asymmetric_noise(labels_of(10, 500), CIFAR10_ASYMMETRIC, 0.4, seed=1)
    expected = np.eye(10)
    for source, target in ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3)):
        expected[source, source], expected[source, target] = 0.6, 0.4
    np.testing.assert_allclose(record.transition, expected, atol=1e-12)
    np.testing.assert_allclose(record.expected_transition, expected, atol=1e-12)
    assert record.achieved_rate == 0.2 and record.requested_rate == 0.4


def test_asymmetric_noise_rounds_by_class() -> None:
    clean = np.repeat([0, 1, 2], [7, 10, 101])
    noisy, record = asymmetric_noise(clean, {0: 2, 2: 4}, 0.3, seed=0)
    assert np.bincount(noisy[clean == 0]).tolist() == [5, 0, 2]  # round(2.1)
    assert (noisy[clean == 1] == 1).all()
    assert np.bincount(noisy[clean == 2]).tolist() == [0, 0, 71, 0, 30]  # round(30.3)
    # Classes are counted up to the highest that either argument names.
    assert len(record.transition) == 5 and record.transition[3] == [0.0] * 5
    assert len(asymmetric_noise(clean, {0: 2}, 0.3, seed=0, num_classes=9)[1].transition) == 9


def test_superclasses_of_cifar100_are_as_published() -> None:
    assert list(CIFAR100_SUPERCLASSES) == PUBLISHED_SUPERCLASSES
    assert np.bincount(CIFAR100_SUPERCLASSES).tolist() == [5] * 20
    names = sorted(fine for group in CIFAR100_SUPERCLASS_NAMES.values() for fine in group)
    assert len(set(names)) == 100 and all(list(group) == sorted(group) for group in CIFAR100_SUPERCLASS_NAMES.values())
    assert [names[index] for index in (0, 47, 55, 72, 95, 99)] == [
        *("apple", "maple_tree", "otter", "seal", "whale", "worm")
    ]


def test_cifar100_map_goes_round_every_superclass() -> None:
    class_map = cifar100_next_in_superclass()
    # beaver -> dolphin -> otter -> seal -> whale -> beaver
    assert [class_map[fine] for fine in (4, 30, 55, 72, 95)] == [30, 55, 72, 95, 4]
    assert sorted(class_map) == sorted(class_map.values()) == list(range(100))
    assert all(CIFAR100_SUPERCLASSES[a] == CIFAR100_SUPERCLASSES[b] and a != b for a, b in class_map.items())
    _, record = asymmetric_noise(labels_of(100, 10), class_map, 0.4, seed=0)
    assert record.achieved_rate == 0.4


@pytest.mark.parametrize(("class_map", "error", "match"), [
    ({}, ValueError, "class_map is empty: name at least one"),
    ({1: 1}, ValueError, "class 1 maps to itself; leave it out"),
    ({0: 7}, ValueError, r"class_map: 0 -> 7 is outside 0\.\.2"),
    ({7: 0}, ValueError, r"class_map: 7 -> 0 is outside 0\.\.2"),
    ({0: -1}, ValueError, "the class that 0 becomes must be at least 0"),
    ({"cat": 1}, TypeError, "each class must be an integer, got 'cat'"),
    ({0: 1.0}, TypeError, "the class that 0 becomes must be an integer, got 1.0"),
    ([1, 0], TypeError, r"class_map must map clean classes to wrong ones, such as \{9: 1, 2: 0\}, got list"),
])  # fmt: skip
def test_asymmetric_noise_names_what_is_wrong_with_the_map(class_map: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        asymmetric_noise([0, 1, 2], class_map, 0.2, seed=0, num_classes=3)


def test_asymmetric_noise_without_noise_needs_no_map() -> None:
    noisy, record = asymmetric_noise([0, 2], {}, 0.0, seed=0)
    assert noisy.tolist() == [0, 2] and record.expected_transition == np.eye(3).tolist()
    with pytest.raises(ValueError, match="labels is empty"):
        asymmetric_noise([], {0: 1}, 0.2, seed=0)
    with pytest.raises(ValueError, match="-1 in row 1"):
        asymmetric_noise([0, -1], {0: 1}, 0.2, seed=0)


def test_pair_flip_noise_goes_to_the_next_class() -> None:
    clean = labels_of(5, 200)
    noisy, record = pair_flip_noise(clean, 5, 0.45, seed=0)
    expected = 0.55 * np.eye(5) + 0.45 * np.roll(np.eye(5), 1, axis=1)
    np.testing.assert_allclose(record.transition, expected, atol=1e-12)
    np.testing.assert_allclose(record.expected_transition, expected, atol=1e-12)
    assert record.kind == "pair_flip" and record.achieved_rate == 0.45
    assert set((noisy - clean).tolist()) == {0, 1, -4}


def test_flip_noise_has_one_target_per_class_that_the_seed_draws() -> None:
    targets = []
    for seed in range(30):
        _, record = flip_noise(labels_of(4, 10), 4, 0.3, seed=seed)
        np.testing.assert_allclose(record.transition, record.expected_transition)
        wrong = np.array(record.transition) - 0.7 * np.eye(4)
        np.testing.assert_allclose(np.sort(wrong, axis=1), [[0, 0, 0, 0.3]] * 4, atol=1e-12)
        targets.append(wrong.argmax(axis=1))
    # Over the seeds, every other class comes up for every class.
    assert all(set(column.tolist()) == set(range(4)) - {own} for own, column in enumerate(np.transpose(targets)))


def test_two_flip_noise_halves_the_rate() -> None:
    seen = set()
    for seed in range(40):
        _, record = two_flip_noise(labels_of(4, 100), 4, 0.4, seed=seed)
        np.testing.assert_allclose(record.transition, record.expected_transition, atol=1e-12)
        wrong = np.array(record.transition) - 0.6 * np.eye(4)
        np.testing.assert_allclose(np.sort(wrong, axis=1), [[0, 0, 0.2, 0.2]] * 4, atol=1e-12)
        seen.add(tuple(np.flatnonzero(wrong[1] > 0.1).tolist()))
    assert seen == {(0, 2), (0, 3), (2, 3)}
    noisy, _ = two_flip_noise(np.zeros(10, dtype=int), 3, 0.3, seed=0)
    assert sorted(np.bincount(noisy, minlength=3).tolist()) == [1, 2, 7]  # three labels: two and one
    with pytest.raises(ValueError, match="at least 3 classes.*use pair_flip"):
        two_flip_noise([0, 1], 2, 0.2, seed=0)
    assert two_flip_noise([0, 1], 2, 0.0, seed=0)[0].tolist() == [0, 1]


def test_hierarchical_noise_stays_within_the_superclass() -> None:
    groups = [0, 1, 0, 1, 0, 2]
    clean = labels_of(6, 3000)
    noisy, record = hierarchical_noise(clean, groups, 0.3, seed=0)
    expected = np.eye(6)
    for own in range(5):
        same = [other for other in range(6) if groups[other] == groups[own] and other != own]
        expected[own, own], expected[own, same] = 0.7, 0.3 / len(same)
    np.testing.assert_allclose(record.expected_transition, expected)
    np.testing.assert_allclose(np.diag(record.transition), np.diag(expected), atol=1e-12)  # exact by class
    np.testing.assert_allclose(record.transition, expected, atol=0.02)
    # Class 5 is alone: it stays clean, and the rate holds in the five others.
    assert (noisy[clean == 5] == 5).all() and record.achieved_rate == pytest.approx(0.3 * 5 / 6)
    named, _ = hierarchical_noise(clean, ["a", "b", "a", "b", "a", "c"], 0.3, seed=0)
    np.testing.assert_array_equal(named, noisy)


def test_hierarchical_noise_on_cifar100() -> None:
    clean = labels_of(100, 20)
    noisy, record = hierarchical_noise(clean, CIFAR100_SUPERCLASSES, 0.4, seed=0)
    coarse = np.array(CIFAR100_SUPERCLASSES)
    assert (coarse[noisy] == coarse[clean]).all() and record.achieved_rate == 0.4
    assert np.count_nonzero(record.expected_transition) == 500


@pytest.mark.parametrize(("groups", "error", "match"), [
    ([0, 1, 2], ValueError, "every class is alone in its superclass"),
    ([], ValueError, r"one superclass for each of the C classes, got shape \(0,\)"),
    ([[0, 0, 0]], ValueError, r"got shape \(1, 3\)"),
    ([0.0, 0.0, 1.0], TypeError, "integers or strings, got an array of float64"),
    ([0, "a", "a"], TypeError, "mixes strings with other values"),
    ([0, 0], ValueError, r"2 in row 2; labels must be in 0\.\.1"),
])  # fmt: skip
def test_hierarchical_noise_names_bad_superclasses(groups: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        hierarchical_noise([0, 1, 2], groups, 0.2, seed=0)


def test_transition_noise_draws_from_the_matrix() -> None:
    matrix = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 0.0]])
    given = matrix.copy()
    clean = labels_of(3, 20_000)
    noisy, record = transition_noise(clean, matrix, seed=0)
    np.testing.assert_array_equal(matrix, given)
    effective = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 1.0]])
    assert record.expected_transition == effective.tolist()
    # 20,000 draws a row: the standard deviation of an entry is at most 0.0035.
    np.testing.assert_allclose(record.transition, effective, atol=0.014)
    assert (np.array(record.transition)[effective == 0] == 0).all()
    assert (noisy[clean == 2] == 2).all()
    assert record.requested_rate == pytest.approx((0.5 + 0.8) / 3)
    assert record.kind == "transition" and record.achieved_rate == pytest.approx(record.requested_rate, abs=0.008)


def test_transition_noise_carries_measured_noise_over() -> None:
    noisy, _ = symmetric_noise(labels_of(4, 500), 5, 0.4, seed=0)
    measured = measure_noise(labels_of(4, 500), noisy, 5)  # class 4 has no clean rows
    clean = labels_of(5, 10_000)
    _, record = transition_noise(clean, measured.transition, seed=1)
    np.testing.assert_allclose(record.transition[:4], measured.transition[:4], atol=0.02)
    assert record.transition[4] == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("matrix", "error", "match"), [
    ([[1.0, 0.0]], ValueError, r"square \(C, C\) matrix, got shape \(1, 2\)"),
    ([], ValueError, "square"),
    ([[0.5, 0.5], [1.5, -0.5]], ValueError, r"entry \[1\]\[1\] is -0.5"),
    ([[float("nan"), 1], [0, 1]], ValueError, r"entry \[0\]\[0\] is nan"),
    ([[0.5, 0.5], [0.5, 0.4]], ValueError, "row 1 sums to 0.9; each row must sum to 1, or be all 0"),
    ([[30, 10], [5, 20]], ValueError, "row 0 sums to 40.*dividing each row by its sum"),
    ([[1.0], [0.0, 1.0]], TypeError, "square matrix of numbers"),
    ([["a", "b"], ["c", "d"]], TypeError, "square matrix of numbers"),
    ([[1.0]], ValueError, r"1 in row 1; labels must be in 0\.\.0"),
])  # fmt: skip
def test_transition_noise_names_a_bad_matrix(matrix: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        transition_noise([0, 1], matrix, seed=0)
