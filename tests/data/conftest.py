"""Fixtures of the data tests: no network, no writing outside temporary folders."""

from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image


REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def cache_in_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` caches, and its progress bars, away from the machine and from the test report."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_datasets"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    patch.undo()


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Find a folder of the shared real datasets, or skip the test."""

    def find(name: str) -> Path:
        base = Path(os.environ.get("HF_CLIDMU_SHARED", REPOSITORY.parent / "shared"))
        folder = base / "data" / name
        if not folder.is_dir():
            pytest.skip(
                f"the shared dataset {name!r} is not at {folder}; set HF_CLIDMU_SHARED to the folder with data/"
            )
        return folder

    return find


def random_image(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    """A PIL image of uniform noise; `size` is (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def make_image() -> Callable[..., Image.Image]:
    return random_image


@pytest.fixture
def image_rows() -> datasets.Dataset:
    """Ten 12 x 12 RGB images with labels 0, 1, 2, 0, ..."""
    return datasets.Dataset.from_dict(
        {"image": [random_image(i) for i in range(10)], "label": [i % 3 for i in range(10)]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}),
    )
