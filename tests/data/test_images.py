"""`hf_clidmu.data.images`: geometry against timm and transformers, augmentation, the dataset and its collator."""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_clidmu.data import ImageSet, collate_images, image_transforms, load_corpus
from hf_clidmu.data import images as images_module
from hf_clidmu.data.images import as_pil_image, image_spec


TIMM_RGB: dict[str, Any] = {
    "input_size": (3, 24, 24),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
TIMM_GREY = {**TIMM_RGB, "input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}
MakeImage = Callable[..., PILImage.Image]


# --- evaluation transform -------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(40, 40), (61, 37), (33, 90)])
def test_eval_transform_equals_timm(make_image: MakeImage, crop_mode: str, size: tuple[int, int]) -> None:
    from timm.data import create_transform

    config = {**TIMM_RGB, "crop_mode": crop_mode}
    image = make_image(0, size)
    ours = image_transforms(config)[1](image)
    theirs = create_transform(**config, is_training=False)(image)
    assert ours.shape == (3, 24, 24) and ours.dtype == torch.float32 and ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [8, 20, 24])
def test_small_square_images_are_kept_whole(make_image: MakeImage, side: int) -> None:
    image = make_image(1, (side, side))
    mean, std = (torch.tensor(TIMM_RGB[key])[:, None, None] for key in ("mean", "std"))
    resized = np.asarray(image.resize((24, 24), PILImage.Resampling.BICUBIC))
    expected = (torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(image_transforms(TIMM_RGB)[1](image), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["ViT", "CLIP", "ConvNext"])
@pytest.mark.parametrize("size", [(300, 300), (320, 240)])
def test_eval_transform_follows_transformers(make_image: MakeImage, kind: str, size: tuple[int, int]) -> None:
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessor")(
        **({"size": {"shortest_edge": 224}, "crop_pct": 0.875} if kind == "ConvNext" else {})
    )
    # A smooth image: the filters of PIL and torchvision differ by rounding on noise.
    image = make_image(2, (6, 5)).resize(size, PILImage.Resampling.BICUBIC)
    ours = image_transforms(processor)[1](image)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape == (3, 224, 224)
    assert (ours - theirs).abs().mean() < 0.02


def test_timm_wrapper_processor() -> None:
    from transformers import TimmWrapperImageProcessor

    processor = TimmWrapperImageProcessor(pretrained_cfg=TIMM_RGB)
    assert image_spec(processor) == image_spec(TIMM_RGB)


def test_other_processor_settings() -> None:
    base = {"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    white = PILImage.new("RGB", (8, 8), (255, 255, 255))
    for settings, expected in (
        ({}, 1.0),
        ({"do_normalize": False}, 1.0),
        ({"do_normalize": False, "do_rescale": False}, 255.0),
        ({"rescale_factor": 1 / 127.5}, 3.0),
        ({"size": 8}, 1.0),
    ):
        tensor = image_transforms(SimpleNamespace(**{**base, **settings}))[1](white)
        torch.testing.assert_close(tensor, torch.full((3, 8, 8), expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_fits_both_kinds_of_model(make_image: MakeImage, mode: str) -> None:
    image = make_image(3, (24, 24), "L").convert("I").convert("I;16") if mode == "I;16" else make_image(3, (24, 24))
    image = image if mode == "I;16" else image.convert(mode)
    assert image_transforms(TIMM_RGB)[1](as_pil_image(image)).shape == (3, 24, 24)
    assert image_transforms(TIMM_GREY)[1](as_pil_image(image)).shape == (1, 24, 24)


def test_grey_and_colour_conversion(make_image: MakeImage) -> None:
    grey = make_image(4, (24, 24), "L")
    plain = {**TIMM_RGB, "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}
    rgb = image_transforms(plain)[1](grey)
    expected = torch.from_numpy(np.asarray(grey).copy()).float() / 255
    for channel in rgb:
        torch.testing.assert_close(channel, expected)
    back = image_transforms({**plain, "input_size": (1, 24, 24)})[1](grey.convert("RGB"))
    torch.testing.assert_close(back[0], expected)


def test_timm_keeps_three_means_for_grey_models() -> None:
    assert image_spec({**TIMM_RGB, "input_size": (1, 24, 24)}).mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


@pytest.mark.parametrize(
    ("processor", "error", "match"),
    [
        (None, TypeError, "No image processor given"),
        (object(), TypeError, "Cannot read an input size off object"),
        ({}, ValueError, r"input_size=\(channels, height, width\), got None"),
        ({**TIMM_RGB, "input_size": (4, 8, 8)}, ValueError, "1 or 3 input channels"),
        ({**TIMM_RGB, "input_size": (3, 0, 8)}, ValueError, "must be positive"),
        ({**TIMM_RGB, "mean": (0.5, 0.5)}, ValueError, "one value per channel"),
        ({**TIMM_RGB, "std": (0.0, 1.0, 1.0)}, ValueError, "std above 0"),
        ({**TIMM_RGB, "interpolation": "cubic"}, ValueError, "Unknown interpolation 'cubic'"),
        ({**TIMM_RGB, "crop_mode": "middle"}, ValueError, "crop_mode must be one of"),
        ({**TIMM_RGB, "crop_pct": 1.5}, ValueError, "crop_pct must be in"),
        (SimpleNamespace(size={"longest_edge": 3}, image_mean=0.5, image_std=0.5), ValueError, "no usable input size"),
        (SimpleNamespace(size=8, image_mean=None, image_std=None), ValueError, "normalises, but has image_mean=None"),
    ],
)
def test_bad_processors(processor: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        image_transforms(processor)


# --- augmentation ---------------------------------------------------------------------------------------------


def test_off_is_evaluation(make_image: MakeImage) -> None:
    train, evaluation = image_transforms(TIMM_RGB, "off")
    assert train is evaluation and not train.is_random
    with pytest.raises(ValueError, match="augment must be one of 'off', 'light', 'randaugment', got 'strong'"):
        image_transforms(TIMM_RGB, "strong")


def test_light_is_a_reflected_shift_and_a_flip(make_image: MakeImage) -> None:
    plain = {**TIMM_GREY, "mean": (0.0,), "std": (1.0,)}
    image = make_image(5, (24, 24), "L")
    padded = np.pad(np.asarray(image), 3, mode="reflect")
    windows = {
        (flipped, window.tobytes())
        for y in range(7)
        for x in range(7)
        for flipped, window in (
            (False, padded[y : y + 24, x : x + 24]),
            (True, np.ascontiguousarray(padded[y : y + 24, x : x + 24][:, ::-1])),
        )
    }
    for hflip in (True, False):
        train, _ = image_transforms(plain, "light", hflip=hflip)
        random.seed(0)
        outcomes = {(train(image)[0] * 255).round().to(torch.uint8).numpy().tobytes() for _ in range(2000)}
        expected = {window for flipped, window in windows if hflip or not flipped}
        assert outcomes == expected and len(expected) == (98 if hflip else 49)


@pytest.mark.parametrize("augment", ["light", "randaugment"])
@pytest.mark.parametrize("config", [TIMM_RGB, TIMM_GREY])
def test_augmentation_draws_from_python_random_only(make_image: MakeImage, augment: Any, config: Any) -> None:
    train, _ = image_transforms(config, augment)
    image = make_image(6, (30, 40))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    random.seed(1)
    first = [train(image) for _ in range(20)]
    random.seed(1)
    again = [train(image) for _ in range(20)]
    random.seed(2)
    other = [train(image) for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])
    assert all(sample.shape == config["input_size"] and torch.isfinite(sample).all() for sample in first)


def test_randaugment_changes_colours(make_image: MakeImage) -> None:
    random.seed(0)
    flat = PILImage.new("RGB", (24, 24), (200, 100, 50))
    light, _ = image_transforms(TIMM_RGB, "light")
    strong, _ = image_transforms(TIMM_RGB, "randaugment")
    assert len({light(flat).numpy().tobytes() for _ in range(30)}) == 1
    assert len({strong(flat).numpy().tobytes() for _ in range(30)}) > 5


@pytest.mark.parametrize("augment", ["off", "light", "randaugment"])
def test_transforms_are_picklable(make_image: MakeImage, augment: Any) -> None:
    image = make_image(7, (40, 30))
    for transform in image_transforms(TIMM_RGB, augment):
        copied = pickle.loads(pickle.dumps(transform))
        random.seed(3)
        expected = transform(image)
        random.seed(3)
        assert torch.equal(copied(image), expected)


# --- pixels ---------------------------------------------------------------------------------------------------


def test_pixel_arrays_of_every_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(as_pil_image(pixels)), pixels)
    np.testing.assert_array_equal(np.asarray(as_pil_image(np.moveaxis(pixels, 2, 0))), pixels)
    np.testing.assert_array_equal(np.asarray(as_pil_image(pixels / 255)), pixels)
    np.testing.assert_array_equal(np.asarray(as_pil_image(pixels.tolist())), pixels)
    np.testing.assert_array_equal(np.asarray(as_pil_image(pixels[:, :, :1])), pixels[:, :, 0])
    sixteen = PILImage.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(as_pil_image(sixteen)), pixels[:, :, 0])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "the image is missing"),
        ("x.png", "neither an image nor a pixel array"),
        (np.zeros(4), "neither an image nor a pixel array"),
        (np.zeros((0, 4)), "neither an image"),
        (np.zeros((5, 4, 2)), "no channel axis of 1, 3 or 4"),
        ([[1, 2], [3]], "differ in length"),
        (np.full((2, 2), np.nan), "4 pixels are not finite"),
        (np.array([[0.0, np.inf]]), "1 pixels are not finite"),
        (np.full((2, 2), 2.5), r"must lie in 0..1, these lie in 2.5..2.5. Divide by 255"),
        (np.full((2, 2), -1), "integer pixels must lie in 0..255"),
        (np.full((2, 2), 300), "integer pixels must lie in 0..255"),
    ],
)
def test_bad_pixels(value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        as_pil_image(value)


# --- ImageSet -------------------------------------------------------------------------------------------------


def test_image_set_items(image_rows: Dataset) -> None:
    evaluation = image_transforms(TIMM_RGB)[1]
    images = ImageSet(image_rows, evaluation)
    assert len(images) == 10
    item = images[4]
    assert item.keys() == {"pixel_values", "labels"} and item["labels"] == 1 and type(item["labels"]) is int
    torch.testing.assert_close(item["pixel_values"], evaluation(image_rows[4]["image"]))
    assert torch.equal(images[-1]["pixel_values"], images[9]["pixel_values"])
    batch = images.__getitems__([3, 3, 0])
    assert [sample["labels"] for sample in batch] == [0, 0, 0]
    assert torch.equal(batch[0]["pixel_values"], batch[1]["pixel_values"])
    assert images.labels.tolist() == [i % 3 for i in range(10)]
    for row in (10, -11):
        with pytest.raises(IndexError, match="the set has 10 rows"):
            images[row]
    bare = ImageSet(image_rows.remove_columns("label"), evaluation, with_labels=False)
    assert bare[0].keys() == {"pixel_values"}
    with pytest.raises(ValueError, match="with_labels=False"):
        _ = bare.labels


def test_image_set_reads_selected_and_formatted_rows(image_rows: Dataset) -> None:
    chosen = image_rows.select([7, 2]).with_format("torch")
    images = ImageSet(chosen, image_transforms(TIMM_RGB)[1])
    torch.testing.assert_close(
        images[0]["pixel_values"], ImageSet(image_rows, images.transform)[7]["pixel_values"], rtol=0, atol=0
    )
    assert images.labels.tolist() == [1, 2]


def test_views_share_pixels(image_rows: Dataset) -> None:
    train, evaluation = image_transforms(TIMM_RGB, "light")
    images = ImageSet(image_rows, train, evaluation)
    view = images.evaluation_view()
    assert view.transform is evaluation and images.transform is train and len(view) == 10
    assert torch.equal(view[2]["pixel_values"], evaluation(image_rows[2]["image"]))
    assert images._cache is view._cache and set(view._cache.pixels) == {2}
    assert images.with_transform(evaluation).transform is evaluation
    assert ImageSet(image_rows, evaluation).evaluation_view().transform is evaluation
    with pytest.raises(ValueError, match="has no eval_transform"):
        ImageSet(image_rows, train).evaluation_view()
    with pytest.raises(TypeError, match="transform must be callable"):
        images.with_transform(None)


def test_cache_decodes_tiny_images_once(
    image_rows: Dataset, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = ImageSet._decode
    monkeypatch.setattr(ImageSet, "_decode", lambda self, row, value: decoded.append(row) or original(self, row, value))
    images = ImageSet(image_rows, image_transforms(TIMM_RGB)[1])
    first = [images[i]["pixel_values"] for i in (1, 1, 2)]
    assert decoded == [1, 2] and torch.equal(first[0], first[1])
    assert pickle.loads(pickle.dumps(images))._cache.pixels == {}

    big = Dataset.from_dict({"image": [make_image(0, (65, 64))], "label": [0]}, features=image_rows.features)
    large = ImageSet(big, images.transform)
    large[0], large[0]
    assert decoded == [1, 2, 0, 0]

    monkeypatch.setattr(images_module, "_CACHE_BYTES", 3 * 12 * 12 * 3)
    small = ImageSet(image_rows, images.transform)
    small._cache.free_bytes = 3 * 12 * 12 * 3
    small.__getitems__(range(10))
    assert len(small._cache.pixels) == 3 and small._cache.free_bytes == 0


def test_unreadable_images_name_row_and_file(tmp_path: Path, make_image: MakeImage, image_rows: Dataset) -> None:
    for i in range(4):
        make_image(i, (70, 70)).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("<html>not found</html>")
    rows = {"image": [str(tmp_path / f"{i}.png") for i in range(4)], "label": [0, 1, 0, 1]}
    corpus = load_corpus(Dataset.from_dict(rows).cast_column("image", Image()))
    images = ImageSet(corpus.train, image_transforms(TIMM_RGB)[1])
    images[0]
    for row in (1, 2):
        with pytest.raises(ValueError, match=rf"Row {row}, column 'image', file '.*{row}\.png': cannot use the image"):
            images.__getitems__([0, row, 3])
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"Row 3, column 'image', file '.*3\.png': .*No such file"):
        images[3]
    empty = Dataset.from_dict({"image": [None, make_image(0)], "label": [0, 1]}, features=image_rows.features)
    with pytest.raises(ValueError, match="Row 0, column 'image': cannot use the image: the image is missing"):
        ImageSet(empty, images.transform)[0]


def test_non_finite_pixels_name_the_row(image_rows: Dataset) -> None:
    pixels = np.full((3, 4, 4), 0.5, dtype=np.float32)
    pixels[1, 2, 3] = np.nan
    for feature in (Image(), Array2D((4, 4), "float32")):
        rows = Dataset.from_dict(
            {"image": list(pixels), "label": [0, 1, 0]}, features=Features({"image": feature, "label": Value("int64")})
        )
        images = ImageSet(rows, image_transforms(TIMM_GREY)[1])
        torch.testing.assert_close(images[0]["pixel_values"], torch.full((1, 24, 24), (128 / 255 - 0.5) / 0.25))
        with pytest.raises(ValueError, match="Row 1, column 'image': .*1 pixels are not finite"):
            images[1]


def test_image_set_refuses_bad_arguments(image_rows: Dataset) -> None:
    transform = image_transforms(TIMM_RGB)[1]
    with pytest.raises(TypeError, match="needs a datasets.Dataset, got list"):
        ImageSet([1, 2], transform)
    with pytest.raises(TypeError, match="transform must be callable"):
        ImageSet(image_rows, None)
    with pytest.raises(TypeError, match="eval_transform must be callable"):
        ImageSet(image_rows, transform, "eval")
    with pytest.raises(ValueError, match="image_column='img' is no column.*'image', 'label'"):
        ImageSet(image_rows, transform, image_column="img")
    with pytest.raises(ValueError, match="label_column='y' is no column.*with_labels=False"):
        ImageSet(image_rows, transform, label_column="y")
    named = image_rows.remove_columns("label").add_column("label", ["a"] * 10)
    with pytest.raises(ValueError, match="Column 'label', row 0: 'a' is no class index"):
        ImageSet(named, transform)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(image_rows: Dataset, workers: int) -> None:
    images = ImageSet(image_rows, *image_transforms(TIMM_RGB, "light"))
    loader = DataLoader(images.evaluation_view(), batch_size=4, collate_fn=collate_images, num_workers=workers)
    with warnings.catch_warnings():
        # Newer Pythons warn about fork in a process that has threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = list(loader)
    assert [batch["pixel_values"].shape for batch in batches] == [(4, 3, 24, 24), (4, 3, 24, 24), (2, 3, 24, 24)]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == images.labels.tolist()
    assert torch.equal(batches[0]["pixel_values"][1], images.evaluation_view()[1]["pixel_values"])


def test_digits_end_to_end() -> None:
    corpus = load_corpus("digits", max_train_samples=50)
    train, evaluation = image_transforms({**TIMM_RGB, "input_size": (3, 32, 32)}, "light", hflip=False)
    batch = collate_images(ImageSet(corpus.train, train, evaluation).__getitems__(range(50)))
    assert batch["pixel_values"].shape == (50, 3, 32, 32)
    assert torch.bincount(batch["labels"]).tolist() == [5] * 10


# --- collator -------------------------------------------------------------------------------------------------


def test_collate_stacks_other_numbers() -> None:
    samples = [
        {"pixel_values": torch.ones(3, 2, 2), "labels": i, "sample_index": np.int64(7 + i), "weight": 0.5}
        for i in range(2)
    ]
    batch = collate_images(samples)
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.int64
    assert batch["sample_index"].tolist() == [7, 8] and batch["sample_index"].dtype == torch.int64
    assert batch["weight"].dtype == torch.float32


def test_collate_refuses_what_does_not_stack() -> None:
    pixels = torch.ones(3, 2, 2)
    with pytest.raises(ValueError, match="no samples"):
        collate_images([])
    with pytest.raises(ValueError, match=r"'pixel_values' differs in shape .*\(3, 2, 2\), \(3, 4, 4\)"):
        collate_images([{"pixel_values": pixels}, {"pixel_values": torch.ones(3, 4, 4)}])
    with pytest.raises(ValueError, match="Sample 1 has the fields 'pixel_values', the first has"):
        collate_images([{"pixel_values": pixels, "labels": 1}, {"pixel_values": pixels}])
    with pytest.raises(TypeError, match="'name' holds str"):
        collate_images([{"pixel_values": pixels, "name": "x"}])
