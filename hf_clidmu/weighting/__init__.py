"""Who says how much a given label counts: the weightings, and the registry that finds them by name."""

from collections.abc import Callable

from hf_clidmu.weighting.base import SampleWeighting, Weighting, WeightingBatch
from hf_clidmu.weighting.context import ContextNet, label_margin
from hf_clidmu.weighting.free import FreeWeighting
from hf_clidmu.weighting.losses import generalized_cross_entropy
from hf_clidmu.weighting.robust import EarlyLearning, GeneralizedCrossEntropy, RobustLoss, SymmetricCrossEntropy
from hf_clidmu.weighting.vri import VRI
from hf_clidmu.weighting.wnet import WNet


WeightingBuilder = Callable[..., Weighting]
_BUILDERS: dict[str, WeightingBuilder] = {}


def register_weighting(name: str) -> Callable[[WeightingBuilder], WeightingBuilder]:
    """Register a builder, so that `CLIDMUConfig(weighting=name)` finds it.

    The decorated function takes `num_labels`, `feature_size` and `kl_weight`, and returns a [`Weighting`].

    Raises:
        ValueError: when the name is taken, or is 'none', which means no weighting at all.
    """

    def add(builder: WeightingBuilder) -> WeightingBuilder:
        if name in _BUILDERS or name == "none":
            raise ValueError(f"a weighting named '{name}' is already registered")
        _BUILDERS[name] = builder
        return builder

    return add


def available_weightings() -> list[str]:
    """Names that a configuration may ask for, sorted; 'none' is plain cross-entropy."""
    return sorted([*_BUILDERS, "none"])


def get_weighting(
    name: str, num_labels: int, feature_size: int, kl_weight: float = 0.0, loss_q: float = 0.0
) -> Weighting:
    """A fresh weighting of that name.

    Args:
        name: one of [`available_weightings`].
        num_labels: C.
        feature_size: D.
        kl_weight: of VRI's KL term.
        loss_q: exponent of the loss that a weighting that learns builds on; fixed rules have losses of their own.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown weighting '{name}'; known: {', '.join(available_weightings())}")
    weighting = _BUILDERS[name](num_labels=num_labels, feature_size=feature_size, kl_weight=kl_weight)
    if weighting.learns:
        weighting.loss_q = loss_q
    return weighting


@register_weighting("vri")
def _vri(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return VRI(num_labels, feature_size, kl_weight=kl_weight)


@register_weighting("wnet")
def _wnet(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return WNet()


@register_weighting("context")
def _context(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return ContextNet(num_labels, feature_size)


@register_weighting("free")
def _free(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return FreeWeighting()


@register_weighting("gce")
def _gce(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return GeneralizedCrossEntropy()


@register_weighting("sce")
def _sce(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return SymmetricCrossEntropy()


@register_weighting("elr")
def _elr(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
    return EarlyLearning(num_labels)


__all__ = [
    "VRI",
    "ContextNet",
    "EarlyLearning",
    "FreeWeighting",
    "GeneralizedCrossEntropy",
    "RobustLoss",
    "SampleWeighting",
    "SymmetricCrossEntropy",
    "WNet",
    "Weighting",
    "WeightingBatch",
    "available_weightings",
    "generalized_cross_entropy",
    "get_weighting",
    "label_margin",
    "register_weighting",
]
