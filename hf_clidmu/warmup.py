"""How long plain cross-entropy trains alone: for so many steps, or until CLID says that it has begun to memorise.

A network with random weights has no features yet that could judge a label. While it learns them, CLID of samples that
it does not train on falls; once wrong labels are memorised, it rises.
"""

import math
from collections.abc import Mapping
from typing import Any

from hf_clidmu.state import whole_number


#: Evaluations in a mean: at a high learning rate, single ones go up and down.
_WINDOW = 3
#: So many means in a row without a new lowest one end the warm-up.
_PATIENCE = 4
#: A run with fewer evaluations would hardly hear of a turn before its end.
FEWEST_EVALUATIONS = 10


class WarmUp:
    """Whether the weighting takes part yet.

    Args:
        steps: optimiser steps of plain cross-entropy; None waits for CLID to turn ([`see`]).
    """

    def __init__(self, steps: int | None = 0):
        self.steps = steps
        self._waits = steps is None
        self.readings: list[float] = []

    def is_over(self, step: int) -> bool:
        """Whether the weighting takes part in this optimiser step."""
        return self.steps is not None and step >= self.steps

    def has_turned(self, step: int) -> bool:
        """Whether CLID ended the warm-up before this optimiser step."""
        return self._waits and self.is_over(step)

    def see(self, step: int, clid: float) -> bool:
        """Hear of an evaluation; returns True when the warm-up ends with it, and False ever after."""
        if self.steps is not None or not math.isfinite(clid):
            return False
        self.readings.append(clid)
        means = [sum(self.readings[end - _WINDOW : end]) / _WINDOW for end in range(_WINDOW, len(self.readings) + 1)]
        if not means or len(means) - 1 - means.index(min(means)) < _PATIENCE:
            return False
        self.steps = step
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"readings": self.readings, "steps": self.steps}

    def load(self, values: Any) -> None:
        """Go on from [`state`]; a fixed number of steps stays what the settings say.

        Raises:
            ValueError: when it is none.
        """
        if self.steps is not None:
            return
        if not isinstance(values, Mapping) or not isinstance(readings := values.get("readings"), list):
            raise ValueError("the checkpoint does not say how far the warm-up has come")
        if not all(isinstance(value, float | int) and not isinstance(value, bool) for value in readings):
            raise ValueError("the readings of the warm-up must be numbers")
        self.readings = [float(value) for value in readings]
        self.steps = None if values.get("steps") is None else whole_number(values, "steps")
