"""From whatever a label column holds to class indices 0..C-1, and from arrays of them to stratified samples.

A label column may hold class indices with names (`datasets.ClassLabel`), bare integers (with gaps), whole numbers
stored as floats (what a CSV reader makes of integers beside an empty cell), booleans or class names. Everything else
is refused with the column, the row and the value, since a wrong guess would train on wrong targets without a word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._rows import name_rows, quote
from .noise import UNKNOWN, IntArray


if TYPE_CHECKING:
    from datasets import Dataset

LabelValue = int | str


@dataclass(frozen=True)
class RawLabels:
    """One label column of one split, before it is mapped to class indices.

    Attributes:
        where: The column and split, for messages.
        values: One entry per row: a class name, an integer, or `None` where the label is missing.
        given: The entries as they are stored, for messages.
        names: The names of a `ClassLabel` column, else `None`.
        column: The column, for messages.
    """

    where: str
    values: list[LabelValue | None]
    given: list[Any]
    names: tuple[str, ...] | None
    column: str = ""

    @property
    def missing_rows(self) -> list[int]:
        """Rows without a label."""
        return [row for row, value in enumerate(self.values) if value is None]


def column_values(dataset: Dataset, column: str) -> list[Any]:
    """Return the stored values of a column as Python objects, without decoding or formatting."""
    return dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()


def read_labels(dataset: Dataset, column: str, split: str, names: Sequence[str] | None = None) -> RawLabels:
    """Read a label column and refuse what is no single-label class.

    Args:
        dataset: The split.
        column: Name of an existing column.
        split: Name of the split, for messages.
        names: Class names in index order, for a column of bare numbers; a `ClassLabel` keeps its own.

    Returns:
        The labels; missing ones (`None`, NaN, empty text, -1) are `None` in `values`.

    Raises:
        ValueError: The column holds lists (multi-label), structures, numbers that are not whole, integers below -1 or
            beyond the names of the classes.
    """
    from datasets import ClassLabel, Value

    where = f"column {column!r} of the {split} split"
    feature = dataset.features[column]
    given = column_values(dataset, column)
    dtype = feature.dtype if isinstance(feature, Value) else None
    known = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    if names is not None and dtype is not None and dtype.startswith(("int", "uint", "float")):
        known = tuple(names)
    if known is not None:
        class_values = [
            None if (index := _whole_number(value, where, row)) is None else _class_name(index, known, where, row)
            for row, value in enumerate(given)
        ]
        return RawLabels(where, list(class_values), given, known, column)
    values: list[LabelValue | None]
    if dtype in ("string", "large_string", "string_view"):
        values = [value if value is not None and value.strip() else None for value in given]
    elif dtype == "bool":
        values = [None if value is None else str(value) for value in given]
    elif dtype == "null":
        values = [None] * len(given)
    elif dtype is not None and dtype.startswith(("int", "uint", "float")):
        values = [_whole_number(value, where, row) for row, value in enumerate(given)]
    else:
        row = next((row for row, value in enumerate(given) if value is not None), 0)
        raise ValueError(
            f"{where}, row {row} holds {_short(given[row])}, of type {feature}: one class per row is needed (an "
            "integer, a class name or a ClassLabel). Multi-label targets are not supported: keep one class per row, "
            "or pass another label_column."
        )
    return RawLabels(where, values, given, None, column)


def require_labels(labels: RawLabels) -> None:
    """Check that every row has a label.

    Args:
        labels: The labels of one split.

    Raises:
        ValueError: Rows have none; the message names the column, the rows and the first value.
    """
    rows = labels.missing_rows
    if rows:
        raise ValueError(
            f"{labels.where}, {name_rows(rows)}: no label (the first is {_short(labels.given[rows[0]])}); None, empty "
            'text and -1 mean that there is none. Leave such rows out with missing_labels="drop", or fill them in. If '
            "-1 is one of the classes, renumber the classes from 0."
        )


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a corpus.

    Attributes:
        names: Class names in index order.
        indexed: Whether bare integers are class indices (there was a `ClassLabel`) or stand for their own name.
    """

    names: tuple[str, ...]
    indexed: bool

    def encode(self, labels: RawLabels) -> IntArray:
        """Map labels to class indices.

        Args:
            labels: The labels of one split.

        Returns:
            (N,) class indices, -1 where the label is missing.

        Raises:
            ValueError: A label is none of the classes.
        """
        index = {name: i for i, name in enumerate(self.names)}
        encoded = np.full(len(labels.values), UNKNOWN, dtype=np.int64)
        for row, value in enumerate(labels.values):
            if value is None:
                continue
            if isinstance(value, int) and self.indexed:
                found = value if value < len(self.names) else None
            else:
                found = index.get(str(value))
            if found is None:
                raise ValueError(
                    f"{labels.where}, row {row}: the class {_short(value)} does not occur in the training labels. "
                    f"Known classes: {quote(self.names[:20])}{' ...' if len(self.names) > 20 else ''}. Correct the "
                    "row, or make the column a datasets.ClassLabel that names every class."
                )
            encoded[row] = found
        return encoded


def label_space(given: RawLabels, clean: RawLabels | None, names: Sequence[str] | None = None) -> LabelSpace:
    """Find the classes from the training labels.

    Names of a `ClassLabel` win, whether the given or the clean column has them; then those that are passed. Otherwise
    the classes are the values that occur in either: integers in numerical, names in alphabetical order.

    Args:
        given: The given training labels.
        clean: The clean training labels, when there are any.
        names: Class names in index order, where they are known.

    Returns:
        The classes.

    Raises:
        ValueError: There are fewer than 2 classes.
    """
    values = {value for labels in (given, clean) if labels is not None for value in labels.values if value is not None}
    named = given.names or (clean.names if clean is not None else None)
    if named is not None and given.names is None and not fits(given, named):
        named = None
    named = named or (None if names is None else tuple(names))
    if named is not None:
        space = LabelSpace(named, indexed=True)
    elif all(isinstance(value, int) for value in values):
        space = LabelSpace(tuple(str(value) for value in sorted(values, key=int)), indexed=False)
    else:
        space = LabelSpace(tuple(sorted({str(value) for value in values})), indexed=False)
    if len(space.names) < 2:
        raise ValueError(
            f"{given.where} has {len(space.names)} class ({quote(space.names)}): a classifier needs at least 2. "
            "Check label_column, or whether the rows were filtered or sorted by class before being cut."
        )
    return space


def stratified_sample(labels: IntArray, size: int, seed: int) -> IntArray:
    """Draw rows so that every class keeps its share.

    Args:
        labels: (N,) class indices.
        size: How many rows to draw, at most N.
        seed: Seed of the draw.

    Returns:
        (size,) row numbers in ascending order.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (size / len(labels))
    quota = np.floor(exact).astype(np.int64)
    # Largest remainder; the stable sort makes ties go to the lower class.
    quota[np.argsort(-(exact - quota), kind="stable")[: size - int(quota.sum())]] += 1
    drawn: list[npt.NDArray[np.int64]] = [
        rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def absent_classes(labels: IntArray, names: Sequence[str]) -> list[str]:
    """Return the names of the classes without a row."""
    counts = Counter(labels.tolist())
    return [name for index, name in enumerate(names) if not counts[index]]


def fits(labels: RawLabels, names: Sequence[str]) -> bool:
    """Whether every label there is, is one of the classes `names`, by name or by index."""
    known = set(names)
    return all(
        value is None or (value < len(names) if isinstance(value, int) else value in known) for value in labels.values
    )


def _class_name(index: int, names: tuple[str, ...], where: str, row: int) -> str:
    if index >= len(names):
        raise ValueError(
            f"{where}, row {row}: label {index} is out of range, the ClassLabel has {len(names)} names (0.."
            f"{len(names) - 1}). Correct the row, or name all classes (label_names, or a ClassLabel column)."
        )
    return names[index]


def _whole_number(value: Any, where: str, row: int) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(
            f"{where}, row {row}: {value!r} is not a whole number, so it is no class (a regression target or a "
            "score?). Turn it into classes first, or pass another label_column."
        )
    number = int(value)
    if number < UNKNOWN:
        raise ValueError(
            f"{where}, row {row}: label {number} is negative. Classes are numbered from 0 and {UNKNOWN} means that "
            "there is no label: renumber the classes, or store their names as text."
        )
    return None if number == UNKNOWN else number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
