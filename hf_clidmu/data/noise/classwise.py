"""Noise in which the wrong label depends on the class alone.

Shapes: N rows, C classes. A transition matrix has one row per clean class and one column per given (noisy) class.
All draws are integers, and so exact; only `transition_noise` compares a uniform number with probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .record import FloatArray, IntArray, Labels, NoiseRecord, as_labels, check_integer, record_injection, start
from .rows import draw_by_class


#: How far a row of probabilities may be from a sum of 1.
ROW_SUM_TOLERANCE = 1e-6


def symmetric_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> tuple[IntArray, NoiseRecord]:
    """Replace a fixed share of labels by another class, drawn uniformly.

    Exactly `round(rate * N)` labels change, and each becomes one of the C - 1 other classes: the rate is the share of
    wrong labels, not the share of redrawn ones (that is `uniform_noise`). The draw uses NumPy's PCG64, whose stream is
    the same on every platform.

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0.
        rate: Share of labels to make wrong, in [0, 1).
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError: `labels` are not integers, or `seed` or `num_classes` is not one.
        ValueError: A label is outside 0..C-1 (the message names the row), `labels` is empty or not one-dimensional,
            `rate` is outside [0, 1), `seed` is negative, or there is no other class to draw from.
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    num_flips = round(float(rate) * clean_N.size)
    flipped = rng.choice(clean_N.size, size=num_flips, replace=False, shuffle=False)
    # A shift of 1..C-1 modulo C reaches every class but the own one, each with the same probability.
    shifts = rng.integers(1, max(num_classes, 2), size=num_flips)
    noisy_N = clean_N.copy()
    noisy_N[flipped] = (clean_N[flipped] + shifts) % num_classes

    expected_CC = np.full((num_classes, num_classes), float(rate) / max(num_classes - 1, 1))
    np.fill_diagonal(expected_CC, 1 - float(rate))
    return record_injection("symmetric", rate, clean_N, noisy_N, seed, expected_CC, num_classes)


def uniform_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> tuple[IntArray, NoiseRecord]:
    """Redraw a fixed share of labels uniformly from all classes, the true one included.

    Exactly `round(rate * N)` labels are redrawn, and one in C of these comes out as it was: the share of wrong labels
    is `rate * (1 - 1 / C)` on average. Many reference codes call this symmetric noise, among them those of Meta-Weight-
    Net (Shu et al., NeurIPS 2019) and CLID-MU; compare rates with care.

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0.
        rate: Share of labels to redraw, in [0, 1).
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done; its `requested_rate` is the share redrawn.

    Raises:
        TypeError, ValueError: As `symmetric_noise`.
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    num_redrawn = round(float(rate) * clean_N.size)
    redrawn = rng.choice(clean_N.size, size=num_redrawn, replace=False, shuffle=False)
    noisy_N = clean_N.copy()
    noisy_N[redrawn] = rng.integers(0, num_classes, size=num_redrawn)

    expected_CC = (1 - float(rate)) * np.eye(num_classes) + float(rate) / num_classes
    return record_injection("uniform", rate, clean_N, noisy_N, seed, expected_CC, num_classes)


def asymmetric_noise(
    labels: Labels, class_map: Mapping[int, int], rate: float, seed: int, *, num_classes: int | None = None
) -> tuple[IntArray, NoiseRecord]:
    """Turn a fixed share of some classes into the class that each is mistaken for.

    Of every class c in `class_map`, with n_c rows, exactly `round(rate * n_c)` become `class_map[c]`; the other classes
    stay clean. As in the papers, the rate holds within the mapped classes: at 0.4 with `CIFAR10_ASYMMETRIC`, which maps
    5 of 10 classes, 20 % of all labels are wrong. Source: Patrini et al., "Making Deep Neural Networks
    Robust to Label Noise" (CVPR 2017).

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        class_map: Clean class to wrong class, such as `CIFAR10_ASYMMETRIC` or `cifar100_next_in_superclass()`.
        rate: Share of the labels of each mapped class to make wrong, in [0, 1).
        seed: Seed of the draw, a non-negative integer.
        num_classes: C. By default one more than the highest class in `labels` and `class_map`.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError: `labels` or the classes of the map are not integers, or the map is not a mapping.
        ValueError: As `symmetric_noise`; or the map is empty while `rate` is above 0, maps a class to itself, or names
            a class outside 0..C-1.
    """
    _check_class_map(class_map)
    if num_classes is None:
        highest = as_labels("labels", labels, np.iinfo(np.int64).max, allow_unknown=False).max(initial=0)
        num_classes = 1 + max([int(highest), *class_map.keys(), *class_map.values()])
    clean_N, rng = start(labels, num_classes, rate, seed)
    for source, target in class_map.items():
        if max(source, target) >= num_classes:
            raise ValueError(f"class_map: {source} -> {target} is outside 0..{num_classes - 1}, the classes there are.")
    if not class_map and rate > 0:
        raise ValueError("class_map is empty: name at least one class and the class it is mistaken for.")
    target_C = np.arange(num_classes)
    target_C[list(class_map.keys())] = list(class_map.values())
    return _move("asymmetric", clean_N, target_C, rate, seed, rng)


def pair_flip_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> tuple[IntArray, NoiseRecord]:
    """Turn a fixed share of every class c into class (c + 1) mod C.

    Of every class exactly `round(rate * n_c)` labels change. Above 0.5 the wrong label is the more frequent one.
    Source: Han et al., "Co-teaching" (NeurIPS 2018), pair flipping.

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0.
        rate: Share of the labels of each class to make wrong, in [0, 1).
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError, ValueError: As `symmetric_noise`.
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    target_C = (np.arange(num_classes) + 1) % num_classes
    return _move("pair_flip", clean_N, target_C, rate, seed, rng)


def flip_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> tuple[IntArray, NoiseRecord]:
    """Turn a fixed share of every class into one other class, drawn once per class.

    The classes come from the seed too, and two classes may share a target; `expected_transition` of the record shows
    them. Of every class exactly `round(rate * n_c)` labels change. Source: "flip" noise of Meta-Weight-Net (Shu et al.,
    NeurIPS 2019).

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0.
        rate: Share of the labels of each class to make wrong, in [0, 1).
        seed: Seed of the classes and of the rows, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError, ValueError: As `symmetric_noise`.
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    shift_C = rng.integers(1, max(num_classes, 2), size=num_classes)
    target_C = (np.arange(num_classes) + shift_C) % num_classes
    return _move("flip", clean_N, target_C, rate, seed, rng)


def two_flip_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> tuple[IntArray, NoiseRecord]:
    """Turn a fixed share of every class into two other classes, drawn once per class, half each.

    Of every class exactly `round(rate * n_c)` labels change; when that is odd, the first of the two classes gets the
    one more. `expected_transition` of the record shows the classes. Source: "flip2" noise of Meta-Weight-Net (Shu et
    al., NeurIPS 2019).

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 3 when `rate` is above 0.
        rate: Share of the labels of each class to make wrong, in [0, 1).
        seed: Seed of the classes and of the rows, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError, ValueError: As `symmetric_noise`; also with fewer than 3 classes.
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    if rate > 0 and num_classes < 3:
        raise ValueError("two_flip noise needs at least 3 classes: each has two others. With 2 classes use pair_flip.")
    own_C = np.arange(num_classes)
    shift_C = rng.integers(1, max(num_classes, 2), size=num_classes)
    other_C = rng.integers(1, max(num_classes - 1, 2), size=num_classes)
    other_C += other_C >= shift_C  # skips the first target, and so draws the second uniformly from what is left
    first_C, second_C = (own_C + shift_C) % num_classes, (own_C + other_C) % num_classes

    quota_C = _quota(clean_N, num_classes, rate)
    rows, place = draw_by_class(clean_N, quota_C, rng)
    source = clean_N[rows]
    noisy_N = clean_N.copy()
    noisy_N[rows] = np.where(place < (quota_C[source] + 1) // 2, first_C[source], second_C[source])

    expected_CC = (1 - float(rate)) * np.eye(num_classes)
    expected_CC[own_C, first_C] += float(rate) / 2
    expected_CC[own_C, second_C] += float(rate) / 2
    return record_injection("two_flip", rate, clean_N, noisy_N, seed, expected_CC, num_classes)


def hierarchical_noise(
    labels: Labels, superclass_of_class: Sequence[int] | Sequence[str], rate: float, seed: int
) -> tuple[IntArray, NoiseRecord]:
    """Turn a fixed share of every class into the other classes of its superclass, drawn uniformly.

    Of every class exactly `round(rate * n_c)` labels change. A class alone in its superclass stays clean, so the rate
    holds within the other classes; `expected_transition` of the record shows which these are. Source: "hierarchical"
    noise on CIFAR-100 of Hendrycks et al., "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe
    Noise" (NeurIPS 2018).

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        superclass_of_class: (C,) the number or name of the superclass of each class, such as `CIFAR100_SUPERCLASSES`.
        rate: Share of the labels of each class to make wrong, in [0, 1).
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError: `labels` are not integers, or the superclasses are neither all integers nor all strings.
        ValueError: As `symmetric_noise`; or the superclasses are empty, not one-dimensional, or all of one class while
            `rate` is above 0.
    """
    group_C = _as_groups(superclass_of_class)
    num_classes = group_C.size
    clean_N, rng = start(labels, num_classes, rate, seed)
    members_C = np.argsort(group_C, kind="stable")  # the classes, superclass by superclass
    sizes = np.bincount(group_C)
    starts = np.cumsum(sizes) - sizes
    place_C = np.empty(num_classes, dtype=np.int64)
    place_C[members_C] = np.arange(num_classes) - starts[group_C[members_C]]
    size_C = sizes[group_C]
    if rate > 0 and size_C.max() < 2:
        raise ValueError(
            "superclass_of_class: every class is alone in its superclass, so none can be mistaken for another of it."
        )

    rows, _ = draw_by_class(clean_N, _quota(clean_N, num_classes, rate, size_C > 1), rng)
    source = clean_N[rows]
    shifts = rng.integers(1, size_C[source])
    noisy_N = clean_N.copy()
    noisy_N[rows] = members_C[starts[group_C[source]] + (place_C[source] + shifts) % size_C[source]]

    expected_CC = (group_C[:, None] == group_C[None, :]) * (float(rate) / np.maximum(size_C - 1, 1))[:, None]
    np.fill_diagonal(expected_CC, np.where(size_C > 1, 1 - float(rate), 1.0))
    return record_injection("hierarchical", rate, clean_N, noisy_N, seed, expected_CC, num_classes)


def transition_noise(
    labels: Labels, transition_CC: Sequence[Sequence[float]] | npt.NDArray[np.floating], seed: int
) -> tuple[IntArray, NoiseRecord]:
    """Draw every label from the row of its class in a given matrix.

    With the `transition` that `measure_noise` counts between clean and given labels, this puts the class confusions of
    real annotators onto other data. Labels are drawn independently: the achieved matrix differs by sampling error.

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        transition_CC: (C, C) probabilities; entry [i][j] is that of label j given class i. Rows sum to 1 (to 1e-6). A
            row of zeros, which is what a class without rows measures, leaves that class as it is.
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done; its `requested_rate` is the share of wrong labels
        to be expected for these labels.

    Raises:
        TypeError: `labels` are not integers, or the matrix is not of numbers.
        ValueError: As `symmetric_noise`; or the matrix is not square, holds a negative or non-finite entry, or a row
            that sums to neither 1 nor 0 (the message names it).
    """
    matrix_CC = _as_transition(transition_CC)
    num_classes = len(matrix_CC)
    clean_N, rng = start(labels, num_classes, 0, seed)
    uniform_N = rng.random(clean_N.size)
    order = np.argsort(clean_N, kind="stable")
    noisy_N = np.empty_like(clean_N)
    for label, rows in enumerate(np.split(order, np.cumsum(np.bincount(clean_N, minlength=num_classes))[:-1])):
        cumulative_C = np.cumsum(matrix_CC[label])
        # The first entry above the threshold: a class of probability 0 adds nothing, and so is never the first.
        noisy_N[rows] = np.searchsorted(cumulative_C, uniform_N[rows] * cumulative_C[-1], side="right")
    requested = float(np.mean(1 - matrix_CC.diagonal()[clean_N]))
    return record_injection("transition", requested, clean_N, noisy_N, seed, matrix_CC, num_classes)


def _move(
    kind: str, clean_N: IntArray, target_C: IntArray, rate: float, seed: int, rng: np.random.Generator
) -> tuple[IntArray, NoiseRecord]:
    """Turn `round(rate * n_c)` rows of every class c into `target_C[c]`; a class that is its own target stays."""
    classes = target_C.size
    own_C = np.arange(classes)
    moved_C = target_C != own_C
    rows, _ = draw_by_class(clean_N, _quota(clean_N, classes, rate, moved_C), rng)
    noisy_N = clean_N.copy()
    noisy_N[rows] = target_C[clean_N[rows]]
    share_C = np.where(moved_C, float(rate), 0.0)
    expected_CC = np.diag(1 - share_C)
    expected_CC[own_C, target_C] += share_C
    return record_injection(kind, rate, clean_N, noisy_N, seed, expected_CC, classes)


def _quota(clean_N: IntArray, classes: int, rate: float, moved_C: npt.NDArray[np.bool_] | None = None) -> IntArray:
    quota_C = np.rint(float(rate) * np.bincount(clean_N, minlength=classes)).astype(np.int64)
    return quota_C if moved_C is None else np.where(moved_C, quota_C, 0)


def _check_class_map(class_map: object) -> None:
    if not isinstance(class_map, Mapping):
        raise TypeError(
            f"class_map must map clean classes to wrong ones, such as {{9: 1, 2: 0}}, got {type(class_map).__name__}."
        )
    for source, target in class_map.items():
        check_integer("class_map: each class", source, minimum=0)
        check_integer(f"class_map: the class that {source} becomes", target, minimum=0)
        if source == target:
            raise ValueError(f"class_map: class {source} maps to itself; leave it out, and it stays clean.")


def _as_groups(superclass_of_class: object) -> IntArray:
    groups = np.asarray(superclass_of_class)
    if groups.ndim != 1 or groups.size == 0:
        raise ValueError(
            f"superclass_of_class must hold one superclass for each of the C classes, got shape {groups.shape}."
        )
    if groups.dtype.kind not in "iuU":
        raise TypeError(f"superclass_of_class must be integers or strings, got an array of {groups.dtype}.")
    # NumPy turns [0, "a"] into strings without a word.
    if groups.dtype.kind == "U" and not all(isinstance(group, str) for group in superclass_of_class):  # type: ignore[attr-defined]
        raise TypeError("superclass_of_class mixes strings with other values: use all integers or all strings.")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _as_transition(transition_CC: object) -> FloatArray:
    try:
        matrix_CC = np.array(transition_CC, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"transition must be a square matrix of numbers: {error}") from error
    if matrix_CC.ndim != 2 or matrix_CC.shape[0] != matrix_CC.shape[1] or matrix_CC.size == 0:
        raise ValueError(f"transition must be a square (C, C) matrix, got shape {matrix_CC.shape}.")
    bad = np.argwhere(~np.isfinite(matrix_CC) | (matrix_CC < 0))
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"transition: entry [{row}][{column}] is {matrix_CC[row, column]}; probabilities are finite and not "
            "negative."
        )
    sums_C = matrix_CC.sum(axis=1)
    empty_C = ~matrix_CC.any(axis=1)
    wrong = np.flatnonzero(~empty_C & (np.abs(sums_C - 1) > ROW_SUM_TOLERANCE))
    if wrong.size:
        raise ValueError(
            f"transition: row {wrong[0]} sums to {sums_C[wrong[0]]:.6g}; each row must sum to 1, or be all 0 to leave "
            "its class as it is. Counts become shares by dividing each row by its sum."
        )
    matrix_CC[empty_C, empty_C] = 1.0
    return matrix_CC
