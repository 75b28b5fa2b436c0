"""Which columns of a source hold the inputs, the given and the clean labels, and inputs in their standard type.

A column that is not named is found by its name or type; where several would do, nothing is guessed and the error lists
them.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._rows import name_rows, quote
from .labels import column_values


if TYPE_CHECKING:
    from datasets import Dataset

Modality = Literal["image", "text"]

LABEL_COLUMNS = ("noisy_label", "label", "labels", "target", "class", "category")
CLEAN_LABEL_COLUMN = "clean_label"
IMAGE_COLUMNS = ("image", "img", "pixels", "image_path", "image_file", "file_name", "filename", "file", "path")
TEXT_COLUMNS = ("text", "sentence", "content", "review", "tweet", "headline", "document", "question", "title")


def find_clean_column(splits: dict[str, Dataset], wanted: str | None) -> str | None:
    """Find the column of the clean labels: the one asked for, else `clean_label` in any split, else `None`.

    Raises:
        ValueError: The column asked for is in no split.
    """
    name = CLEAN_LABEL_COLUMN if wanted is None else wanted
    if any(name in split.column_names for split in splits.values()):
        return name
    if wanted is not None:
        raise ValueError(no_column(splits["train"], "clean_label_column", wanted))
    return None


def named_columns(train: Dataset, wanted: str | Sequence[str]) -> list[str]:
    """Find the label columns that were asked for: one, or one per annotator.

    Args:
        train: The training split.
        wanted: A name; several as a sequence or with commas between them; or a pattern such as `"random_label*"`.

    Returns:
        The names, at least one, each once.

    Raises:
        ValueError: There is no such column, or one is named twice.
    """
    columns = train.column_names
    if isinstance(wanted, str):
        if wanted in columns:  # whatever signs its name has
            return [wanted]
        wanted = [part.strip() for part in wanted.split(",")]
    named: list[str] = []
    for entry in wanted:
        matches = [entry] if entry in columns else fnmatch.filter(columns, entry) if "*" in entry else []
        if not matches:
            raise ValueError(no_column(train, "label_column", entry))
        named += matches
    if not named or len(set(named)) < len(named):
        raise ValueError(
            f"label_column must name at least one column, and none of them twice; it names {quote(named)}."
        )
    return named


def find_label_columns(
    train: Dataset, named: list[str] | None, clean_column: str | None, input_column: str, *, clean_wanted: bool
) -> list[str]:
    """Find the columns of the given labels: those that were asked for, else one.

    Args:
        train: The training split.
        named: See `named_columns`; `None` finds one.
        clean_column: The column of the clean labels, if there is one.
        input_column: The column of the inputs, which holds no labels.
        clean_wanted: Whether the clean labels, where there are some, serve as given ones.

    Returns:
        The names, at least one.

    Raises:
        ValueError: None was asked for, and none, or several, are found.
    """
    columns = train.column_names
    if clean_wanted and clean_column is not None and clean_column in columns:
        return [clean_column]
    if named is not None:
        return named
    for name in LABEL_COLUMNS:
        if name in columns and name not in (clean_column, input_column):
            return [name]
    plausible = [
        name
        for name in columns
        if "label" in name.lower() and name not in (clean_column, input_column) and _may_hold_classes(train, name)
    ]
    if len(plausible) > 1:
        raise ValueError(
            f"Several columns may hold the labels to train on: {quote(plausible)}. Choose one with label_column, for "
            f"instance label_column={plausible[0]!r}, or name several for a majority vote."
        )
    if plausible:
        return plausible
    if clean_column is not None and clean_column in columns:
        return [clean_column]
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


def find_input_column(
    train: Dataset, image_column: str | None, text_column: str | None, label_columns: Sequence[str | None]
) -> tuple[Modality, str]:
    """Find the column to classify.

    Args:
        train: The training split.
        image_column: The column of images, if it was named.
        text_column: The column of texts, if it was named.
        label_columns: Columns that hold labels, so no inputs.

    Returns:
        The modality and the name of the column.

    Raises:
        ValueError: A column asked for does not exist, both are asked for, or none, or several, are found.
    """
    from datasets import Image

    if image_column is not None and text_column is not None:
        raise ValueError(f"Pass image_column={image_column!r} or text_column={text_column!r}, not both.")
    columns = train.column_names
    for argument, name in (("image_column", image_column), ("text_column", text_column)):
        if name is not None and name not in columns:
            raise ValueError(no_column(train, argument, name))
    if image_column is not None:
        return "image", image_column
    if text_column is not None:
        return "text", text_column

    images = [name for name in columns if isinstance(train.features[name], Image)]
    if not images:
        images = [name for name in IMAGE_COLUMNS[:3] if name in columns]
        if not images and not any(name in columns for name in TEXT_COLUMNS):
            images = [name for name in IMAGE_COLUMNS[3:] if name in columns][:1]
    texts = [name for name in TEXT_COLUMNS if name in columns and is_text(train, name) and name not in label_columns]
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
        if is_text(train, name) and name not in (*label_columns, *LABEL_COLUMNS) and "label" not in name.lower()
    ]
    if len(rest) == 1:
        return "text", rest[0]
    raise ValueError(
        f"{'Several columns may hold' if rest else 'No column was found for'} the input. Available columns: "
        f"{quote(columns)}. Name the one to classify with image_column or text_column."
    )


def is_text(dataset: Dataset, column: str) -> bool:
    """Whether a column holds strings."""
    return getattr(dataset.features[column], "dtype", None) in ("string", "large_string", "string_view")


def no_column(dataset: Dataset, argument: str, name: str) -> str:
    """The message that a column asked for does not exist."""
    return f"{argument}={name!r} is no column of the data. Available columns: {quote(dataset.column_names)}."


def input_table(split: Dataset, role: str, modality: Modality, column: str, base_dir: Path | None) -> Dataset:
    """Keep the input column alone, under its standard name (`image` or `text`) and in its standard type.

    Args:
        split: Any split.
        role: Its role, for messages.
        modality: Of the corpus.
        column: The input column.
        base_dir: Folder that image paths in the table are relative to.

    Returns:
        The same rows with one column.

    Raises:
        FileNotFoundError: An image file does not exist.
        ValueError: The split lacks the column, or holds something else in it.
    """
    if column not in split.column_names:
        argument = "image_column" if modality == "image" else "text_column"
        raise ValueError(f"In the {role} split, {no_column(split, argument, column)}")
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
    if not is_text(dataset, column):
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
    if is_text(inputs, "image"):
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
