"""From anything that names data to `datasets.Dataset` splits, unchanged: no column is interpreted here.

Splits are read one by one, because `datasets` demands equal columns of splits read together, while a clean test file
often lacks the noisy columns of the training file.
"""

from __future__ import annotations

import glob
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._rows import quote


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    SplitSource: TypeAlias = Dataset | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    Source: TypeAlias = str | os.PathLike[str] | Dataset | DatasetDict | Mapping[str, SplitSource]

#: Names under which a split is looked for, in order.
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_ACCEPTED = (
    'Accepted are: "digits" (built in); a folder with train/validation/test files (.parquet, .csv, .tsv, .json, '
    ".jsonl, .arrow); a folder of class folders with images; a data file; a dict split -> file; a folder written by "
    "save_to_disk; a datasets.Dataset, DatasetDict or dict of Datasets; the id of a dataset on the Hub"
)


@dataclass(frozen=True)
class LoadedSource:
    """Splits as found, and where they came from.

    Attributes:
        splits: Dataset per split, under the names the source uses.
        name: A short name for tables and cards.
        origin: Where the data came from, in words or as a path or id.
        base_dir: Folder against which relative file paths in the data are resolved.
    """

    splits: dict[str, Dataset]
    name: str
    origin: str
    base_dir: Path | None = None


def load_source(source: Source, *, config_name: str | None = None, revision: str | None = None) -> LoadedSource:
    """Load every split of a source.

    Args:
        source: See `load_corpus`.
        config_name: Configuration of a Hub dataset.
        revision: Git revision of a Hub dataset.

    Returns:
        The splits.

    Raises:
        FileNotFoundError: The path does not exist, holds no data, or the Hub dataset cannot be reached.
        TypeError: `source` is of no accepted type.
        ValueError: A file cannot be parsed or the layout of a folder is not understood.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(source, Dataset):
        return LoadedSource({"train": source}, _dataset_name(source), "a datasets.Dataset in memory")
    if isinstance(source, Mapping):
        return _from_mapping(source, "DatasetDict" if isinstance(source, DatasetDict) else "dict")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"Cannot load data from {type(source).__name__}. {_ACCEPTED}.{_streaming_hint(source)}")
    if source == "digits":
        return LoadedSource({"train": _digits()}, "digits", "scikit-learn load_digits")
    path = Path(source).expanduser()
    if path.is_dir():
        if config_name is not None or revision is not None:
            raise ValueError(f"config_name and revision are for datasets on the Hub, but {str(path)!r} is a folder.")
        return _from_folder(path)
    if path.is_file():
        return LoadedSource({"train": _read_files([path])}, path.stem, str(path), path.parent)
    if _looks_like_path(source):
        raise FileNotFoundError(f"No file or folder at {str(path)!r} (working folder: {Path.cwd()}). {_ACCEPTED}.")
    return _from_hub(str(source), config_name, revision)


def _from_mapping(source: Mapping[Any, Any], kind: str) -> LoadedSource:
    from datasets import Dataset

    splits: dict[str, Dataset] = {}
    base_dir = None
    names: list[str] = []
    for split, value in source.items():
        key = str(split)
        if isinstance(value, Dataset):
            splits[key] = value
            names.append(_dataset_name(value))
            continue
        entries = [value] if isinstance(value, (str, os.PathLike)) else value
        if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, os.PathLike)) for entry in entries):
            raise TypeError(
                f"Split {key!r} is a {type(value).__name__}; it must be a datasets.Dataset, a file, or a list of "
                f"files.{_streaming_hint(value)}"
            )
        paths = [Path(entry).expanduser() for entry in entries]
        splits[key] = _read_files(paths)
        base_dir = base_dir or paths[0].parent
        names.append(paths[0].parent.name or paths[0].stem)
    if not splits:
        raise ValueError(f"The {kind} of splits is empty.")
    origin = f"a {kind} in memory" if base_dir is None else f"files in {base_dir}"
    return LoadedSource(splits, names[0], origin, base_dir)


def _from_folder(folder: Path) -> LoadedSource:
    from datasets import Dataset, DatasetDict

    name = folder.resolve().name
    if (folder / "dataset_dict.json").is_file():
        return LoadedSource(
            {str(split): dataset for split, dataset in DatasetDict.load_from_disk(str(folder)).items()},
            name,
            str(folder),
            folder,
        )
    if (folder / "state.json").is_file():
        return LoadedSource({"train": Dataset.load_from_disk(str(folder))}, name, str(folder), folder)
    if (folder / "label.json").is_file() and (wrench := _wrench_folder(folder)):
        return LoadedSource(wrench, name, str(folder), folder)
    for place in (folder, folder / "data"):
        files = _split_files(place)
        if files:
            return LoadedSource({split: _read_files(paths) for split, paths in files.items()}, name, str(folder), place)
    splits = _image_folder(folder)
    if splits:
        return LoadedSource(splits, name, str(folder), folder)
    found = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    raise FileNotFoundError(
        f"{str(folder)!r} holds no data that is understood. Found: {quote(found[:10])}{' ...' if found[10:] else ''}. "
        "Expected train/validation/test files (.parquet, .csv, .tsv, .json, .jsonl, .arrow), or one folder of images "
        "per class, optionally inside train/, validation/ and test/."
    )


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Group data files by split: `train.parquet`, or shards such as `train-00000-of-00002.parquet`.

    Files of another name are left alone (further splits that must be asked for), unless there is exactly one file.
    """
    if not folder.is_dir():
        return {}
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.suffix.lower() in _BUILDERS)
    aliases = {alias for names in SPLIT_NAMES.values() for alias in names}
    splits: dict[str, list[Path]] = {}
    for file in files:
        stem = file.stem.split("-")[0]
        if stem in aliases:
            splits.setdefault(stem, []).append(file)
    if not splits and len(files) == 1:
        return {"train": files}
    if not splits and files:
        raise ValueError(
            f"{str(folder)!r} holds several data files, none named after a split: "
            f"{quote([file.name for file in files[:10]])}. Name one train{files[0].suffix}, or pass a dict such as "
            f"{{'train': {str(files[0])!r}}}."
        )
    return splits


def _wrench_folder(folder: Path) -> dict[str, Dataset]:
    """Read a text dataset of the WRENCH benchmark; empty where the folder holds something else.

    `label.json` maps class numbers to names; each split is a mapping of ids to `label` (the true one), `weak_labels`
    (one per rule, -1 where it does not fire) and `data`. Columns: `text`, `clean_label`, `weak_label_00`, ...
    """
    import datasets

    try:
        names = json.loads((folder / "label.json").read_text(encoding="utf8"))
        contents = {
            split: json.loads(file.read_text(encoding="utf8"))
            for split in (alias for aliases in SPLIT_NAMES.values() for alias in aliases)
            if (file := folder / f"{split}.json").is_file()
        }
    except ValueError:  # lines of JSON, for one
        return {}
    if not isinstance(names, dict) or not all(isinstance(rows, dict) for rows in contents.values()):
        return {}
    feature = datasets.ClassLabel(names=[str(names[key]) for key in sorted(names, key=int)])
    splits = {}
    for split, rows in contents.items():
        file = folder / f"{split}.json"
        rules = {len(row["weak_labels"]) for key, row in rows.items() if _check_wrench_row(row, key, file)}
        if len(rules) > 1:
            raise ValueError(f"{str(file)!r}: the rows have {sorted(rules)} weak labels; there must be one per rule.")
        votes = list(zip(*(row["weak_labels"] for row in rows.values()), strict=True))
        columns = {f"weak_label_{rule:02d}": list(vote) for rule, vote in enumerate(votes)}
        splits[split] = datasets.Dataset.from_dict(
            {
                "text": [row["data"]["text"] for row in rows.values()],
                "clean_label": [row["label"] for row in rows.values()],
                **columns,
            },
            features=datasets.Features(
                {"text": datasets.Value("string"), "clean_label": feature, **dict.fromkeys(columns, feature)}
            ),
        )
    return splits


def _check_wrench_row(row: Any, key: str, file: Path) -> bool:
    known = isinstance(row, dict) and {"label", "weak_labels", "data"} <= row.keys()
    if not known or not isinstance(row["data"], dict) or not isinstance(row["data"].get("text"), str):
        raise ValueError(
            f"{str(file)!r}, row {key!r}: expected label, weak_labels and data with a text, as in the datasets of "
            "WRENCH for text classification."
        )
    return True


def data_files(path: Path) -> dict[str, tuple[str, list[Path], dict[str, Any]]]:
    """What reads a data file, or the files of each split in a folder: builder of `datasets`, files, its options.

    Raises:
        FileNotFoundError: The folder holds no train, validation or test files.
        ValueError: A file is of no known kind.
    """
    files = {"train": [path]} if path.is_file() else _split_files(path) or _split_files(path / "data")
    if not files:
        raise FileNotFoundError(f"{str(path)!r} holds no train, validation or test files ({', '.join(_BUILDERS)}).")
    return {split: _reader(paths) for split, paths in files.items()}


def _reader(paths: Sequence[Path]) -> tuple[str, list[Path], dict[str, Any]]:
    if not paths:
        raise ValueError("A split was given as an empty list of files.")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"No file at {str(path)!r} (working folder: {Path.cwd()}).")
    suffixes = {path.suffix.lower() for path in paths}
    if len(suffixes) > 1 or not suffixes <= _BUILDERS.keys():
        raise ValueError(
            f"Cannot read {quote([str(path) for path in paths[:5]])}: the files of a split must share one of the "
            f"endings {', '.join(_BUILDERS)}."
        )
    suffix = suffixes.pop()
    options: dict[str, Any] = {}
    if _BUILDERS[suffix] == "csv":
        # pandas reads the words "None", "NA", "null", ... as missing: texts and classes of that name would vanish.
        options = {"keep_default_na": False, "na_values": [""], "sep": "\t" if suffix == ".tsv" else ","}
    return _BUILDERS[suffix], list(paths), options


def _read_files(paths: Sequence[Path]) -> Dataset:
    import datasets

    builder, paths, options = _reader(paths)
    # data_files are patterns: unescaped, a folder called "run*" would read its neighbours' files as well.
    files = [glob.escape(str(path)) for path in paths]
    try:
        return datasets.load_dataset(builder, data_files={"train": files}, split="train", **options)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = "it has no rows." if "corresponds to no data" in str(error) else error.__cause__ or error
        raise ValueError(f"Cannot read {quote([str(path) for path in paths[:5]])} as {builder}: {cause}") from error


def _image_folder(folder: Path) -> dict[str, Dataset]:
    """Read `<class>/<image>` or `<split>/<class>/<image>`; classes are the sorted folder names."""
    aliases = [alias for names in SPLIT_NAMES.values() for alias in names]
    split_dirs = {alias: folder / alias for alias in aliases if _subfolders(folder / alias)}
    if not split_dirs:
        split_dirs = {"train": folder}
    splits = {split: _class_folders(path) for split, path in split_dirs.items()}
    return {split: dataset for split, dataset in splits.items() if dataset is not None}


def _class_folders(folder: Path) -> Dataset | None:
    import datasets

    paths: list[str] = []
    classes: list[str] = []
    empty: list[str] = []
    for class_dir in _subfolders(folder):
        images = sorted(
            file for file in class_dir.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
        )
        paths += [str(image) for image in images]
        classes += [class_dir.name] * len(images)
        if not images:
            empty.append(class_dir.name)
    if not paths:
        return None
    if empty:
        warnings.warn(
            f"{str(folder)!r}: no images ({', '.join(sorted(_IMAGE_SUFFIXES))}) in {quote(empty)}: no such class.",
            stacklevel=2,
        )
    return datasets.Dataset.from_dict({"image": paths, "label": classes}).cast_column("image", datasets.Image())


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _from_hub(dataset_id: str, config_name: str | None, revision: str | None) -> LoadedSource:
    import datasets

    try:
        loaded = datasets.load_dataset(dataset_id, config_name, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{dataset_id!r} is no local file or folder, and the Hub has no dataset of that name that you may read: "
            f"{error} {_ACCEPTED}."
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{dataset_id!r} is no local file or folder, and it could not be fetched from the Hub ({error}). Without "
            f"a connection, pass data that is on this machine. {_ACCEPTED}."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The Hub dataset {dataset_id!r} could not be loaded: {error} (config_name={config_name!r}, "
            f"revision={revision!r})"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        raise TypeError(f"The Hub dataset {dataset_id!r} gave a {type(loaded).__name__} instead of splits.")
    origin = dataset_id if revision is None else f"{dataset_id}@{revision}"
    name = dataset_id.split("/")[-1] if config_name is None else f"{dataset_id.split('/')[-1]} ({config_name})"
    return LoadedSource({str(split): dataset for split, dataset in loaded.items()}, name, origin)


def _digits() -> Dataset:
    import datasets
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The scan counts 0..16 ink dots per cell: stretched to the full range of an 8-bit image.
    pixels_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels_N = digits.target.astype(np.int64)
    class_label = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels_NHW], "label": labels_N, "clean_label": labels_N},
        features=datasets.Features({"image": datasets.Image(), "label": class_label, "clean_label": class_label}),
    )


def _looks_like_path(source: str | os.PathLike[str]) -> bool:
    text = os.fspath(source)
    return (
        not isinstance(source, str)
        or text.startswith((".", "~", os.sep))
        or os.path.isabs(text)
        or text.count("/") > 1
        or "\\" in text
        or Path(text).suffix.lower() in _BUILDERS
        or not text.strip()
    )


def _dataset_name(dataset: Dataset) -> str:
    return dataset.info.dataset_name or "dataset"


def _streaming_hint(value: object) -> str:
    if type(value).__name__ in ("IterableDataset", "IterableDatasetDict"):
        return (
            " Streams have no stable rows: load without streaming, or materialise it with "
            "Dataset.from_list(list(stream))."
        )
    return ""
