"""Who judges the classifier after its look-ahead step: objectives of the meta batch.

An objective is a function `(features_MD, logits_MC, labels_M) -> scalar`, differentiable in the logits. `clid` needs
no labels; `cross_entropy` wants a *clean* labelled meta set; `mae` tolerates some wrong labels. Users add their own
with [`register_objective`].

Shape suffixes: M samples of the meta batch, C classes, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.divergence import DEFAULT_TEMPERATURE
from hf_clidmu.divergence import clid as _clid


class ObjectiveFunction(Protocol):
    """The shape of an objective; `labels_M` is None where the meta set has none."""

    def __call__(self, features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Objective:
    """A registered objective: its function, and whether it reads the labels of the meta set.

    Attributes:
        name: the name under which a configuration asks for it.
        function: `(features_MD, logits_MC, labels_M) -> scalar`.
        needs_labels: whether the meta set must have labels.
    """

    name: str
    function: ObjectiveFunction
    needs_labels: bool

    def __call__(self, features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None = None) -> Tensor:
        if self.needs_labels and labels_M is None:
            raise ValueError(
                f"objective '{self.name}' compares predictions with labels, but the meta set has none; "
                "give a meta dataset with a 'labels' column, or use objective='clid', which needs none"
            )
        return self.function(features_MD, logits_MC, labels_M if self.needs_labels else None)


_BUILDERS: dict[str, tuple[Callable[..., ObjectiveFunction], bool]] = {}


def register_objective(name: str, needs_labels: bool = False) -> Callable:
    """Register a builder of an objective, so that `CLIDMUConfig(objective=name)` finds it.

    The decorated function takes the keyword arguments `temperature` and `detach_normaliser` (ignore what is not
    needed by accepting `**_`) and returns `(features_MD, logits_MC, labels_M) -> scalar`.

    Raises:
        ValueError: when the name is taken.
    """

    def add(builder: Callable[..., ObjectiveFunction]) -> Callable[..., ObjectiveFunction]:
        if name in _BUILDERS:
            raise ValueError(f"an objective named '{name}' is already registered")
        _BUILDERS[name] = (builder, needs_labels)
        return builder

    return add


def available_objectives() -> list[str]:
    """Names that [`get_objective`] knows, sorted."""
    return sorted(_BUILDERS)


def get_objective(name: str, temperature: float = DEFAULT_TEMPERATURE, detach_normaliser: bool = True) -> Objective:
    """The objective of that name.

    Args:
        name: one of [`available_objectives`].
        temperature: of CLID's feature graph; other objectives ignore it.
        detach_normaliser: of CLID's prediction graph; other objectives ignore it.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown objective '{name}'; known: {', '.join(available_objectives())}")
    builder, needs_labels = _BUILDERS[name]
    return Objective(name, builder(temperature=temperature, detach_normaliser=detach_normaliser), needs_labels)


@register_objective("clid")
def clid(temperature: float, detach_normaliser: bool) -> ObjectiveFunction:
    """Cross-Layer Information Divergence, see [`hf_clidmu.divergence.clid`]. Reads no labels."""

    def objective(features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None) -> Tensor:
        return _clid(features_MD, logits_MC, temperature, detach_normaliser)

    return objective


@register_objective("cross_entropy", needs_labels=True)
def cross_entropy(**_: object) -> ObjectiveFunction:
    """Mean cross-entropy with the labels of the meta set, which should be clean (Meta-Weight-Net, arXiv 1902.07379)."""

    def objective(features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None) -> Tensor:
        assert labels_M is not None
        return F.cross_entropy(logits_MC, labels_M)

    return objective


@register_objective("mae", needs_labels=True)
def mae(**_: object) -> ObjectiveFunction:
    """Mean absolute error `1 - p_y` with the labels of the meta set, which tolerates wrong ones (arXiv 1712.09482)."""

    def objective(features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None) -> Tensor:
        assert labels_M is not None
        return 1 - torch.softmax(logits_MC, dim=1).gather(1, labels_M[:, None]).mean()

    return objective
