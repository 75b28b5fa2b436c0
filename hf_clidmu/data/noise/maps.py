"""Which classes are mistaken for which, as published.

Classes are numbers: CIFAR-10 in its own order (airplane 0 .. truck 9), CIFAR-100 by its fine labels in alphabetical
order (apple 0 .. worm 99), as the data sets number them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


#: CIFAR-10: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog. Patrini et al., "Making Deep Neural
#: Networks Robust to Label Noise: a Loss Correction Approach" (CVPR 2017).
CIFAR10_ASYMMETRIC: Mapping[int, int] = MappingProxyType({9: 1, 2: 0, 4: 7, 3: 5, 5: 3})

#: The 20 superclasses of CIFAR-100 in their order, each with its 5 fine classes. Krizhevsky, "Learning Multiple Layers
#: of Features from Tiny Images" (2009).
CIFAR100_SUPERCLASS_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
        "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
        "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
        "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
        "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
        "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
        "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
        "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
        "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
        "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
        "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
        "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
        "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
        "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
        "people": ("baby", "boy", "girl", "man", "woman"),
        "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
        "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
        "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
        "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
        "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
    }
)

_FINE = sorted((fine, coarse) for coarse, group in enumerate(CIFAR100_SUPERCLASS_NAMES.values()) for fine in group)

#: (100,) the superclass, 0..19, of each fine class of CIFAR-100: what `hierarchical_noise` takes.
CIFAR100_SUPERCLASSES: tuple[int, ...] = tuple(coarse for _, coarse in _FINE)


def cifar100_next_in_superclass() -> dict[int, int]:
    """Map each fine class of CIFAR-100 to the next one of its superclass, circularly.

    Returns:
        A map of all 100 classes for `asymmetric_noise`, as in Patrini et al. (CVPR 2017).
    """
    number = {fine: index for index, (fine, _) in enumerate(_FINE)}
    return {
        number[fine]: number[group[(place + 1) % len(group)]]
        for group in CIFAR100_SUPERCLASS_NAMES.values()
        for place, fine in enumerate(group)
    }
