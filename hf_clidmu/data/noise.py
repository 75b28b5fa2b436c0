"""Label noise: injecting a known amount, and measuring the amount that is there.

Shapes: N rows, C classes. A transition matrix has one row per clean class and one column per given (noisy) class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._rows import name_rows


#: The label of a row whose label is not known.
UNKNOWN = -1

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NoiseRecord:
    """What is known about the wrong labels of a training split.

    Attributes:
        kind: `"symmetric"` for injected symmetric noise, `"measured"` for noise counted against clean labels.
        requested_rate: The share of wrong labels asked for. Nothing is asked for when noise is measured: then it
            equals `achieved_rate`.
        achieved_rate: The share of labels that differ from the clean ones.
        transition: (C, C) nested list; entry [i][j] is the share of rows of clean class i that carry label j. Each
            row sums to 1, except that a class without rows has a row of zeros: nothing was observed.
        seed: The seed of the injection, `None` for measured noise.
    """

    kind: str
    requested_rate: float
    achieved_rate: float
    transition: list[list[float]]
    seed: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain, JSON-serialisable Python values."""
        return asdict(self)


def symmetric_noise(
    labels: Sequence[int] | npt.NDArray[np.integer[Any]], num_classes: int, rate: float, seed: int
) -> tuple[IntArray, NoiseRecord]:
    """Replace a fixed share of labels by another class, drawn uniformly.

    Exactly `round(rate * N)` labels change, and each becomes one of the C - 1 other classes: the rate is the share of
    wrong labels, not the share of redrawn ones. The draw uses NumPy's PCG64, whose stream is the same on every
    platform.

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
    _check_integer("num_classes", num_classes, minimum=1)
    _check_integer("seed", seed, minimum=0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"rate must be a number in [0, 1), got {rate!r}.")
    if not math.isfinite(rate) or not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate!r}. It is the share of labels to make wrong.")
    if rate > 0 and num_classes < 2:
        raise ValueError("Label noise needs at least 2 classes: with one class there is no other label to give.")
    clean_N = _as_labels("labels", labels, num_classes, allow_unknown=False)
    if clean_N.size == 0:
        raise ValueError("labels is empty: there is nothing to add noise to.")

    num_flips = round(float(rate) * clean_N.size)
    rng = np.random.Generator(np.random.PCG64(int(seed)))
    flipped = rng.choice(clean_N.size, size=num_flips, replace=False, shuffle=False)
    # A shift of 1..C-1 modulo C reaches every class but the own one, each with the same probability.
    shifts = rng.integers(1, max(num_classes, 2), size=num_flips)
    noisy_N = clean_N.copy()
    noisy_N[flipped] = (clean_N[flipped] + shifts) % num_classes

    achieved_rate, transition = _count(clean_N, noisy_N, num_classes)
    return noisy_N, NoiseRecord("symmetric", float(rate), achieved_rate, transition, int(seed))


def measure_noise(
    clean: Sequence[int] | npt.NDArray[np.integer[Any]],
    noisy: Sequence[int] | npt.NDArray[np.integer[Any]],
    num_classes: int,
) -> NoiseRecord:
    """Count how given labels differ from clean ones.

    Args:
        clean: (N,) clean labels in 0..C-1, or -1 where unknown.
        noisy: (N,) given labels in 0..C-1, or -1 where missing. Rows with -1 in either array are ignored.
        num_classes: C.

    Returns:
        A record of kind `"measured"`.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The arrays differ in length, a label is out of range (the message names the row), or no row has
            both labels.
    """
    _check_integer("num_classes", num_classes, minimum=1)
    clean_N = _as_labels("clean", clean, num_classes, allow_unknown=True)
    noisy_N = _as_labels("noisy", noisy, num_classes, allow_unknown=True)
    if clean_N.size != noisy_N.size:
        raise ValueError(
            f"clean and noisy must describe the same rows, but have {clean_N.size} and {noisy_N.size} entries."
        )
    known = (clean_N != UNKNOWN) & (noisy_N != UNKNOWN)
    if not known.any():
        raise ValueError("No row has both a clean and a noisy label: there is nothing to measure.")
    achieved_rate, transition = _count(clean_N[known], noisy_N[known], num_classes)
    return NoiseRecord("measured", achieved_rate, achieved_rate, transition, None)


def _count(clean_N: IntArray, noisy_N: IntArray, num_classes: int) -> tuple[float, list[list[float]]]:
    counts_CC = np.bincount(clean_N * num_classes + noisy_N, minlength=num_classes**2)
    counts_CC = counts_CC.reshape(num_classes, num_classes)
    totals_C1 = counts_CC.sum(axis=1, keepdims=True)
    transition = counts_CC / np.maximum(totals_C1, 1)
    return float(np.mean(clean_N != noisy_N)), transition.tolist()


def _check_integer(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def _as_labels(name: str, labels: object, num_classes: int, *, allow_unknown: bool) -> IntArray:
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"{name} must be a flat sequence of integers, but its rows differ in length.") from error
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional (one label per row), got shape {array.shape}.")
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(_not_integers(name, array))
    low = UNKNOWN if allow_unknown else 0
    bad = np.flatnonzero((array < low) | (array >= num_classes))
    if bad.size:
        row = int(bad[0])
        unknown = f" ({UNKNOWN} means unknown)" if allow_unknown else ""
        raise ValueError(
            f"{name}: {name_rows(bad.tolist())}: label out of range, the first is {array[row]} in row {row}; labels "
            f"must be in 0..{num_classes - 1}{unknown}."
        )
    return array.astype(np.int64)


def _not_integers(name: str, array: npt.NDArray[Any]) -> str:
    integers = (int, np.integer)
    row = next((i for i, v in enumerate(array.tolist()) if isinstance(v, bool) or not isinstance(v, integers)), 0)
    return (
        f"{name} must be integers, but row {row} holds {array[row].item() if array.dtype != object else array[row]!r} "
        f"(array of {array.dtype}). Map class names to 0..C-1, or convert whole numbers with .astype(int), first."
    )
