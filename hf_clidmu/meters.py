"""Means of what happens between two logs, kept on the device so that listening never waits for it."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Meters:
    """Running means by name, of the values that are finite."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Take in one value, a scalar; one that is not finite is left out."""
        value = value.detach()
        finite = torch.isfinite(value)
        sum_and_count = torch.stack([torch.where(finite, value, torch.zeros_like(value)), finite.to(value.dtype)])
        self._sums[name] = self._sums[name] + sum_and_count if name in self._sums else sum_and_count

    def take(self, average: Callable[[list[Tensor]], list[Tensor]] | None = None) -> dict[str, float]:
        """The means since the last call, NaN where no value was finite; this is where the device is waited for.

        Args:
            average: of tensors over processes; None for a single one.
        """
        names, sums = list(self._sums), list(self._sums.values())
        self._sums.clear()
        pairs = [pair.tolist() for pair in (sums if average is None else average(sums))]
        return {name: total / count if count else math.nan for name, (total, count) in zip(names, pairs, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Sum and count of every mean, for a checkpoint between two logs."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Continue the means of a checkpoint.

        Raises:
            ValueError: when a value is no sum and count.
        """
        for name, value in state.items():
            if value.shape != (2,) or not value.is_floating_point() or not float(value[1]) >= 0:
                raise ValueError(f"the saved mean '{name}' is {value.tolist()}, where a sum and a count belong")
        self._sums = {name: value.to(device) for name, value in state.items()}
