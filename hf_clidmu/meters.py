"""Means of what happens between two logs, kept on the device so that listening never waits for it."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


#: So many values of one name are kept as they are. Adding them up at once costs a step nothing; a run that never logs
#: must not keep them all.
_KEPT = 1024
_VALUES = "values of "


class Meters:
    """Running means by name, of the values that are finite."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._values: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Take in one value, a scalar; one that is not finite is left out."""
        values = self._values.setdefault(name, [])
        values.append(value.detach())
        if len(values) >= _KEPT:
            self._add_up(name)

    def _add_up(self, name: str) -> None:
        values_K = torch.stack(self._values.pop(name))
        finite_K = torch.isfinite(values_K)
        kept_K = torch.where(finite_K, values_K, torch.zeros_like(values_K))
        sum_and_count = torch.stack([kept_K.sum(), finite_K.sum().to(kept_K.dtype)])
        self._sums[name] = self._sums[name] + sum_and_count if name in self._sums else sum_and_count

    def take(self, average: Callable[[list[Tensor]], list[Tensor]] | None = None) -> dict[str, float]:
        """The means since the last call, NaN where no value was finite; this is where the device is waited for.

        Args:
            average: of tensors over processes; None for a single one.
        """
        for name in list(self._values):
            self._add_up(name)
        names, sums = list(self._sums), list(self._sums.values())
        self._sums.clear()
        pairs = [pair.tolist() for pair in (sums if average is None else average(sums))]
        return {name: total / count if count else math.nan for name, (total, count) in zip(names, pairs, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Sum and count of every mean and the values not yet in it, for a checkpoint between two logs.

        They are kept apart, so that a resumed run adds up in the same order, to the same bits.
        """
        return {**self._sums, **{_VALUES + name: torch.stack(values) for name, values in self._values.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Continue the means of a checkpoint.

        Raises:
            ValueError: when an entry is no sum and count, or no list of values.
        """
        sums, values = {}, {}
        for name, value in state.items():
            if name.startswith(_VALUES) and value.ndim == 1 and value.is_floating_point():
                values[name.removeprefix(_VALUES)] = list(value.to(device))
            elif value.shape == (2,) and value.is_floating_point() and float(value[1]) >= 0:
                sums[name] = value.to(device)
            else:
                raise ValueError(f"the saved mean '{name}' is {value.tolist()}, where a sum and a count belong")
        self._sums, self._values = sums, values
