"""The record of label noise, counting it, and the checks that all models of noise share.

Shapes: N rows, C classes. A transition matrix has one row per clean class and one column per given (noisy) class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._rows import name_rows


#: The label of a row whose label is not known.
UNKNOWN = -1

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: What a public function takes for labels: (N,) integers.
Labels = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class NoiseRecord:
    """What is known about the wrong labels of a training split.

    Attributes:
        kind: The model of injected noise, a name of `NOISE_KINDS`; `"measured"` for noise counted against clean labels.
        requested_rate: The rate asked for. It is the share of wrong labels, but for `"uniform"`, where it is the share
            of redrawn ones, and for `"asymmetric"` and `"hierarchical"`, where it is the share within the classes
            that can be mistaken. Nothing is asked for when noise is measured: then it equals `achieved_rate`.
        achieved_rate: The share of labels that differ from the clean ones.
        transition: (C, C) nested list; entry [i][j] is the share of rows of clean class i that carry label j. Each
            row sums to 1, except that a class without rows has a row of zeros: nothing was observed.
        seed: The seed of the injection, `None` for measured noise.
        expected_transition: (C, C) nested list, the probabilities from which the model draws; each row sums to 1.
            `None` where the wrong label depends on the sample, and for measured noise.
    """

    kind: str
    requested_rate: float
    achieved_rate: float
    transition: list[list[float]]
    seed: int | None
    expected_transition: list[list[float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain, JSON-serialisable Python values."""
        return asdict(self)


def measure_noise(clean: Labels, noisy: Labels, num_classes: int) -> NoiseRecord:
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
    check_integer("num_classes", num_classes, minimum=1)
    clean_N = as_labels("clean", clean, num_classes, allow_unknown=True)
    noisy_N = as_labels("noisy", noisy, num_classes, allow_unknown=True)
    if clean_N.size != noisy_N.size:
        raise ValueError(
            f"clean and noisy must describe the same rows, but have {clean_N.size} and {noisy_N.size} entries."
        )
    known = (clean_N != UNKNOWN) & (noisy_N != UNKNOWN)
    if not known.any():
        raise ValueError("No row has both a clean and a noisy label: there is nothing to measure.")
    achieved_rate, transition = _count(clean_N[known], noisy_N[known], num_classes)
    return NoiseRecord("measured", achieved_rate, achieved_rate, transition, None)


def record_injection(
    kind: str,
    rate: float,
    clean_N: IntArray,
    noisy_N: IntArray,
    seed: int,
    expected_CC: FloatArray | None,
    classes: int,
) -> tuple[IntArray, NoiseRecord]:
    """Return the noisy labels with the record of what was done to the clean ones."""
    achieved_rate, transition = _count(clean_N, noisy_N, classes)
    expected = None if expected_CC is None else expected_CC.tolist()
    return noisy_N, NoiseRecord(kind, float(rate), achieved_rate, transition, int(seed), expected)


def generator(seed: int) -> np.random.Generator:
    """Return the stream of `seed`; the bit generator is named, because NumPy may change its default."""
    return np.random.Generator(np.random.PCG64(int(seed)))


def start(labels: Labels, num_classes: int, rate: object, seed: int) -> tuple[IntArray, np.random.Generator]:
    """Check what every model of noise takes; return the (N,) clean labels and the stream of the seed."""
    check_integer("num_classes", num_classes, minimum=1)
    check_integer("seed", seed, minimum=0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"rate must be a number in [0, 1), got {rate!r}.")
    if not math.isfinite(rate) or not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate!r}. It is the share of labels to make wrong.")
    if rate > 0 and num_classes < 2:
        raise ValueError("Label noise needs at least 2 classes: with one class there is no other label to give.")
    clean_N = as_labels("labels", labels, num_classes, allow_unknown=False)
    if clean_N.size == 0:
        raise ValueError("labels is empty: there is nothing to add noise to.")
    return clean_N, generator(seed)


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def as_labels(name: str, labels: object, num_classes: int, *, allow_unknown: bool) -> IntArray:
    """Return `labels` as a new (N,) int64 array; raise, naming the row, unless all are in 0..C-1."""
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


def _count(clean_N: IntArray, noisy_N: IntArray, num_classes: int) -> tuple[float, list[list[float]]]:
    counts_CC = np.bincount(clean_N * num_classes + noisy_N, minlength=num_classes**2)
    counts_CC = counts_CC.reshape(num_classes, num_classes)
    totals_C1 = counts_CC.sum(axis=1, keepdims=True)
    transition = counts_CC / np.maximum(totals_C1, 1)
    return float(np.mean(clean_N != noisy_N)), transition.tolist()


def _not_integers(name: str, array: npt.NDArray[Any]) -> str:
    integers = (int, np.integer)
    row = next((i for i, v in enumerate(array.tolist()) if isinstance(v, bool) or not isinstance(v, integers)), 0)
    return (
        f"{name} must be integers, but row {row} holds {array[row].item() if array.dtype != object else array[row]!r} "
        f"(array of {array.dtype}). Map class names to 0..C-1, or convert whole numbers with .astype(int), first."
    )
