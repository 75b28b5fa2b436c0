"""Means of what happens between two logs, kept on the device so that listening never waits for it."""

from torch import Tensor


class Meters:
    """Running means by name."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Take in one value, a scalar."""
        total, count = self._totals.get(name, (value.new_zeros(()), 0))
        self._totals[name] = (total + value.detach(), count + 1)

    def take(self) -> dict[str, float]:
        """The means since the last call; this is where the device is waited for."""
        means = {name: float(total) / count for name, (total, count) in self._totals.items()}
        self._totals.clear()
        return means
