"""Known datasets by name: which columns and classes they have, where they come from, and how to lay them out on disk.

A preset is looked up first as a folder under the one that the environment variable `HF_CLIDMU_DATA` names, then, where
one is known to exist, on the Hub. Nothing is ever downloaded from anywhere else: most of these datasets ask to be
requested or agreed to first.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ._rows import quote
from .columns import CLEAN_LABEL_COLUMN, Modality
from .noise import CIFAR10_ASYMMETRIC, CIFAR100_SUPERCLASS_NAMES, CIFAR100_SUPERCLASSES, cifar100_next_in_superclass
from .sources import LoadedSource, load_source


if TYPE_CHECKING:
    from datasets import Dataset

#: Name of the environment variable with the folder that holds one folder per preset.
DATA_VARIABLE = "HF_CLIDMU_DATA"


@dataclass(frozen=True)
class Preset:
    """What is known about a dataset.

    Attributes:
        name: Name under which `load_corpus` knows it.
        title: Name in words, with the kind of its labels.
        modality: `"image"` or `"text"`.
        folder: Folder below the one in `HF_CLIDMU_DATA`.
        download: Where the data come from.
        layout: What the folder must hold.
        licence: What is known about the licence.
        recipe: File of the recommended recipe, below `recipes/`.
        num_labels: Number of classes; `None` where it depends on the data put into the folder.
        label_names: Class names in index order; `None` where the data bring them.
        label_column: Column (or columns, see `load_corpus`) of the given labels; `None` finds it.
        clean_label_column: Column of the true labels, where there are some.
        input_column: Column of the inputs.
        metric: The metric that publications report: `"accuracy"`, or `"macro_f1"` where classes differ much in size.
        hub_id: Id on the Hub, of a copy without human or weak labels; `None` where none is known.
        hub_config: Its configuration.
        hub_revision: Its revision.
        hub_columns: Column names there that differ from those above, to the names above.
        noise_map: Published asymmetric noise: the class that each class is mistaken for. Classes that are not in it
            keep their labels.
        superclasses: The superclass of each class.
    """

    name: str
    title: str
    modality: Modality
    folder: str
    download: str
    layout: str
    licence: str
    recipe: str
    num_labels: int | None = None
    label_names: tuple[str, ...] | None = None
    label_column: str | None = None
    clean_label_column: str = CLEAN_LABEL_COLUMN
    input_column: str = "image"
    metric: str = "accuracy"
    hub_id: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    hub_columns: Mapping[str, str] | None = None
    noise_map: Mapping[int, int] | None = None
    superclasses: tuple[int, ...] | None = None


def get_preset(name: str) -> Preset:
    """Look a preset up.

    Args:
        name: Its name.

    Returns:
        The preset.

    Raises:
        KeyError: There is none of that name; the message names the nearest.
    """
    if name not in PRESETS:
        near = similar_presets(name)
        hint = f"Did you mean {quote(near)}?" if near else f"Known are {quote(sorted(PRESETS))}."
        raise KeyError(f"There is no preset {name!r}. {hint}")
    return PRESETS[name]


def similar_presets(name: str) -> list[str]:
    """The names of presets that look like `name`, nearest first."""
    return difflib.get_close_matches(name.lower().replace("-", "_"), PRESETS, n=3, cutoff=0.75)


def find_preset(source: Any) -> Preset | None:
    """The preset that a source of `load_corpus` names; a file or folder of that name wins."""
    if not isinstance(source, str) or source not in PRESETS or Path(source).exists():
        return None
    return PRESETS[source]


def load_preset(preset: Preset) -> LoadedSource:
    """Load every split of a preset from its folder, else from the Hub.

    Args:
        preset: The preset.

    Returns:
        The splits.

    Raises:
        FileNotFoundError: It is in neither place; the message says what to download from where, and where to put it.
        ValueError: Its folder holds something that cannot be read.
    """
    base = os.environ.get(DATA_VARIABLE)
    folder = None if not base else Path(base).expanduser() / preset.folder
    if folder is not None and folder.is_dir():
        loaded = load_source(folder)
        splits = {name: _renamed(split, preset) for name, split in loaded.splits.items()}
    elif preset.hub_id is not None:
        try:
            loaded = load_source(preset.hub_id, config_name=preset.hub_config, revision=preset.hub_revision)
        except (FileNotFoundError, ValueError) as error:
            raise FileNotFoundError(_how_to_get(preset, folder)) from error
        splits = {name: _with_class_names(_renamed(split, preset), preset) for name, split in loaded.splits.items()}
    else:
        raise FileNotFoundError(_how_to_get(preset, folder))
    return replace(loaded, name=preset.name, splits=splits)


def _renamed(split: Dataset, preset: Preset) -> Dataset:
    """The split with this package's column names; a copy of the Hub dataset in the folder has the Hub's, too."""
    names = {
        old: new
        for old, new in (preset.hub_columns or {}).items()
        if old in split.column_names and new not in split.column_names
    }
    return split.rename_columns(names) if names else split


def _with_class_names(split: Dataset, preset: Preset) -> Dataset:
    """The split with the published class names: copies on the Hub number classes alike, but misspell some."""
    from datasets import ClassLabel

    feature = split.features.get("label")
    if preset.label_names is None or getattr(feature, "num_classes", None) != len(preset.label_names):
        return split
    named = split.with_format(None)
    # Not cast_column, which would write all images of the split anew.
    named.info.features["label"] = ClassLabel(names=list(preset.label_names))
    return named


def _how_to_get(preset: Preset, folder: Path | None) -> str:
    place = (
        f"the folder {preset.folder!r} below the one that the environment variable {DATA_VARIABLE} names (not set)"
        if folder is None
        else repr(str(folder))
    )
    hub = "" if preset.hub_id is None else f", nor could {preset.hub_id!r} be fetched from the Hub"
    return (
        f"{preset.title} (preset {preset.name!r}) is not in {place}{hub}. Get it from: {preset.download} Put there: "
        f"{preset.layout} Licence: {preset.licence}"
    )


# ---- the presets -----------------------------------------------------------------------------------------------------

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_CLASSES = tuple(sorted(name for group in CIFAR100_SUPERCLASS_NAMES.values() for name in group))
_CIFAR_LICENCE = "none stated; research use."
_CIFARN_LICENCE = "labels CC BY-NC 4.0; images none stated; research use."
_CIFARN_SOURCE = (
    "the labels, data/CIFAR-{classes}_human.pt of https://github.com/UCSC-REAL/cifar-10-100n; the images, "
    "https://www.cs.toronto.edu/~kriz/cifar.html."
)
_CLASS_FOLDERS = "train/<class>/<image> and test/<class>/<image>"
_AGNEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TREC_CLASSES = ("DESC", "ENTY", "HUM", "ABBR", "LOC", "NUM")
_TABLES = "train, validation and test tables (.parquet, .csv, .jsonl) with the columns text, {columns}."
_LOW_RESOURCE = "https://github.com/uds-lsv/transfer-distant-transformer-african, folder data/{language}_newsclass."


def _cifar10n(kind: str, title: str, column: str) -> Preset:
    return Preset(
        name=f"cifar10n_{kind}",
        title=f"CIFAR-10N, {title}",
        modality="image",
        folder="cifar10n",
        download=_CIFARN_SOURCE.format(classes=10),
        layout=f"train and test tables (.parquet) with the columns image, clean_label and, in train, {column}; "
        "recipes/vision/README.md has the lines that write them.",
        licence=_CIFARN_LICENCE,
        recipe="vision/cifar10n.yaml",
        num_labels=10,
        label_names=_CIFAR10_CLASSES,
        label_column=column,
        noise_map=CIFAR10_ASYMMETRIC,
    )


def _all_presets() -> tuple[Preset, ...]:
    return (
        Preset(
            name="cifar10",
            title="CIFAR-10, clean labels to inject noise into",
            modality="image",
            folder="cifar10",
            download="https://huggingface.co/datasets/uoft-cs/cifar10 or https://www.cs.toronto.edu/~kriz/cifar.html.",
            layout=f"train and test tables (.parquet) with the columns image and label, or {_CLASS_FOLDERS}.",
            licence=_CIFAR_LICENCE,
            recipe="vision/cifar10.yaml",
            num_labels=10,
            label_names=_CIFAR10_CLASSES,
            hub_id="uoft-cs/cifar10",
            hub_columns={"img": "image"},
            noise_map=CIFAR10_ASYMMETRIC,
        ),
        Preset(
            name="cifar100",
            title="CIFAR-100, clean labels to inject noise into",
            modality="image",
            folder="cifar100",
            download="https://huggingface.co/datasets/uoft-cs/cifar100 or https://www.cs.toronto.edu/~kriz/cifar.html.",
            layout=f"train and test tables (.parquet) with the columns image and label, or {_CLASS_FOLDERS}.",
            licence=_CIFAR_LICENCE,
            recipe="vision/cifar100.yaml",
            num_labels=100,
            label_names=_CIFAR100_CLASSES,
            hub_id="uoft-cs/cifar100",
            hub_columns={"img": "image", "fine_label": "label"},
            noise_map=cifar100_next_in_superclass(),
            superclasses=CIFAR100_SUPERCLASSES,
        ),
        _cifar10n("aggre", "majority of three annotators, 9 % wrong", "aggre_label"),
        _cifar10n("random1", "first annotator, 17 % wrong", "random_label1"),
        _cifar10n("random2", "second annotator, 18 % wrong", "random_label2"),
        _cifar10n("random3", "third annotator, 18 % wrong", "random_label3"),
        _cifar10n("worse", "a wrong annotator wherever there is one, 40 % wrong", "worse_label"),
        Preset(
            name="cifar100n",
            title="CIFAR-100N, human labels, 40 % wrong",
            modality="image",
            folder="cifar100n",
            download=_CIFARN_SOURCE.format(classes=100),
            layout="train and test tables (.parquet) with the columns image, clean_label and, in train, noisy_label; "
            "recipes/vision/README.md has the lines that write them.",
            licence=_CIFARN_LICENCE,
            recipe="vision/cifar100n.yaml",
            num_labels=100,
            label_names=_CIFAR100_CLASSES,
            label_column="noisy_label",
            noise_map=cifar100_next_in_superclass(),
            superclasses=CIFAR100_SUPERCLASSES,
        ),
        Preset(
            name="fashion_mnist",
            title="Fashion-MNIST, clean labels to inject noise into",
            modality="image",
            folder="fashion_mnist",
            download="https://huggingface.co/datasets/zalando-datasets/fashion_mnist or "
            "https://github.com/zalandoresearch/fashion-mnist.",
            layout=f"train and test tables (.parquet) with the columns image and label, or {_CLASS_FOLDERS}.",
            licence="MIT.",
            recipe="vision/fashion_mnist.yaml",
            num_labels=10,
            hub_id="zalando-datasets/fashion_mnist",
        ),
        Preset(
            name="animal10n",
            title="ANIMAL-10N, human labels, about 8 % wrong",
            modality="image",
            folder="animal10n",
            download="https://dm.kaist.ac.kr/datasets/animal-10n (a form to fill in).",
            layout=f"{_CLASS_FOLDERS}; the class is the digit that a file name of the source begins with.",
            licence="non-commercial research, as its form says.",
            recipe="vision/animal10n.yaml",
            num_labels=10,
            label_names=(
                "cat",
                "lynx",
                "wolf",
                "coyote",
                "cheetah",
                "jaguar",
                "chimpanzee",
                "orangutan",
                "hamster",
                "guinea_pig",
            ),
        ),
        Preset(
            name="clothing1m",
            title="Clothing1M, labels from the text around web images, about 38 % wrong",
            modality="image",
            folder="clothing1m",
            download="https://github.com/Cysu/noisy_label (to be requested from its authors).",
            layout="train.csv with the columns image (a path below the folder) and noisy_label (0..13), "
            "validation.csv and test.csv with image and clean_label, and the images.",
            licence="non-commercial research, as its authors ask.",
            recipe="vision/clothing1m.yaml",
            num_labels=14,
            label_names=(
                "T-Shirt",
                "Shirt",
                "Knitwear",
                "Chiffon",
                "Sweater",
                "Hoodie",
                "Windbreaker",
                "Jacket",
                "Downcoat",
                "Suit",
                "Shawl",
                "Dress",
                "Vest",
                "Underwear",
            ),
            label_column="noisy_label",
        ),
        Preset(
            name="food101n",
            title="Food-101N, labels from web searches, about 20 % wrong",
            modality="image",
            folder="food101n",
            download="training images from https://kuanghuei.github.io/Food-101N, test images from the test split of "
            "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101.",
            layout=f"{_CLASS_FOLDERS}.",
            licence="none stated for Food-101N; images of many owners, research use.",
            recipe="vision/food101n.yaml",
            num_labels=101,
        ),
        Preset(
            name="webvision",
            title="mini-WebVision, labels from web searches, the first 50 classes",
            modality="image",
            folder="webvision",
            download="https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html: the Google images of classes 0 "
            "to 49, and the validation images of these classes.",
            layout=f"{_CLASS_FOLDERS}, the validation images as test.",
            licence="non-commercial research and education, as its page says.",
            recipe="vision/webvision.yaml",
            num_labels=50,
        ),
        Preset(
            name="red_mini_imagenet",
            title="Red mini-ImageNet (Controlled Noisy Web Labels), 20, 40, 60 or 80 % web images with wrong labels",
            modality="image",
            folder="red_mini_imagenet",
            download="https://google.github.io/controlled-noisy-web-labels, the red split of one noise rate, with the "
            "clean images of mini-ImageNet.",
            layout=f"{_CLASS_FOLDERS}, the images of one noise rate as train and the validation images as test.",
            licence="annotations CC BY 4.0; images of many owners, research use.",
            recipe="vision/red_mini_imagenet.yaml",
            num_labels=100,
        ),
        Preset(
            name="agnews",
            title="AG News, clean labels to inject noise into",
            modality="text",
            folder="agnews",
            download="https://huggingface.co/datasets/fancyzhx/ag_news.",
            layout=_TABLES.format(columns="label"),
            licence="non-commercial research, as its authors ask.",
            recipe="text/agnews_injected.yaml",
            num_labels=4,
            label_names=_AGNEWS_CLASSES,
            input_column="text",
            hub_id="fancyzhx/ag_news",
        ),
        Preset(
            name="agnews_human",
            title="NoisyAG-News, human labels, 20 % wrong",
            modality="text",
            folder="agnews_human",
            download="https://github.com/hhf-hd/NoisyAG-News.",
            layout=_TABLES.format(columns="clean_label and, in train, noisy_label"),
            licence="MIT (its data were CC BY-NC-SA 4.0 for a time); the texts are for research.",
            recipe="text/agnews_human.yaml",
            num_labels=4,
            label_names=_AGNEWS_CLASSES,
            label_column="noisy_label",
            input_column="text",
        ),
        Preset(
            name="trec",
            title="TREC-6, clean labels to inject noise into",
            modality="text",
            folder="trec",
            download="https://huggingface.co/datasets/CogComp/trec or https://cogcomp.seas.upenn.edu/Data/QA/QC/.",
            layout=_TABLES.format(columns="label"),
            licence="none stated; research use.",
            recipe="text/trec_injected.yaml",
            num_labels=6,
            input_column="text",
            hub_id="CogComp/trec",
            # The main branch holds a loading script, which datasets no longer runs.
            hub_revision="refs/convert/parquet",
            hub_columns={"coarse_label": "label"},
        ),
        Preset(
            name="trec_weak",
            title="TREC-6, labels from rules, 46 % wrong",
            modality="text",
            folder="trec_weak",
            download="texts and clean labels from https://github.com/awasthiabhijeet/Learning-From-Rules (data/TREC), "
            "rule labels from https://github.com/yueyu1030/COSINE (data/trec).",
            layout=_TABLES.format(columns="clean_label and, in train, noisy_label"),
            licence="repositories Apache-2.0 and MIT; none stated for the questions.",
            recipe="text/trec_weak.yaml",
            num_labels=6,
            label_names=_TREC_CLASSES,
            label_column="noisy_label",
            input_column="text",
        ),
        Preset(
            name="hausa_topics",
            title="Hausa news topics, labels from word lists, 50 % wrong",
            modality="text",
            folder="hausa_topics",
            download=_LOW_RESOURCE.format(language="hausa"),
            layout=_TABLES.format(columns="clean_label and, in train, noisy_label"),
            licence="none stated for the data; research use.",
            recipe="text/hausa_topics.yaml",
            num_labels=5,
            label_names=("Africa", "Health", "Nigeria", "Politics", "World"),
            label_column="noisy_label",
            input_column="text",
            metric="macro_f1",
        ),
        Preset(
            name="yoruba_topics",
            title="Yoruba news topics, labels from word lists, 33 % wrong",
            modality="text",
            folder="yoruba_topics",
            download=_LOW_RESOURCE.format(language="yoruba"),
            layout=_TABLES.format(columns="clean_label and, in train, noisy_label"),
            licence="none stated for the data; research use.",
            recipe="text/yoruba_topics.yaml",
            num_labels=7,
            label_column="noisy_label",
            input_column="text",
            metric="macro_f1",
        ),
        Preset(
            name="wrench",
            title="A text dataset of the WRENCH benchmark, one weak label per rule",
            modality="text",
            folder="wrench",
            download="https://github.com/JieyuZ2/wrench (its datasets.zip: youtube, sms, imdb, agnews, ...).",
            layout="label.json, train.json, valid.json and test.json of one dataset, as they come.",
            licence="benchmark Apache-2.0; each dataset its own.",
            recipe="text/wrench.yaml",
            label_column="weak_label_*",
            input_column="text",
        ),
        Preset(
            name="mr_polarity",
            title="Movie review polarity, clean labels to inject noise into",
            modality="text",
            folder="mr_polarity",
            download="https://huggingface.co/datasets/cornell-movie-review-data/rotten_tomatoes.",
            layout=_TABLES.format(columns="label"),
            licence="none stated; research use.",
            recipe="text/mr_polarity.yaml",
            num_labels=2,
            label_names=("negative", "positive"),
            input_column="text",
            hub_id="cornell-movie-review-data/rotten_tomatoes",
        ),
        Preset(
            name="sms_spam",
            title="SMS spam, clean labels to inject noise into",
            modality="text",
            folder="sms_spam",
            download="https://archive.ics.uci.edu/dataset/228/sms+spam+collection.",
            layout=_TABLES.format(columns="label"),
            licence="CC BY 4.0, as the UCI archive lists it.",
            recipe="text/sms_spam.yaml",
            num_labels=2,
            label_names=("ham", "spam"),
            input_column="text",
            metric="macro_f1",
        ),
    )


#: Every preset by its name.
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _all_presets()})
