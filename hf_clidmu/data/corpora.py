"""One shape for every dataset: `load_corpus` reads anything `datasets` reads and returns a `Corpus`.

All splits of a corpus have the same columns, whatever the source called them: the input (`image` or `text`), `label`
(the given, possibly wrong one) and, where known, `clean_label`, which serves reporting alone.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ._rows import name_rows, quote
from .labels import (
    LabelSpace,
    RawLabels,
    absent_classes,
    column_values,
    label_space,
    read_labels,
    require_labels,
    stratified_sample,
)
from .noise import UNKNOWN, IntArray, NoiseRecord, measure_noise, symmetric_noise
from .sources import SPLIT_NAMES, load_source


if TYPE_CHECKING:
    from datasets import Dataset

    from .sources import Source

Modality = Literal["image", "text"]

LABEL_COLUMNS = ("noisy_label", "label", "labels", "target", "class", "category")
CLEAN_LABEL_COLUMN = "clean_label"
IMAGE_COLUMNS = ("image", "img", "pixels", "image_path", "image_file", "file_name", "filename", "file", "path")
TEXT_COLUMNS = ("text", "sentence", "content", "review", "tweet", "headline", "document", "question", "title")
_DIGITS_TEST_SIZE = 0.2


@dataclass
class Corpus:
    """A classification dataset in one shape.

    Attributes:
        name: Short name for tables and cards.
        modality: `"image"` or `"text"`.
        train: Training split. Columns: the input column, `label` (`ClassLabel`, the given label) and, when known,
            `clean_label` (`ClassLabel`, -1 where unknown).
        validation: Validation split with the same columns, or `None`.
        test: Test split with the same columns, or `None`.
        label_names: Class names in index order.
        input_column: `"image"` or `"text"`.
        noise: What is known about the noise of the training labels: the record of the injected noise, or a measured
            one where the source has clean training labels; else `None`.
        source: Where the data came from.
    """

    name: str
    modality: Modality
    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    input_column: str
    noise: NoiseRecord | None
    source: str

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to name, as model configurations want it."""
        return dict(enumerate(self.label_names))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to index."""
        return {name: index for index, name in enumerate(self.label_names)}


@dataclass
class _Split:
    """A split on its way to its final columns.

    `data` keeps all rows of the source, memory-mapped where it was; `rows` says which of them belong to the split, and
    the labels run over those.
    """

    data: Dataset
    rows: IntArray
    label: IntArray
    clean: IntArray | None

    def take(self, chosen: IntArray) -> _Split:
        clean = None if self.clean is None else self.clean[chosen]
        return _Split(self.data, self.rows[chosen], self.label[chosen], clean)


def load_corpus(
    source: Source,
    *,
    label_column: str | None = None,
    clean_label_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    noise: Literal["symmetric"] | None = None,
    noise_rate: float = 0.0,
    noise_seed: int = 0,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    test_size: float | None = None,
    max_train_samples: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    config_name: str | None = None,
) -> Corpus:
    """Load a dataset for single-label classification of images or texts.

    The order of the steps: load, find the columns, map labels to classes, hold out a test split, draw
    `max_train_samples`, inject noise into the training labels. Every step is deterministic in the arguments.

    Classes come from the training labels: a `ClassLabel` keeps its names, integers become 0..C-1 in numerical order
    (gaps are closed, the names are the numbers), class names are sorted. In the validation and test splits a missing
    label (`None` or -1) is replaced by the clean one. A validation or test split that was not asked for by name and
    has no labels at all is left out with a warning.

    Args:
        source: `"digits"` (8x8 scans that come with scikit-learn, no download); a folder with `train`, `validation`,
            `test` files (parquet, csv, tsv, json, jsonl, arrow); a folder of class folders with images, optionally
            inside `train/`, `validation/`, `test/`; one such file; a dict split -> file, files or `Dataset`; a folder
            written by `save_to_disk`; a `datasets.Dataset` or `DatasetDict`; or the id of a dataset on the Hub.
            A folder called "digits" is reached as "./digits".
        label_column: Column of the given labels. Default: the first of `noisy_label`, `label`, `labels`, `target`,
            `class`, `category`; else the only other column with "label" in its name; else `clean_label`.
        clean_label_column: Column of the true labels, for reporting. Default: `clean_label` where it exists.
        image_column: Column of the images (`datasets.Image`, file paths, pixel arrays). Default: the only image
            column.
        text_column: Column of the texts. Default: `text`, `sentence`, ...; else the only text column that is left.
        noise: `"symmetric"` injects label noise into the training split. It starts from the clean labels when the
            source has them for the training split (a given noisy column is then ignored in all splits), else from
            the given labels, which then count as clean. `None` (default) leaves the labels alone.
        noise_rate: Share of training labels to make wrong, in [0, 1).
        noise_seed: Seed of the injection.
        train_split: Name of the training split. Default: `train`, or the only split.
        validation_split: Name of the validation split. Default: `validation`, `valid`, `val`, `dev` or `eval`.
        test_split: Name of the test split. Default: `test` or `testing`.
        test_size: Share of the training split to hold out as test split, in [0, 1), stratified; the held-out rows are
            labelled with their clean label where it is known. Only for sources without a test split. Default: 0.2
            for `"digits"`, where the split does not depend on `seed`, else no test split.
        max_train_samples: Keep at most so many training rows, drawn stratified by label.
        seed: Seed of the hold-out and of `max_train_samples`.
        revision: Git revision of a Hub dataset.
        config_name: Configuration (subset) of a Hub dataset.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: The source, or an image file named in it, does not exist, or the Hub cannot be reached.
        TypeError: `source`, or a setting, is of a wrong type.
        ValueError: Columns or splits are missing or ambiguous, labels or texts are unusable (the message names
            column, row and value), or a setting is out of range.

    Warns:
        UserWarning: A class has no training row, or an unlabelled split is left out.
    """
    _check_settings(noise, noise_rate, test_size, max_train_samples, seed)
    loaded = load_source(source, config_name=config_name, revision=revision)
    is_digits = isinstance(source, str) and source == "digits"
    if is_digits:
        test_size, holdout_seed = (_DIGITS_TEST_SIZE if test_size is None else test_size), 0
    else:
        holdout_seed = seed
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    splits = _pick_splits(loaded.splits, wanted)
    if test_size is not None and "test" in splits:
        raise ValueError(
            f"test_size={test_size} asks for a hold-out, but {loaded.origin} has a test split. Leave test_size out to "
            "use that split, or drop the split to hold out training rows instead."
        )

    train = splits["train"]
    clean_column = _find_clean_column(splits, clean_label_column)
    modality, found_input = _find_input_column(train, image_column, text_column, (label_column, clean_column))
    found_label = _find_label_column(train, label_column, clean_column, found_input, clean_wanted=noise is not None)

    given = {role: _read(split, found_label, role) for role, split in splits.items()}
    clean = {role: _read(split, clean_column, role) for role, split in splits.items()}
    given_train = given["train"]
    if given_train is None:
        raise ValueError(_no_column(train, "label_column", found_label))
    require_labels(given_train)
    space = label_space(given_train, clean["train"])

    tables: dict[str, _Split] = {}
    for role, split in splits.items():
        labels = _encode(role, given[role], clean[role], space, len(split), optional=wanted[role] is None)
        if labels is not None:
            inputs = _input_table(split, role, modality, found_input, loaded.base_dir)
            tables[role] = _Split(inputs, np.arange(len(split)), *labels)

    if test_size:
        tables["train"], tables["test"] = _hold_out(tables["train"], test_size, holdout_seed)
    if max_train_samples is not None and max_train_samples < len(tables["train"].label):
        tables["train"] = tables["train"].take(stratified_sample(tables["train"].label, max_train_samples, seed))
    record = _apply_noise(tables, noise, noise_rate, noise_seed, space)

    absent = absent_classes(tables["train"].label, space.names)
    if absent:
        warnings.warn(
            f"{loaded.origin}: no training row is labelled {quote(absent)}. Training works, but the model cannot "
            f"learn {'this class' if len(absent) == 1 else 'these classes'} from the given labels.",
            stacklevel=2,
        )
    names = list(space.names)
    finished = {role: _finish(table, names) for role, table in tables.items()}
    return Corpus(
        name=loaded.name,
        modality=modality,
        train=finished["train"],
        validation=finished.get("validation"),
        test=finished.get("test"),
        label_names=names,
        input_column=modality,
        noise=record,
        source=loaded.origin,
    )


def _check_settings(
    noise: object, noise_rate: float, test_size: float | None, max_train_samples: object, seed: object
) -> None:
    if noise not in (None, "symmetric"):
        raise ValueError(f'noise must be "symmetric" or None, got {noise!r}.')
    if noise is None and noise_rate:
        raise ValueError(f'noise_rate={noise_rate} has no effect without noise="symmetric".')
    if test_size is not None and not (math.isfinite(test_size) and 0 <= test_size < 1):
        raise ValueError(f"test_size must be in [0, 1), the share of training rows to hold out; got {test_size!r}.")
    if max_train_samples is not None:
        if isinstance(max_train_samples, bool) or not isinstance(max_train_samples, int):
            raise TypeError(f"max_train_samples must be an integer or None, got {max_train_samples!r}.")
        if max_train_samples < 1:
            raise ValueError(f"max_train_samples must be at least 1, got {max_train_samples}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")


def _pick_splits(splits: dict[str, Dataset], wanted: dict[str, str | None]) -> dict[str, Dataset]:
    """Assign splits to the roles train, validation and test: first those asked for, then those named like a role."""
    picked: dict[str, str] = {}
    for role, name in wanted.items():
        if name is None:
            continue
        if name not in splits:
            raise ValueError(f"{role}_split={name!r} does not exist; the splits are {quote(list(splits))}.")
        rival = next((other for other, taken in picked.items() if taken == name), None)
        if rival is not None:
            raise ValueError(f"Split {name!r} cannot serve as both {rival} and {role}.")
        picked[role] = name
    free = [name for name in splits if name not in picked.values()]
    for role in wanted:
        candidates = [alias for alias in SPLIT_NAMES[role] if alias in free]
        if role == "train" and not candidates and len(splits) == 1:
            candidates = free
        if role not in picked and candidates:
            picked[role] = candidates[0]
    if "train" not in picked:
        taken_by = "".join(f", {name!r} serves as {role}" for role, name in picked.items())
        raise ValueError(f"There is no training split among {quote(list(splits))}{taken_by}: name it with train_split.")
    for role, name in picked.items():
        if len(splits[name]) == 0:
            raise ValueError(f"The {role} split ({name!r}) is empty.")
    return {role: splits[name] for role, name in picked.items()}


def _find_clean_column(splits: dict[str, Dataset], wanted: str | None) -> str | None:
    name = CLEAN_LABEL_COLUMN if wanted is None else wanted
    if any(name in split.column_names for split in splits.values()):
        return name
    if wanted is not None:
        raise ValueError(_no_column(splits["train"], "clean_label_column", wanted))
    return None


def _find_label_column(
    train: Dataset, wanted: str | None, clean_column: str | None, input_column: str, *, clean_wanted: bool
) -> str:
    columns = train.column_names
    if wanted is not None and wanted not in columns:
        raise ValueError(_no_column(train, "label_column", wanted))
    if clean_wanted and clean_column is not None and clean_column in columns:
        return clean_column
    if wanted is not None:
        return wanted
    for name in LABEL_COLUMNS:
        if name in columns and name not in (clean_column, input_column):
            return name
    plausible = [
        name
        for name in columns
        if "label" in name.lower() and name not in (clean_column, input_column) and _may_hold_classes(train, name)
    ]
    if len(plausible) > 1:
        raise ValueError(
            f"Several columns may hold the labels to train on: {quote(plausible)}. Choose one with label_column, for "
            f"instance label_column={plausible[0]!r}."
        )
    if plausible:
        return plausible[0]
    if clean_column is not None and clean_column in columns:
        return clean_column
    raise ValueError(
        f"No label column found: looked for {quote(LABEL_COLUMNS)}. Available columns: {quote(columns)}. Name it with "
        "label_column."
    )


def _may_hold_classes(dataset: Dataset, column: str) -> bool:
    from datasets import ClassLabel, Value

    feature = dataset.features[column]
    return isinstance(feature, ClassLabel) or (
        isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string", "bool"))
    )


def _find_input_column(
    train: Dataset, image_column: str | None, text_column: str | None, label_columns: Sequence[str | None]
) -> tuple[Modality, str]:
    from datasets import Image

    if image_column is not None and text_column is not None:
        raise ValueError(f"Pass image_column={image_column!r} or text_column={text_column!r}, not both.")
    columns = train.column_names
    for argument, name in (("image_column", image_column), ("text_column", text_column)):
        if name is not None and name not in columns:
            raise ValueError(_no_column(train, argument, name))
    if image_column is not None:
        return "image", image_column
    if text_column is not None:
        return "text", text_column

    images = [name for name in columns if isinstance(train.features[name], Image)]
    if not images:
        images = [name for name in IMAGE_COLUMNS[:3] if name in columns]
        if not images and not any(name in columns for name in TEXT_COLUMNS):
            images = [name for name in IMAGE_COLUMNS[3:] if name in columns][:1]
    texts = [name for name in TEXT_COLUMNS if name in columns and _is_text(train, name) and name not in label_columns]
    if len(images) > 1:
        raise ValueError(f"Several columns hold images: {quote(images)}. Choose one with image_column.")
    if images and texts:
        raise ValueError(
            f"There are images ({images[0]!r}) and texts ({quote(texts)}): choose with image_column or text_column."
        )
    if images:
        return "image", images[0]
    if texts:
        return "text", texts[0]
    rest = [
        name
        for name in columns
        if _is_text(train, name) and name not in (*label_columns, *LABEL_COLUMNS) and "label" not in name.lower()
    ]
    if len(rest) == 1:
        return "text", rest[0]
    raise ValueError(
        f"{'Several columns may hold' if rest else 'No column was found for'} the input. Available columns: "
        f"{quote(columns)}. Name the one to classify with image_column or text_column."
    )


def _is_text(dataset: Dataset, column: str) -> bool:
    return getattr(dataset.features[column], "dtype", None) in ("string", "large_string", "string_view")


def _no_column(dataset: Dataset, argument: str, name: str) -> str:
    return f"{argument}={name!r} is no column of the data. Available columns: {quote(dataset.column_names)}."


def _read(split: Dataset, column: str | None, role: str) -> RawLabels | None:
    if column is None or column not in split.column_names:
        return None
    return read_labels(split, column, role)


def _encode(
    role: str, given: RawLabels | None, clean: RawLabels | None, space: LabelSpace, rows: int, *, optional: bool
) -> tuple[IntArray, IntArray | None] | None:
    """Map the labels of a split to classes; `None` when an optional split has no labels at all."""
    clean_N = None if clean is None else space.encode(clean)
    if role == "train":
        assert given is not None  # load_corpus has seen to it
        return space.encode(given), clean_N
    label_N = np.full(rows, UNKNOWN, dtype=np.int64) if given is None else space.encode(given)
    if clean_N is not None:
        label_N = np.where(label_N == UNKNOWN, clean_N, label_N)
    missing = np.flatnonzero(label_N == UNKNOWN)
    if missing.size == rows and optional:
        warnings.warn(f"The {role} split has no labels and is left out.", stacklevel=3)
        return None
    if missing.size:
        where = " or ".join(labels.where for labels in (given, clean) if labels is not None)
        raise ValueError(
            f"{where or f'the {role} split'}, {name_rows(missing.tolist())}: no label. Drop these rows, fill the "
            "labels in, or give the clean ones with clean_label_column."
        )
    return label_N, clean_N


def _hold_out(train: _Split, test_size: float, seed: int) -> tuple[_Split, _Split]:
    rows = len(train.label)
    size = round(test_size * rows)
    if not 0 < size < rows:
        raise ValueError(f"test_size={test_size} of {rows} training rows holds out {size}: nothing is left to use.")
    held_out = stratified_sample(train.label, size, seed)
    kept = np.setdiff1d(np.arange(rows), held_out)
    test = train.take(held_out)
    if test.clean is not None:
        # A test score against labels that are known to be wrong would mislead.
        test.label = np.where(test.clean == UNKNOWN, test.label, test.clean)
    return train.take(kept), test


def _apply_noise(
    tables: dict[str, _Split], noise: str | None, rate: float, seed: int, space: LabelSpace
) -> NoiseRecord | None:
    train = tables["train"]
    num_classes = len(space.names)
    if noise is None:
        if train.clean is None or not (train.clean != UNKNOWN).any():
            return None
        return measure_noise(train.clean, train.label, num_classes)
    for table in tables.values():
        # Injected noise starts from labels taken as clean: the same columns then exist in every split.
        table.clean = table.label if table.clean is None else np.where(table.clean < 0, table.label, table.clean)
    train.label, record = symmetric_noise(train.label, num_classes, rate, seed)
    return record


def _finish(table: _Split, names: list[str]) -> Dataset:
    from datasets import ClassLabel

    feature = ClassLabel(names=names)
    dataset = _without_indices(table.data)
    total = len(dataset)
    for column, values in (("label", table.label), ("clean_label", table.clean)):
        if values is not None:
            # Columns first, rows after: adding a column to selected rows would copy every image.
            full = np.full(total, UNKNOWN, dtype=np.int64)
            full[table.rows] = values
            dataset = dataset.add_column(column, full, feature=feature)
    return dataset if len(table.rows) == total else dataset.select(table.rows)


def _without_indices(dataset: Dataset) -> Dataset:
    # add_column would do this by writing a cache file, beside the data for a folder written by save_to_disk.
    return dataset if dataset._indices is None else dataset.flatten_indices(keep_in_memory=True)


def _input_table(split: Dataset, role: str, modality: Modality, column: str, base_dir: Path | None) -> Dataset:
    """Keep the input column alone, under its standard name and in its standard type."""
    if column not in split.column_names:
        argument = "image_column" if modality == "image" else "text_column"
        raise ValueError(f"In the {role} split, {_no_column(split, argument, column)}")
    inputs = split.with_format(None).select_columns([column])
    if column != modality:
        inputs = inputs.rename_column(column, modality)
    if modality == "text":
        check_texts(inputs, "text", f"column {column!r} of the {role} split", argument="text_column")
        return inputs
    return _as_images(inputs, f"column {column!r} of the {role} split", base_dir)


def check_texts(dataset: Dataset, column: str, where: str, argument: str) -> list[str]:
    """Return the texts of a column, refusing rows without one.

    Args:
        dataset: The split.
        column: The column.
        where: The column and split, for messages.
        argument: The argument that names another column, for messages.

    Returns:
        The texts.

    Raises:
        ValueError: The column holds no text, or rows of it are `None` or empty.
    """
    if not _is_text(dataset, column):
        raise ValueError(
            f"{where} holds {dataset.features[column]}, not text. Name the text column with {argument}; available "
            f"columns: {quote(dataset.column_names)}."
        )
    texts = column_values(dataset, column)
    empty = [row for row, text in enumerate(texts) if text is None or not text.strip()]
    if empty:
        raise ValueError(
            f"{where}, {name_rows(empty)}: the text is missing or empty. Drop such rows first, for instance with "
            f"dataset.filter(lambda row: row[{column!r}] and row[{column!r}].strip())."
        )
    return texts


def _as_images(inputs: Dataset, where: str, base_dir: Path | None) -> Dataset:
    from datasets import Image

    feature = inputs.features["image"]
    if isinstance(feature, Image):
        return inputs if feature.decode else inputs.cast_column("image", Image(mode=feature.mode))
    if _is_text(inputs, "image"):
        return _image_files(column_values(inputs, "image"), where, base_dir)
    if isinstance(feature, dict) and feature.keys() == {"bytes", "path"}:
        return inputs.cast_column("image", Image())
    if not _is_nested_numbers(feature):
        raise ValueError(
            f"{where} holds {feature}: images must be a datasets.Image column, file paths or pixel arrays "
            "(height x width or height x width x channels). Name the image column with image_column."
        )
    return _image_arrays(inputs, where)


def _image_files(paths: list[Any], where: str, base_dir: Path | None) -> Dataset:
    from datasets import Dataset, Features, Image, Value

    resolved: list[str | None] = []
    missing: list[int] = []
    for row, path in enumerate(paths):
        # Paths in a table are relative to the table's folder, or to the working folder.
        places = [] if not path else [path] if base_dir is None else [path, os.path.join(base_dir, path)]
        found = path if path and "://" in path else next((place for place in places if os.path.isfile(place)), None)
        resolved.append(found)
        if found is None:
            missing.append(row)
    if missing:
        beside = "" if base_dir is None else f" or {str(base_dir)!r}"
        raise FileNotFoundError(
            f"{where}, {name_rows(missing)}: no such image file (the first is {paths[missing[0]]!r}); looked in "
            f"{str(Path.cwd())!r}{beside}."
        )
    files = Dataset.from_dict({"image": resolved}, features=Features({"image": Value("string")}))
    return files.cast_column("image", Image())


def _image_arrays(inputs: Dataset, where: str) -> Dataset:
    from datasets import Dataset, Features, Image

    from .images import as_pil_image

    images = []
    for row, value in enumerate(column_values(inputs, "image")):
        try:
            images.append(as_pil_image(value))
        except ValueError as error:
            raise ValueError(f"{where}, row {row}: {error}") from error
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


def _is_nested_numbers(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None)
    if getattr(feature, "shape", None) is not None:  # Array2D, Array3D
        return str(dtype).startswith(("int", "uint", "float"))
    depth = 0
    while hasattr(feature, "feature"):  # List, LargeList
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float"))
