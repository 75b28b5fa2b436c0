"""Images to tensors: transforms that fit a pretrained model, a map-style dataset and its collator.

Shapes: C channels, H and W the model's input height and width, B batch. Pixels are 8 bits until they are normalised.

All augmentation draws from Python's `random` alone, including RandAugment, whose `timm` original draws from NumPy: one
state, which `transformers.set_seed` seeds, `Trainer` checkpoints, and PyTorch seeds anew in every `DataLoader` worker.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ._rows import quote
from .labels import column_values


if TYPE_CHECKING:
    import datasets
    import torch

Augment = Literal["off", "light", "randaugment"]
ImageTransform = Callable[[Image.Image], "torch.Tensor"]

_AUGMENTS = ("off", "light", "randaugment")
_RANDAUGMENT = "rand-m9-mstd0.5"
_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    # timm draws one of these per training image; evaluation needs a fixed one.
    "random": Image.Resampling.BILINEAR,
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Keeps whole sizes whole when a ratio is multiplied back: 255.9999 pixels are 256.
_ROUNDING = 1e-6
_CACHED_SIDE = 64
_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ImageSpec:
    """What a pretrained model wants to see.

    Attributes:
        channels: 1 or 3.
        height: H.
        width: W.
        mean: Per-channel mean, of pixels in 0..1.
        std: Per-channel standard deviation.
        interpolation: PIL resampling filter.
        crop_pct: Share of each side that the centre crop keeps.
        crop_mode: `"center"` (keep the aspect ratio, cut the longer side), `"squash"` (ignore the aspect ratio) or
            `"border"` (keep the aspect ratio, pad the shorter side).
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Image.Resampling
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        if self.height < 1 or self.width < 1:
            raise ValueError(f"The model's input size must be positive, got {self.height}x{self.width}.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean={self.mean} and std={self.std} must have one value per channel ({self.channels}).")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean} and std={self.std} must be finite, and std above 0.")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in (0, 1], got {self.crop_pct}.")
        if self.crop_mode not in _CROP_MODES:
            raise ValueError(f"crop_mode must be one of {quote(_CROP_MODES)}, got {self.crop_mode!r}.")


def image_transforms(
    processor: Any, augment: Augment = "off", *, hflip: bool = True
) -> tuple[ImageTransform, ImageTransform]:
    """Build the training and the evaluation transform for a pretrained model.

    Evaluation resizes and crops as the model's configuration says, with one exception: a square image that is no
    larger than the model's input is resized to it whole, since a centre crop would throw away pixels of an image that
    has few.

    Args:
        processor: A `timm` data configuration (dict with `input_size`, `mean`, `std`, `interpolation`, `crop_pct`,
            `crop_mode`), or a `transformers` image processor, `TimmWrapperImageProcessor` included.
        augment: Of the training transform. `"off"`: as in evaluation. `"light"`: random crop after reflecting 1/8 of
            each side, and horizontal flip. `"randaugment"`: `"light"`, then timm's `rand-m9-mstd0.5`.
        hflip: Whether `"light"` and `"randaugment"` flip half of the images. Turn it off where left and right
            matter, as with digits and letters.

    Returns:
        `(train, eval)`: picklable callables from a PIL image to a (C, H, W) float32 tensor. Grey images become RGB for
        models with 3 channels, and colour images grey for models with 1.

    Raises:
        TypeError: `processor` is `None` or of an unknown kind.
        ValueError: `augment` is unknown, or the processor lacks a size or a mean.
    """
    if augment not in _AUGMENTS:
        raise ValueError(f"augment must be one of {quote(_AUGMENTS)}, got {augment!r}.")
    spec = image_spec(processor)
    evaluation = EvalTransform(spec)
    if augment == "off":
        return evaluation, evaluation
    return TrainTransform(spec, hflip=hflip, randaugment=augment == "randaugment"), evaluation


def image_spec(processor: Any) -> ImageSpec:
    """Read an `ImageSpec` off a `timm` data configuration or a `transformers` image processor.

    Args:
        processor: See `image_transforms`.

    Returns:
        The specification.

    Raises:
        TypeError: `processor` is `None` or of an unknown kind.
        ValueError: It lacks a size or a mean, or holds values out of range.
    """
    if processor is None:
        raise TypeError("No image processor given: pass the model's image processor, or a timm data configuration.")
    if isinstance(processor, Mapping):
        return _spec_from_timm(processor)
    for attribute in ("data_config", "pretrained_cfg"):
        if isinstance(getattr(processor, attribute, None), Mapping):
            return _spec_from_timm(getattr(processor, attribute))
    if hasattr(processor, "image_mean") or hasattr(processor, "size"):
        return _spec_from_processor(processor)
    raise TypeError(
        f"Cannot read an input size off {type(processor).__name__}: pass a transformers image processor or a timm "
        "data configuration (timm.data.resolve_model_data_config(model))."
    )


def _spec_from_timm(config: Mapping[str, Any]) -> ImageSpec:
    size = config.get("input_size")
    if not isinstance(size, Sequence) or len(size) != 3:
        raise ValueError(
            f"The timm data configuration must have input_size=(channels, height, width), got {size!r}. "
            "timm.data.resolve_model_data_config(model) makes one."
        )
    channels, height, width = (int(value) for value in size)
    _check_channels(channels)
    return ImageSpec(
        channels,
        height,
        width,
        _per_channel(config.get("mean", _IMAGENET_MEAN), channels, "mean"),
        _per_channel(config.get("std", _IMAGENET_STD), channels, "std"),
        _resampling(config.get("interpolation", "bicubic")),
        float(config.get("crop_pct") or 1.0),
        config.get("crop_mode") or "center",
    )


def _spec_from_processor(processor: Any) -> ImageSpec:
    name = type(processor).__name__
    size, crop = _size(processor, "size"), _size(processor, "crop_size")
    shortest = size.get("shortest_edge")
    crops = bool(getattr(processor, "do_center_crop", False)) and "height" in crop
    crop_pct, crop_mode = 1.0, "squash"
    if shortest is not None:
        height = width = shortest
        pct = getattr(processor, "crop_pct", None)
        if crops:
            height, width = crop["height"], crop["width"]
            crop_mode, crop_pct = "center", min(1.0, max(height, width) / shortest)
        elif pct and shortest < 384:  # ConvNext and ResNet: from 384 pixels on they squash instead of cropping
            crop_mode, crop_pct = "center", float(pct)
        elif not pct:  # such a processor leaves the longer side as it is; a batch needs one size
            crop_mode = "center"
    elif "height" in size and "width" in size:
        height, width = size["height"], size["width"]
        if crops:
            crop_pct = min(1.0, max(crop["height"] / height, crop["width"] / width))
            height, width = crop["height"], crop["width"]
    else:
        raise ValueError(
            f"{name} has no usable input size (size={getattr(processor, 'size', None)!r}): it needs height and width, "
            "or shortest_edge."
        )
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    normalises = getattr(processor, "do_normalize", True) is not False
    if normalises and (mean is None or std is None):
        raise ValueError(f"{name} normalises, but has image_mean={mean!r} and image_std={std!r}.")
    channels = len(mean) if isinstance(mean, Sequence) else 3
    mean_C = _per_channel(mean, channels, "image_mean") if normalises else (0.0,) * channels
    std_C = _per_channel(std, channels, "image_std") if normalises else (1.0,) * channels
    # Pixels in 0..1 are assumed below; another scale is the same as another mean and deviation.
    factor = 255.0 * _rescale_factor(processor)
    return ImageSpec(
        channels,
        height,
        width,
        tuple(value / factor for value in mean_C),
        tuple(value / factor for value in std_C),
        _resampling(getattr(processor, "resample", None) or Image.Resampling.BILINEAR),
        crop_pct,
        crop_mode,
    )


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"Models with 1 or 3 input channels are supported, this one has {channels}.")


def _rescale_factor(processor: Any) -> float:
    if getattr(processor, "do_rescale", True) is False:
        return 1.0
    return float(getattr(processor, "rescale_factor", None) or 1 / 255)


def _size(processor: Any, attribute: str) -> dict[str, int]:
    value = getattr(processor, attribute, None)
    if value is None:
        return {}
    if isinstance(value, Integral):
        return {"height": int(value), "width": int(value)}
    keys = ("height", "width", "shortest_edge")
    return {key: int(value[key]) for key in keys if key in value and value[key] is not None}


def _per_channel(value: Any, channels: int, name: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),) * channels
    if len(values) == 3 and channels == 1:
        # timm keeps the three ImageNet values for models made with in_chans=1.
        return (sum(values) / 3,)
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        raise ValueError(f"{name}={values} must have one value per channel ({channels}).")
    return values


def _resampling(value: Any) -> Image.Resampling:
    name = getattr(value, "value", value)  # torchvision's InterpolationMode holds a name, PIL's a number
    if isinstance(name, str):
        if name not in _INTERPOLATIONS:
            raise ValueError(f"Unknown interpolation {name!r}; known are {quote(list(_INTERPOLATIONS))}.")
        return _INTERPOLATIONS[name]
    return Image.Resampling(int(name))


@dataclass(frozen=True)
class EvalTransform:
    """Deterministic transform of a PIL image to a normalised (C, H, W) float32 tensor."""

    spec: ImageSpec
    is_random = False

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Transform one image."""
        return to_tensor(fit(image, self.spec), self.spec)


@dataclass(frozen=True)
class TrainTransform:
    """Augmenting transform of a PIL image to a normalised (C, H, W) float32 tensor; draws from Python's `random`."""

    spec: ImageSpec
    hflip: bool = True
    randaugment: bool = False
    operations: tuple[Callable[[Image.Image], Image.Image], ...] = field(init=False, repr=False, compare=False)
    layers: int = field(init=False, repr=False, compare=False)
    is_random = True

    def __post_init__(self) -> None:
        operations: tuple[Callable[[Image.Image], Image.Image], ...] = ()
        layers = 0
        if self.randaugment:
            from timm.data.auto_augment import rand_augment_transform

            fill = tuple(min(255, max(0, round(255 * mean))) for mean in self.spec.mean)
            policy = rand_augment_transform(
                _RANDAUGMENT,
                {
                    "translate_const": int(min(self.spec.height, self.spec.width) * 0.45),
                    "img_mean": fill if len(fill) == 3 else fill * 3,
                    "interpolation": self.spec.interpolation,
                },
            )
            operations, layers = tuple(policy.ops), policy.num_layers
        object.__setattr__(self, "operations", operations)
        object.__setattr__(self, "layers", layers)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Transform one image."""
        spec = self.spec
        pixels = _shift_and_flip(np.asarray(fit(image, spec)), hflip=self.hflip)
        if not self.operations:
            return to_tensor(pixels, spec)
        # The operations are written for RGB. They are applied here rather than by timm's RandAugment because that
        # chooses them with NumPy's global state.
        fitted = Image.fromarray(pixels).convert("RGB")
        for operation in random.choices(self.operations, k=self.layers):
            fitted = operation(fitted)
        return to_tensor(_with_channels(fitted, spec.channels), spec)


def _shift_and_flip(pixels: npt.NDArray[np.uint8], *, hflip: bool) -> npt.NDArray[np.uint8]:
    """Random crop of the image padded by reflection; copied in slices, for nothing is as slow here as a lookup."""
    height, width = pixels.shape[:2]
    up, left = random.randint(-(height // 8), height // 8), random.randint(-(width // 8), width // 8)
    mirrored = hflip and random.random() < 0.5
    between, target = np.empty_like(pixels), np.empty_like(pixels)
    _copy_shifted(pixels, between, up)
    columns = target.swapaxes(0, 1)
    _copy_shifted(between.swapaxes(0, 1), columns[::-1] if mirrored else columns, left)
    return target


def _copy_shifted(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], shift: int) -> None:
    """`target[i] = source[i + shift]` along the first axis, reflected at both ends."""
    length = len(source)
    if shift >= 0:
        target[: length - shift] = source[shift:]
        target[length - shift :] = source[length - 1 - shift : length - 1][::-1]
    else:
        target[-shift:] = source[:shift]
        target[:-shift] = source[1 : 1 - shift][::-1]


def fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Bring an image to the model's channels and size.

    Args:
        image: Any PIL image of 8-bit modes, or one that `as_pil_image` made 8-bit.
        spec: What the model wants.

    Returns:
        An image of `spec.width` x `spec.height`, mode L or RGB.
    """
    image = _with_channels(image, spec.channels)
    width, height = image.size
    target = (spec.width, spec.height)
    if image.size == target and spec.crop_pct == 1:
        return image
    if width == height and width <= min(target):
        return image.resize(target, spec.interpolation)
    scaled_height, scaled_width = (math.floor(side / spec.crop_pct + _ROUNDING) for side in (spec.height, spec.width))
    if spec.crop_mode == "squash":
        new_width, new_height = scaled_width, scaled_height
    else:
        extreme = max if spec.crop_mode == "center" else min
        ratio = extreme(scaled_width / width, scaled_height / height)
        # As in timm: torchvision's Resize cuts fractions off, timm's ResizeKeepRatio rounds them.
        cuts = spec.crop_mode == "center" and spec.height == spec.width
        new_width, new_height = (
            max(1, math.floor(side * ratio + _ROUNDING) if cuts else round(side * ratio)) for side in image.size
        )
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), spec.interpolation)
    return _crop_or_pad(image, spec)


def _crop_or_pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    left, top = round((image.width - spec.width) / 2), round((image.height - spec.height) / 2)
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + spec.width, top + spec.height))
    fill = tuple(min(255, max(0, round(255 * mean))) for mean in spec.mean)
    canvas = Image.new(image.mode, (spec.width, spec.height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (-left, -top))
    return canvas


def to_tensor(image: Image.Image | npt.NDArray[np.uint8], spec: ImageSpec) -> torch.Tensor:
    """Normalise an 8-bit image.

    Args:
        image: An image with `spec.channels` channels, or its pixels: (H, W), or (H, W, C).
        spec: Mean and standard deviation.

    Returns:
        (C, H, W) float32.
    """
    import torch

    pixels = np.asarray(image)
    pixels_CHW = pixels.reshape(*pixels.shape[:2], spec.channels).transpose(2, 0, 1)
    mean_C, std_C = np.array(spec.mean, dtype=np.float32), np.array(spec.std, dtype=np.float32)
    values_CHW = np.empty(pixels_CHW.shape, dtype=np.float32)  # in this order from the start: turning it costs more
    np.multiply(pixels_CHW, (1 / (255 * std_C))[:, None, None], out=values_CHW)
    values_CHW -= (mean_C / std_C)[:, None, None]
    return torch.from_numpy(values_CHW)


def as_pil_image(value: Any) -> Image.Image:
    """Make an 8-bit PIL image out of a PIL image or a pixel array.

    Args:
        value: A PIL image of any mode; or an array (or nested list) of shape (H, W), (H, W, C) or (C, H, W) with C in
            1, 3, 4, either integers in 0..255 or floats in 0..1. 16-bit integers in PIL images are scaled down.

    Returns:
        An 8-bit image (mode L, RGB or another 8-bit mode that PIL converts to them).

    Raises:
        ValueError: The value is `None`, has no such shape, or holds pixels that are not finite or out of range.
    """
    if value is None:
        raise ValueError("the image is missing.")
    if isinstance(value, Image.Image):
        if value.mode == "F":
            return as_pil_image(np.asarray(value))
        if value.mode == "I" or value.mode.startswith("I;16"):
            return _sixteen_bit(np.asarray(value))
        if value.mode == "P" and "transparency" in value.info:
            return value.convert("RGBA")
        return value
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"the rows of the pixel array differ in length ({error}).") from error
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(
            f"neither an image nor a pixel array: {type(value).__name__} of {pixels.dtype}, shape {pixels.shape}."
        )
    if pixels.ndim == 3:
        pixels = _channels_last(pixels)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError(f"{int((~np.isfinite(pixels)).sum())} pixels are not finite (NaN or infinite).")
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"float pixels must lie in 0..1, these lie in {low:g}..{high:g}. Divide by 255, or store integers in "
                "0..255."
            )
        pixels = np.rint(pixels * 255)
    elif pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"integer pixels must lie in 0..255, these lie in {pixels.min()}..{pixels.max()}.")
    return Image.fromarray(pixels.astype(np.uint8))


def _channels_last(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if pixels.shape[2] not in (1, 3, 4):
        if pixels.shape[0] not in (1, 3, 4):
            raise ValueError(f"a pixel array of shape {pixels.shape} has no channel axis of 1, 3 or 4.")
        pixels = np.moveaxis(pixels, 0, 2)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _sixteen_bit(pixels: npt.NDArray[Any]) -> Image.Image:
    high = int(pixels.max())
    if int(pixels.min()) < 0 or high > 65535:
        raise ValueError(f"integer pixels must lie in 0..65535, these lie in {pixels.min()}..{high}.")
    if high > 255:
        pixels = np.rint(pixels / 257)
    return Image.fromarray(pixels.astype(np.uint8))


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


@dataclass
class _PixelCache:
    """Decoded pixels of tiny images by row; one per dataset, shared by its views, not by worker processes."""

    pixels: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    free_bytes: int = _CACHE_BYTES

    def offer(self, row: int, image: Image.Image) -> None:
        if max(image.size) > _CACHED_SIDE or image.mode not in ("L", "RGB") or row in self.pixels:
            return
        pixels = np.array(image)
        if pixels.nbytes <= self.free_bytes:
            self.free_bytes -= pixels.nbytes
            self.pixels[row] = pixels


class ImageSet:
    """Images of a `datasets.Dataset` as model inputs.

    Decoding is lazy. Images of up to 64 x 64 pixels are decoded once and kept as 8-bit pixels, up to 512 MiB in all;
    every augmentation still sees them anew. The cache is not sent to `DataLoader` workers, which fill their own.

    Args:
        dataset: The images; any type that `as_pil_image` reads, or a `datasets.Image` column.
        transform: PIL image to (C, H, W) float tensor.
        eval_transform: The transform of `evaluation_view`. Default: `transform`, which then must not augment.
        image_column: Column of the images.
        label_column: Column of the labels.
        with_labels: Whether items have `labels`.

    Raises:
        TypeError: `dataset` is no `datasets.Dataset`, or a transform is not callable.
        ValueError: A column is missing.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: ImageTransform,
        eval_transform: ImageTransform | None = None,
        *,
        image_column: str = "image",
        label_column: str = "label",
        with_labels: bool = True,
    ) -> None:
        import datasets

        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(f"ImageSet needs a datasets.Dataset, got {type(dataset).__name__}.")
        for argument, value in (("transform", transform), ("eval_transform", eval_transform)):
            if not callable(value) and not (value is None and argument == "eval_transform"):
                raise TypeError(f"{argument} must be callable on a PIL image, got {value!r}.")
        needed = {"image_column": image_column, **({"label_column": label_column} if with_labels else {})}
        for argument, column in needed.items():
            if column not in dataset.column_names:
                raise ValueError(
                    f"{argument}={column!r} is no column of the data. Available columns: "
                    f"{quote(dataset.column_names)}.{' Or pass with_labels=False.' * (argument == 'label_column')}"
                )
        self.transform = transform
        self.eval_transform = eval_transform
        self.image_column = image_column
        self.label_column = label_column
        self.with_labels = with_labels
        self._cache = _PixelCache()
        feature = dataset.features[image_column]
        rows = dataset.with_format(None).select_columns(list(needed.values()))
        # Decoding row by row here, instead of by the batch in `datasets`, lets errors name the row and the file.
        self._feature = datasets.Image(mode=feature.mode) if isinstance(feature, datasets.Image) else None
        self._rows = rows if self._feature is None else rows.cast_column(image_column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `{"pixel_values": (C, H, W) float tensor, "labels": int}`.

        Args:
            index: Row, counted from the end when negative.

        Raises:
            IndexError: There is no such row.
            ValueError: The image cannot be read or its pixels are not finite; the message names row and file.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items, fetched in one go; `DataLoader` calls this."""
        rows = [self._row(index) for index in indices]
        images = self._images(rows)
        items: list[dict[str, Any]] = [{"pixel_values": self.transform(image)} for image in images]
        if self.with_labels:
            labels = self.labels
            for item, row in zip(items, rows, strict=True):
                item["labels"] = int(labels[row])
        return items

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) given labels, read without decoding an image."""
        if not self.with_labels:
            raise ValueError("This ImageSet was made with with_labels=False.")
        if not hasattr(self, "_labels"):
            values = column_values(self._rows, self.label_column)
            for row, value in enumerate(values):
                if not isinstance(value, int):
                    raise ValueError(
                        f"Column {self.label_column!r}, row {row}: {value!r} is no class index. load_corpus maps "
                        "labels to class indices."
                    )
            self._labels = np.asarray(values, dtype=np.int64)
        return self._labels

    def with_transform(self, transform: ImageTransform) -> ImageSet:
        """Return a view of the same rows through another transform; it shares the decoded images."""
        if not callable(transform):
            raise TypeError(f"transform must be callable on a PIL image, got {transform!r}.")
        # Not copy.copy, which goes through __getstate__ and so would drop the shared pixels.
        view = type(self).__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.transform = transform
        return view

    def evaluation_view(self) -> ImageSet:
        """Return a view through the evaluation transform: the same rows, without augmentation.

        Raises:
            ValueError: The set augments and was made without `eval_transform`.
        """
        if self.eval_transform is not None:
            return self.with_transform(self.eval_transform)
        if getattr(self.transform, "is_random", False):
            raise ValueError("This ImageSet augments its images and has no eval_transform: pass one to ImageSet.")
        return self.with_transform(self.transform)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": _PixelCache()}

    def _row(self, index: int) -> int:
        row = int(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"Row {row} does not exist: the set has {len(self)} rows.")
        return row % len(self)

    def _images(self, rows: Sequence[int]) -> list[Image.Image]:
        missing = [row for row in dict.fromkeys(rows) if row not in self._cache.pixels]
        decoded: dict[int, Image.Image] = {}
        if missing:
            values = self._rows[missing][self.image_column]
            for row, value in zip(missing, values, strict=True):
                decoded[row] = self._decode(row, value)
                self._cache.offer(row, decoded[row])
        return [decoded[row] if row in decoded else Image.fromarray(self._cache.pixels[row]) for row in rows]

    def _decode(self, row: int, value: Any) -> Image.Image:
        try:
            decoded = value
            if self._feature is not None and value is not None:
                decoded = self._feature.decode_example(value)
            return as_pil_image(decoded)
        except MemoryError:
            raise
        except Exception as error:  # PIL raises nearly anything on corrupt bytes; all of it ends up in this ValueError
            file = value.get("path") if isinstance(value, Mapping) else None
            raise ValueError(
                f"Row {row}, column {self.image_column!r}{f', file {file!r}' if file else ''}: cannot use the image: "
                f"{error} Repair or drop the row."
            ) from error


def collate_images(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples of an `ImageSet` into a batch.

    Args:
        samples: B mappings with `pixel_values`, usually `labels`, and any further numbers such as `sample_index`.

    Returns:
        `pixel_values` (B, C, H, W), `labels` (B,) int64, and every further field as (B,): int64 or float32. Fields
        that are tensors are stacked.

    Raises:
        TypeError: A field holds something other than numbers or tensors.
        ValueError: There is no sample, or samples differ in their fields or shapes.
    """
    import torch

    if not samples:
        raise ValueError("There are no samples to collate.")
    fields = samples[0].keys()
    batch: dict[str, torch.Tensor] = {}
    for position, sample in enumerate(samples):
        if sample.keys() != fields:
            raise ValueError(
                f"Sample {position} has the fields {quote(list(sample))}, the first has {quote(list(fields))}."
            )
    for name in fields:
        values = [sample[name] for sample in samples]
        if all(isinstance(value, torch.Tensor) for value in values):
            shapes = sorted({tuple(value.shape) for value in values})
            if len(shapes) > 1:
                raise ValueError(f"{name!r} differs in shape between samples: {shapes}. The transform must fix it.")
            batch[name] = torch.stack(values)
        elif all(isinstance(value, (Integral, np.integer)) for value in values):
            batch[name] = torch.tensor([int(value) for value in values], dtype=torch.int64)
        elif all(isinstance(value, Real) for value in values):
            batch[name] = torch.tensor([float(value) for value in values], dtype=torch.float32)
        else:
            raise TypeError(f"{name!r} holds {type(values[0]).__name__}, which cannot be put in a batch.")
    return batch
