"""How long plain cross-entropy trains alone: for so many steps, or until CLID says that it has begun to memorise.

A network with random weights has no features yet that could judge a label. While it learns them, CLID of samples that
it does not train on falls; once wrong labels are memorised, it rises.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_clidmu.judge import is_higher
from hf_clidmu.state import real_numbers, whole_number


#: Evaluations in a mean: at a high learning rate, single ones go up and down.
_WINDOW = 3
#: So many means in a row without a new lowest one end the warm-up, if the last lies above the lowest by so many
#: standard errors: where few labels are wrong, CLID stays level while the network still learns.
_PATIENCE, _ERRORS = 4, 3.0
#: A run with fewer evaluations would hardly hear of a turn before its end.
FEWEST_EVALUATIONS = 10


class WarmUp:
    """Whether the weighting takes part yet.

    Args:
        steps: optimiser steps of plain cross-entropy; None waits for CLID to turn ([`see`]).
        share: a rise of CLID by less than this share of what it has fallen by since the first reading is no turn.
    """

    def __init__(self, steps: int | None = 0, share: float = 0.0):
        self.steps, self._share = steps, share
        self._waits = steps is None
        self.readings: list[tuple[float, ...]] = []

    def is_over(self, step: int) -> bool:
        """Whether the weighting takes part in this optimiser step."""
        return self.steps is not None and step >= self.steps

    def has_turned(self, step: int) -> bool:
        """Whether CLID ended the warm-up before this optimiser step."""
        return self._waits and self.is_over(step)

    def see(self, step: int, clid_K: Sequence[float]) -> bool:
        """Hear of an evaluation; returns True when the warm-up ends with it, and False ever after.

        Args:
            step: optimiser steps taken.
            clid_K: CLID, chunk by chunk of the judge set.
        """
        if self.steps is not None or not all(map(math.isfinite, clid_K)):
            return False
        self.readings.append(tuple(clid_K))
        ends = range(_WINDOW, len(self.readings) + 1)
        windows = [_mean(self.readings[end - _WINDOW : end]) for end in ends]
        means = [fmean(window) for window in windows]
        lowest = means.index(min(means)) if means else 0
        if len(means) - 1 - lowest < _PATIENCE:
            return False
        margin = self._share * (fmean(self.readings[0]) - means[lowest])
        if not is_higher(windows[-1], windows[lowest], _ERRORS, margin):
            return False
        self.steps = step
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"readings": [list(reading) for reading in self.readings], "steps": self.steps}

    def load(self, values: Any) -> None:
        """Go on from [`state`]; a fixed number of steps stays what the settings say.

        Raises:
            ValueError: when it is none.
        """
        if self.steps is not None:
            return
        if not isinstance(values, Mapping) or not isinstance(readings := values.get("readings"), list):
            raise ValueError("the checkpoint does not say how far the warm-up has come")
        found = [real_numbers({"reading": reading}, "reading") for reading in readings]
        if len({len(reading) for reading in found}) > 1:
            raise ValueError("the readings of the warm-up must be of the same chunks")
        self.readings = found
        self.steps = None if values.get("steps") is None else whole_number(values, "steps")


def _mean(readings: Sequence[Sequence[float]]) -> list[float]:
    """Of several readings, chunk by chunk."""
    return [sum(chunk) / len(readings) for chunk in zip(*readings, strict=True)]
