"""Taking rows away: long tails and missing classes. Both return row numbers and leave labels alone.

Shapes: N rows, C classes, M kept rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .record import IntArray, Labels, as_labels, check_integer, generator


def long_tail_rows(labels: Labels, num_classes: int, imbalance: float, seed: int) -> IntArray:
    """Choose rows so that class sizes fall off exponentially: class 0 is the head, class C-1 the tail.

    Class c keeps `floor(n * imbalance ** (-c / (C - 1)))` rows drawn without replacement, where n is the size of the
    largest class: for balanced data the profile of Cui et al., "Class-Balanced Loss Based on Effective Number of
    Samples" (CVPR 2019). A class that has fewer rows than that keeps all it has, and one that has any keeps at least
    one, so on data that are unbalanced already the ratio may differ from `imbalance`.

    Args:
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C.
        imbalance: Size of class 0 over size of class C-1, at least 1; 1 keeps every row of balanced data.
        seed: Seed of the draw, a non-negative integer.

    Returns:
        The (M,) int64 numbers of the rows to keep, in ascending order.

    Raises:
        TypeError: `labels` are not integers, `imbalance` is not a number, `seed` or `num_classes` not an integer.
        ValueError: A label is out of range, `labels` is empty, or `imbalance` is below 1 or not finite.
    """
    check_integer("num_classes", num_classes, minimum=1)
    check_integer("seed", seed, minimum=0)
    if isinstance(imbalance, bool) or not isinstance(imbalance, (int, float, np.integer, np.floating)):
        raise TypeError(f"imbalance must be a number of at least 1, got {imbalance!r}.")
    if not math.isfinite(imbalance) or imbalance < 1:
        raise ValueError(
            f"imbalance must be at least 1, got {imbalance!r}. It is the size of the first class over that of the last."
        )
    labels_N = as_labels("labels", labels, num_classes, allow_unknown=False)
    if labels_N.size == 0:
        raise ValueError("labels is empty: there are no rows to choose from.")
    counts_C = np.bincount(labels_N, minlength=num_classes)
    profile_C = float(imbalance) ** (-np.arange(num_classes) / max(num_classes - 1, 1))
    # 5000 / 100 may come out as 49.99...: the published counts are those of exact arithmetic.
    quota_C = np.floor(counts_C.max() * profile_C + 1e-6).astype(np.int64)
    kept, _ = draw_by_class(labels_N, np.minimum(np.maximum(quota_C, 1), counts_C), generator(seed))
    return np.sort(kept)


def without_classes_rows(labels: Labels, classes: Iterable[int]) -> IntArray:
    """Choose the rows whose label is none of `classes`.

    Args:
        labels: (N,) non-negative integer labels. Not modified.
        classes: The classes to leave out; one that no row has is allowed, so that the same call serves every split.

    Returns:
        The (M,) int64 numbers of the rows to keep, in ascending order.

    Raises:
        TypeError: `labels` or `classes` are not integers.
        ValueError: A label or class is negative, or no row is left.
    """
    left_out = list(classes)
    for value in left_out:
        check_integer("each of classes", value, minimum=0)
    labels_N = as_labels("labels", labels, np.iinfo(np.int64).max, allow_unknown=False)
    kept = np.flatnonzero(~np.isin(labels_N, np.array(left_out, dtype=np.int64)))
    if kept.size == 0:
        raise ValueError(f"No row is left without the classes {left_out}: leave out fewer.")
    return kept.astype(np.int64)


def draw_by_class(labels_N: IntArray, quota_C: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Draw exactly `quota_C[c]` rows of every class c without replacement, with integers and comparisons only.

    Returns:
        The drawn rows, ordered by class, and the place of each among the drawn rows of its class.
    """
    shuffled = rng.permutation(labels_N.size)
    order = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    sorted_labels = labels_N[order]
    counts_C = np.bincount(labels_N, minlength=quota_C.size)
    place = np.arange(labels_N.size) - (np.cumsum(counts_C) - counts_C)[sorted_labels]
    drawn = place < quota_C[sorted_labels]
    return order[drawn], place[drawn]
