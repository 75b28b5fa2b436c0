"""Several annotators, one label: a majority vote, and the shares it came from.

Shapes: A annotators, N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._rows import quote
from .labels import RawLabels
from .noise import UNKNOWN, IntArray


FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Votes:
    """What a vote came to.

    Attributes:
        label: (N,) class with the most votes, -1 where nobody voted.
        shares: (N, C) share of the votes that each class got; a row without votes is zero.
    """

    label: IntArray
    shares: FloatArray


def majority_vote(votes: Sequence[IntArray], num_classes: int, seed: int = 0) -> Votes:
    """Give each row the class that most annotators chose.

    A tie goes to one of the classes in the lead, drawn with equal chances: the lowest one would be favoured over all
    rows. The draw depends on `seed`, on N and on C alone.

    Args:
        votes: One (N,) array of class indices per annotator, -1 where an annotator gave no label.
        num_classes: C.
        seed: Seed of the ties.

    Returns:
        The labels and the shares.

    Raises:
        ValueError: There is no annotator, or the arrays differ in length.
    """
    lengths = {len(vote) for vote in votes}
    if len(lengths) != 1:
        raise ValueError(f"A vote needs annotators that all saw the same rows, got {len(votes)} of {lengths} rows.")
    rows = lengths.pop()
    counts_NC = np.zeros((rows, num_classes), dtype=np.float32)
    for vote_N in votes:
        voted = np.flatnonzero(vote_N != UNKNOWN)
        counts_NC[voted, vote_N[voted]] += 1
    total_N = counts_NC.sum(axis=1)
    # Below one half, the draw never lifts a class over one with more votes.
    draw_NC = np.random.Generator(np.random.PCG64(seed)).random((rows, num_classes), dtype=np.float32) / 2
    label_N = np.where(total_N > 0, np.argmax(counts_NC + draw_NC, axis=1), UNKNOWN).astype(np.int64)
    return Votes(label_N, counts_NC / np.maximum(total_N, 1)[:, None])


def merge_labels(labels: Sequence[RawLabels]) -> RawLabels:
    """Put the labels of several annotators one below the other, so that their classes can be found together.

    Args:
        labels: The labels of each annotator, of one split.

    Returns:
        All of them; those of one annotator unchanged.

    Raises:
        ValueError: The columns name their classes differently.
    """
    first = labels[0]
    if len(labels) == 1:
        return first
    for other in labels[1:]:
        if other.names != first.names:
            raise ValueError(
                f"{first.where} and {other.where} do not name the same classes in the same order "
                f"({quote(first.names or ())} against {quote(other.names or ())}): annotators who vote together need "
                "one datasets.ClassLabel, or plain class names."
            )
    return RawLabels(
        " and ".join(label.where for label in labels),
        [value for label in labels for value in label.values],
        [value for label in labels for value in label.given],
        first.names,
    )
