"""Label noise: injecting a known amount, and measuring the amount that is there.

Every model of noise returns `(noisy_N, NoiseRecord)` and draws from NumPy's PCG64, so that a seed gives the same labels
on every platform. `inject_noise` reaches them all by name. Nothing here knows a model or a corpus.

* `record`: what is known about the noise, and counting it.
* `classwise`: the wrong label depends on the class alone.
* `samplewise`: the wrong label depends on what the sample looks like.
* `maps`: which classes are mistaken for which, as published.
* `rows`: long tails and missing classes, which take rows away and leave labels alone.

Shapes: N rows, D features, C classes. A transition matrix has one row per clean class and one column per given (noisy)
class.
"""

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
from .inject import NOISE_KINDS, inject_noise
from .maps import CIFAR10_ASYMMETRIC, CIFAR100_SUPERCLASS_NAMES, CIFAR100_SUPERCLASSES, cifar100_next_in_superclass
from .record import UNKNOWN, IntArray, NoiseRecord, measure_noise
from .rows import long_tail_rows, without_classes_rows
from .samplewise import feature_dependent_noise, instance_dependent_noise


__all__ = [
    "CIFAR10_ASYMMETRIC",
    "CIFAR100_SUPERCLASSES",
    "CIFAR100_SUPERCLASS_NAMES",
    "NOISE_KINDS",
    "UNKNOWN",
    "IntArray",
    "NoiseRecord",
    "asymmetric_noise",
    "cifar100_next_in_superclass",
    "feature_dependent_noise",
    "flip_noise",
    "hierarchical_noise",
    "inject_noise",
    "instance_dependent_noise",
    "long_tail_rows",
    "measure_noise",
    "pair_flip_noise",
    "symmetric_noise",
    "transition_noise",
    "two_flip_noise",
    "uniform_noise",
    "without_classes_rows",
]
