"""All models of noise by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from .classwise import (
    asymmetric_noise,
    flip_noise,
    hierarchical_noise,
    pair_flip_noise,
    symmetric_noise,
    transition_noise,
    two_flip_noise,
    uniform_noise,
)
from .record import IntArray, Labels, NoiseRecord, check_integer
from .samplewise import feature_dependent_noise, instance_dependent_noise


_BY_RATE = {
    "symmetric": symmetric_noise,
    "uniform": uniform_noise,
    "pair_flip": pair_flip_noise,
    "flip": flip_noise,
    "two_flip": two_flip_noise,
}
_BY_FEATURES = {"instance": instance_dependent_noise, "feature": feature_dependent_noise}

#: The names that `inject_noise` knows.
NOISE_KINDS: tuple[str, ...] = (
    "symmetric",
    "uniform",
    "asymmetric",
    "pair_flip",
    "flip",
    "two_flip",
    "hierarchical",
    "instance",
    "feature",
    "transition",
)

_NEEDS = {
    "asymmetric": (
        "class_map",
        "which class is mistaken for which, such as {9: 1, 2: 0}; published ones are CIFAR10_ASYMMETRIC and "
        "cifar100_next_in_superclass()",
    ),
    "hierarchical": (
        "superclasses",
        "the superclass of each of the classes, in their order; CIFAR100_SUPERCLASSES is that of CIFAR-100",
    ),
    "instance": ("features", "an (N, D) array, one row per label, such as pixels or embeddings"),
    "feature": ("features", "an (N, D) array, one row per label, such as pixels or embeddings"),
    "transition": ("transition", "a (C, C) matrix of probabilities, such as measure_noise(...).transition"),
}


def inject_noise(
    kind: str,
    labels: Labels,
    num_classes: int,
    rate: float | None,
    seed: int,
    *,
    class_map: Mapping[int, int] | None = None,
    superclasses: Sequence[int] | Sequence[str] | None = None,
    features: npt.NDArray[Any] | None = None,
    transition: Sequence[Sequence[float]] | npt.NDArray[Any] | None = None,
) -> tuple[IntArray, NoiseRecord]:
    """Add label noise of the kind that is named.

    | kind | wrong label | what `rate` is | needs |
    |---|---|---|---|
    | `"symmetric"` | any other class | share of wrong labels, exact | |
    | `"uniform"` | any class, the true one included | share of redrawn labels, exact | |
    | `"asymmetric"` | `class_map[c]` | share within the mapped classes, exact by class | `class_map` |
    | `"pair_flip"` | the next class | share of each class, exact by class | |
    | `"flip"` | one random class for each class | share of each class, exact by class | |
    | `"two_flip"` | two random classes for each class | share of each class, exact by class | |
    | `"hierarchical"` | another class of the superclass | share within those that have one, exact | `superclasses` |
    | `"instance"` | by a random function of the sample | mean chance of a sample | `features` |
    | `"feature"` | with which a weak model confuses the sample | share of wrong labels, exact | `features` |
    | `"transition"` | drawn from `transition[c]` | none: the matrix says it | `transition` |

    Args:
        kind: A name of `NOISE_KINDS`.
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C.
        rate: In [0, 1). With `"transition"`, `None` or 0.
        seed: Seed of the draw, a non-negative integer.
        class_map: Clean class to wrong class.
        superclasses: (C,) superclass of each class.
        features: (N, D) array, or (N, ...), which is flattened.
        transition: (C, C) probabilities, one row per clean class.

        Extra arguments that `kind` does not need are ignored.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError: As the function of that kind; or the rate is missing.
        ValueError: As the function of that kind; or the kind is unknown, the extra argument that it needs is missing
            or does not fit `num_classes`, or `"transition"` is given a rate.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"The kind of noise must be one of {', '.join(NOISE_KINDS)}, got {kind!r}.")
    check_integer("num_classes", num_classes, minimum=1)
    extras = {"class_map": class_map, "superclasses": superclasses, "features": features, "transition": transition}
    if kind in _NEEDS:
        name, what = _NEEDS[kind]
        if extras[name] is None:
            raise ValueError(f'Noise of kind "{kind}" needs {name}: {what}.')
    if transition is not None and kind == "transition":
        if rate:
            raise ValueError(
                f'Noise of kind "transition" takes its rate from the matrix: leave out the rate, which is {rate!r}.'
            )
        _check_length("transition", transition, num_classes)
        return transition_noise(labels, transition, seed)
    if rate is None:
        raise TypeError(f'Noise of kind "{kind}" needs a rate, a number in [0, 1).')
    if class_map is not None and kind == "asymmetric":
        return asymmetric_noise(labels, class_map, rate, seed, num_classes=num_classes)
    if superclasses is not None and kind == "hierarchical":
        _check_length("superclasses", superclasses, num_classes)
        return hierarchical_noise(labels, superclasses, rate, seed)
    if features is not None and kind in _BY_FEATURES:
        return _BY_FEATURES[kind](features, labels, num_classes, rate, seed)
    return _BY_RATE[kind](labels, num_classes, rate, seed)


def _check_length(name: str, values: Any, num_classes: int) -> None:
    if len(values) != num_classes:
        raise ValueError(f"{name} must have one entry for each of the {num_classes} classes, got {len(values)}.")
