"""Noise for a corpus: what `inject_noise` needs beside labels, from settings, presets and the data themselves.

Shapes: N training rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ._rows import quote
from .noise import NOISE_KINDS, IntArray, NoiseRecord, inject_noise


if TYPE_CHECKING:
    from datasets import Dataset

    from .presets import Preset

ClassMap = Mapping[Any, Any] | Literal["next"]


@dataclass(frozen=True)
class NoiseSettings:
    """The noise to inject; see `load_corpus` for the fields.

    Raises:
        ValueError: The kind is unknown, or a setting has no effect on it.
    """

    kind: str | None
    rate: float
    seed: int
    map: ClassMap | None
    superclasses: Sequence[Any] | None
    features: npt.NDArray[Any] | None
    transition: Any | None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in NOISE_KINDS:
            raise ValueError(f"noise must be one of {quote(NOISE_KINDS)} or None, got {self.kind!r}.")
        if self.kind is None and self.rate:
            raise ValueError(f'noise_rate={self.rate} has no effect without noise, such as noise="symmetric".')
        for name, value, kinds in (
            ("noise_map", self.map, ("asymmetric",)),
            ("noise_superclasses", self.superclasses, ("hierarchical",)),
            ("noise_features", self.features, ("instance", "feature")),
            ("noise_transition", self.transition, ("transition",)),
        ):
            if value is not None and self.kind not in kinds:
                raise ValueError(f"{name} is for noise={' or '.join(map(repr, kinds))}, not for noise={self.kind!r}.")

    def inject(
        self, labels_N: IntArray, names: Sequence[str], data: Dataset, rows: IntArray, preset: Preset | None
    ) -> tuple[IntArray, NoiseRecord]:
        """Make labels wrong.

        Args:
            labels_N: (N,) clean class indices.
            names: C class names.
            data: The inputs of all rows of the source, in a column `image` or `text`.
            rows: (N,) which of them the labels belong to.
            preset: Where the data come from, if from a preset.

        Returns:
            The (N,) noisy labels, and the record of what was done.

        Raises:
            ValueError: The kind needs something that is neither given nor known of the preset.
        """
        assert self.kind is not None
        extras: dict[str, Any] = {}
        if self.kind == "asymmetric":
            extras["class_map"] = self._class_map(names, preset)
        elif self.kind == "hierarchical":
            extras["superclasses"] = self._superclasses(names, preset)
        elif self.kind in ("instance", "feature"):
            extras["features"] = self._features(data, rows)
        elif self.kind == "transition":
            if self.transition is None:
                raise ValueError('noise="transition" needs noise_transition, a (C, C) matrix of probabilities.')
            extras["transition"] = self.transition
        return inject_noise(self.kind, labels_N, len(names), self.rate, self.seed, **extras)

    def _class_map(self, names: Sequence[str], preset: Preset | None) -> dict[int, int]:
        if isinstance(self.map, str):
            if self.map != "next":
                raise ValueError(f'noise_map must be "next" or map classes to classes, got {self.map!r}.')
            return {index: (index + 1) % len(names) for index in range(len(names))}
        if self.map is not None:
            return {_index(key, names): _index(value, names) for key, value in self.map.items()}
        if preset is not None and preset.noise_map is not None:
            _check_classes(names, preset, "noise_map")
            return dict(preset.noise_map)
        raise ValueError(
            'noise="asymmetric" needs noise_map, which says what each class is mistaken for: a mapping such as '
            f'{{{names[0]!r}: {names[-1]!r}}}, or "next" for the next class in the order {quote(names[:10])}'
            f"{', ...' if len(names) > 10 else ''}."
        )

    def _superclasses(self, names: Sequence[str], preset: Preset | None) -> list[Any]:
        if self.superclasses is not None:
            if len(self.superclasses) != len(names):
                raise ValueError(
                    f"noise_superclasses must say the superclass of each of the {len(names)} classes, in their order; "
                    f"it has {len(self.superclasses)} entries."
                )
            return list(self.superclasses)
        if preset is not None and preset.superclasses is not None:
            _check_classes(names, preset, "noise_superclasses")
            return list(preset.superclasses)
        raise ValueError('noise="hierarchical" needs noise_superclasses, the superclass of each class, in their order.')

    def _features(self, data: Dataset, rows: IntArray) -> npt.NDArray[Any]:
        if self.features is not None:
            features = np.asarray(self.features)
            if len(features) != len(data):
                raise ValueError(
                    f"noise_features must have one row per row of the training split, {len(data)}; it has "
                    f"{len(features)}."
                )
            return features[rows]
        if self.kind == "instance" and "image" in data.column_names:
            return _pixels(data, rows)
        raise ValueError(
            f"noise={self.kind!r} needs noise_features, an array with one row per row of the training split"
            f"{', such as embeddings of the texts' if 'text' in data.column_names else ''}."
        )


def _index(value: Any, names: Sequence[str]) -> int:
    """The class that a name, or a number that is no name, stands for."""
    if str(value) in names:
        return list(names).index(str(value))
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    raise ValueError(f"noise_map names {value!r}, which is no class. The classes are {quote(names[:20])}.")


def _check_classes(names: Sequence[str], preset: Preset, setting: str) -> None:
    if preset.label_names is None or tuple(names) != tuple(preset.label_names):
        raise ValueError(
            f"The preset {preset.name!r} knows what its classes are mistaken for by their published names and order, "
            f"but these data have the classes {quote(names[:10])}: pass {setting}."
        )


def _pixels(data: Dataset, rows: IntArray) -> npt.NDArray[Any]:
    from .images import as_pil_image

    images = []
    for row in rows.tolist():
        image = as_pil_image(data[row]["image"])
        images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"Images differ in shape (row {int(rows[0])}: {images[0].shape}, row {row}: {images[-1].shape}), so "
                'their pixels are no features for noise="instance": pass noise_features, such as embeddings.'
            )
    return np.stack(images).reshape(len(images), -1)
