"""One shape for every dataset: `load_corpus` reads anything `datasets` reads and returns a `Corpus`.

All splits of a corpus have the same columns, whatever the source called them: the input (`image` or `text`), `label`
(the given, possibly wrong one) and, where known, `clean_label`, which serves reporting alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ._rows import name_rows, quote
from .columns import (
    Modality,
    find_clean_column,
    find_input_column,
    find_label_columns,
    input_table,
    named_columns,
)
from .injection import ClassMap, NoiseSettings
from .labels import (
    LabelSpace,
    RawLabels,
    absent_classes,
    fits,
    label_space,
    read_labels,
    require_labels,
    stratified_sample,
)
from .noise import UNKNOWN, IntArray, NoiseRecord, measure_noise
from .presets import Preset, find_preset, load_preset, similar_presets
from .sources import SPLIT_NAMES, LoadedSource, load_source
from .votes import FloatArray, majority_vote, merge_labels


if TYPE_CHECKING:
    from datasets import Dataset

    from .sources import Source

MissingLabels = Literal["error", "drop"]

VOTES_COLUMN = "label_votes"
_DIGITS_TEST_SIZE = 0.2


@dataclass
class Corpus:
    """A classification dataset in one shape.

    Attributes:
        name: Short name for tables and cards.
        modality: `"image"` or `"text"`.
        train: Training split. Columns: the input column, `label` (`ClassLabel`, the given label) and, when known,
            `clean_label` (`ClassLabel`, -1 where unknown). Where several annotators were put to a vote, also
            `label_votes`: the share of the votes that each class got (C floats), for reports; no model sees it.
        validation: Validation split with the same columns but for `label_votes`, or `None`.
        test: Test split with the same columns but for `label_votes`, or `None`.
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


@dataclass(frozen=True)
class SourceColumns:
    """Where a source keeps what."""

    modality: Modality
    inputs: str
    labels: list[str]
    clean: str | None


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
    votes: FloatArray | None = None

    def take(self, chosen: IntArray) -> _Split:
        clean = None if self.clean is None else self.clean[chosen]
        votes = None if self.votes is None else self.votes[chosen]
        return _Split(self.data, self.rows[chosen], self.label[chosen], clean, votes)


def load_corpus(
    source: Source,
    *,
    label_column: str | Sequence[str] | None = None,
    clean_label_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_names: Sequence[str] | None = None,
    missing_labels: MissingLabels = "error",
    noise: str | None = None,
    noise_rate: float = 0.0,
    noise_seed: int = 0,
    noise_map: ClassMap | None = None,
    noise_superclasses: Sequence[Any] | None = None,
    noise_features: npt.NDArray[Any] | None = None,
    noise_transition: Any | None = None,
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
    (gaps are closed, the names are the numbers), class names are sorted; `label_names` says otherwise. In the
    validation and test splits a missing label (`None` or -1) is replaced by the clean one. A validation or test split
    that was not asked for by name and has no labels at all is left out with a warning.

    Where several annotators labelled the same rows, their columns are put to a majority vote: missing labels do not
    vote, and a tie goes to one of the classes in the lead, drawn by `noise_seed`.

    Args:
        source: `"digits"` (8x8 scans that come with scikit-learn, no download); the name of a preset, such as
            `"cifar10n_worse"` (see `PRESETS`; it says which columns to use); a folder with `train`, `validation`,
            `test` files (parquet, csv, tsv, json, jsonl, arrow); a folder of class folders with images, optionally
            inside `train/`, `validation/`, `test/`; one such file; a dict split -> file, files or `Dataset`; a folder
            written by `save_to_disk`; a `datasets.Dataset` or `DatasetDict`; or the id of a dataset on the Hub.
            A folder called "digits" is reached as "./digits"; one called like a preset wins over the preset.
        label_column: Column of the given labels. Several annotators: a sequence of columns, their names with commas
            between them, or a pattern such as `"random_label*"`. Default: the first of `noisy_label`, `label`,
            `labels`, `target`, `class`, `category`; else the only other column with "label" in its name; else
            `clean_label`.
        clean_label_column: Column of the true labels, for reporting. Default: `clean_label` where it exists.
        image_column: Column of the images (`datasets.Image`, file paths, pixel arrays). Default: the only image
            column.
        text_column: Column of the texts. Default: `text`, `sentence`, ...; else the only text column that is left.
        label_names: Class names in index order, for a source that has bare numbers, or class names in another order;
            a `ClassLabel` keeps its own. Default: as said above.
        missing_labels: What to do with training rows without a label: `"error"` (default) names them, `"drop"` leaves
            them out.
        noise: Kind of label noise to inject into the training split, a name of `NOISE_KINDS`. It starts from the clean
            labels when the source has them for the training split (a given noisy column is then ignored in all
            splits), else from the given labels, which then count as clean. `None` (default) leaves the labels alone.
        noise_rate: In [0, 1): the share of training labels to make wrong, for most kinds (see `inject_noise`).
        noise_seed: Seed of the injection, and of ties among annotators.
        noise_map: For `"asymmetric"`: what each class is mistaken for, a mapping of class names or indices; or
            `"next"`, the next class in order. Default: what is published about a preset.
        noise_superclasses: For `"hierarchical"`: the superclass of each class, in their order. Default: what is
            published about a preset.
        noise_features: For `"instance"` and `"feature"`: an array with one row per row of the training split of the
            source, such as embeddings. Default, for `"instance"` on images of one size: their pixels.
        noise_transition: For `"transition"`: the (C, C) probabilities of given classes, one row per clean class.
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
        FileNotFoundError: The source, or an image file named in it, does not exist, or the Hub cannot be reached. For
            a preset the message says what to download from where, and where to put it.
        TypeError: `source`, or a setting, is of a wrong type.
        ValueError: Columns or splits are missing or ambiguous, labels or texts are unusable (the message names
            column, row and value), or a setting is out of range.

    Warns:
        UserWarning: A class has no training row, rows without a label are left out, an unlabelled split is left out,
            or a preset has other classes than expected.
    """
    noise_settings = NoiseSettings(
        noise, noise_rate, noise_seed, noise_map, noise_superclasses, noise_features, noise_transition
    )
    _check_settings(test_size, max_train_samples, seed, missing_labels)
    preset, loaded = _load(source, config_name, revision)
    if isinstance(source, str) and source == "digits":
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
    columns = find_columns(
        splits, preset, label_column, clean_label_column, image_column, text_column, clean_wanted=noise is not None
    )
    space, classes = _read_classes(splits, columns, preset, label_names, missing_labels)
    tables = {}
    for role, split in splits.items():
        table = _encode(split, role, *classes[role], space, noise_seed, optional=wanted[role] is None)
        if table is not None:
            table.data = input_table(split, role, columns.modality, columns.inputs, loaded.base_dir)
            tables[role] = table
    if test_size:
        tables["train"], tables["test"] = _hold_out(tables["train"], test_size, holdout_seed)
    if max_train_samples is not None and max_train_samples < len(tables["train"].label):
        tables["train"] = tables["train"].take(stratified_sample(tables["train"].label, max_train_samples, seed))
    record = _apply_noise(tables, noise_settings, space, preset)
    _warn_of_classes(tables["train"], space, loaded.origin, preset)

    for role, table in tables.items():
        if role != "train":
            table.votes = None  # serves reports about the training labels
    finished = {role: _finish(table, list(space.names)) for role, table in tables.items()}
    return Corpus(
        name=loaded.name,
        modality=columns.modality,
        train=finished["train"],
        validation=finished.get("validation"),
        test=finished.get("test"),
        label_names=list(space.names),
        input_column=columns.modality,
        noise=record,
        source=loaded.origin,
    )


def _check_settings(
    test_size: float | None,
    max_train_samples: object,
    seed: object,
    missing_labels: object,
) -> None:
    if missing_labels not in ("error", "drop"):
        raise ValueError(f'missing_labels must be "error" or "drop", got {missing_labels!r}.')
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


def _load(source: Source, config_name: str | None, revision: str | None) -> tuple[Preset | None, LoadedSource]:
    preset = find_preset(source)
    if preset is None:
        try:
            return None, load_source(source, config_name=config_name, revision=revision)
        except FileNotFoundError as error:
            near = similar_presets(source) if isinstance(source, str) else []
            if not near:
                raise
            raise FileNotFoundError(f"{error} Presets of a similar name: {quote(near)}.") from error
    if config_name is not None or revision is not None:
        raise ValueError(
            f"config_name and revision are for datasets on the Hub, but {source!r} is a preset, which knows its own."
        )
    return preset, load_preset(preset)


def find_columns(
    splits: dict[str, Dataset],
    preset: Preset | None,
    label_column: str | Sequence[str] | None,
    clean_label_column: str | None,
    image_column: str | None,
    text_column: str | None,
    *,
    clean_wanted: bool,
) -> SourceColumns:
    """Find out where the source keeps what; what was asked for comes before what the preset says."""
    train = splits["train"]
    if preset is not None:
        label_column = label_column or (None if clean_wanted else preset.label_column)
        if image_column is None and text_column is None and preset.input_column in train.column_names:
            image_column = preset.input_column if preset.modality == "image" else None
            text_column = preset.input_column if preset.modality == "text" else None
        if clean_label_column is None and any(preset.clean_label_column in s.column_names for s in splits.values()):
            clean_label_column = preset.clean_label_column
    clean = find_clean_column(splits, clean_label_column)
    named = None if label_column is None else named_columns(train, label_column)
    modality, inputs = find_input_column(train, image_column, text_column, (*(named or ()), clean))
    labels = find_label_columns(train, named, clean, inputs, clean_wanted=clean_wanted)
    return SourceColumns(modality, inputs, labels, clean)


def _read_classes(
    splits: dict[str, Dataset],
    columns: SourceColumns,
    preset: Preset | None,
    label_names: Sequence[str] | None,
    missing_labels: str,
) -> tuple[LabelSpace, dict[str, tuple[list[RawLabels], RawLabels | None]]]:
    """Find the classes; read the given labels, by annotator, and the clean ones of every split."""
    names = label_names or (None if preset is None else preset.label_names)
    labels = {}
    for role, split in splits.items():
        present = [column for column in columns.labels if column in split.column_names]
        clean = None
        if columns.clean is not None and columns.clean in split.column_names:
            clean = read_labels(split, columns.clean, role, names)
        labels[role] = [read_labels(split, column, role, names) for column in present], clean
    given, clean = labels["train"]
    _refuse_missing(given, missing_labels)
    merged = merge_labels(given)
    if label_names is None and names is not None and not _all_fit(names, merged, clean):
        names = None  # the classes of the preset go by other names here
    return label_space(merged, clean, names), labels


def _all_fit(names: Sequence[str], *labels: RawLabels | None) -> bool:
    return all(entry is None or fits(entry, names) for entry in labels)


def _refuse_missing(given: list[RawLabels], missing_labels: str) -> None:
    """Check that every training row has a label from somebody, or may be left out."""
    rows = sorted(set.intersection(*(set(labels.missing_rows) for labels in given)))
    total = len(given[0].values)
    if not rows:
        return
    if missing_labels == "drop" and len(rows) < total:
        warnings.warn(
            f"{len(rows)} of {total} training rows have no label in {quote([labels.column for labels in given])} and "
            "are left out.",
            stacklevel=4,
        )
        return
    if len(given) == 1:
        require_labels(given[0])
    raise ValueError(
        f"{name_rows(rows)} of the train split: none of the annotators {quote([labels.column for labels in given])} "
        'gave a label. Leave such rows out with missing_labels="drop", or name further columns in label_column.'
    )


def _encode(
    split: Dataset,
    role: str,
    given: list[RawLabels],
    clean: RawLabels | None,
    space: LabelSpace,
    vote_seed: int,
    *,
    optional: bool,
) -> _Split | None:
    """Map the labels of a split to classes; `None` when an optional split has no labels at all."""
    rows = len(split)
    clean_N = None if clean is None else space.encode(clean)
    label_N, votes = np.full(rows, UNKNOWN, dtype=np.int64), None
    if len(given) == 1:
        label_N = space.encode(given[0])
    elif given:
        outcome = majority_vote([space.encode(labels) for labels in given], len(space.names), vote_seed)
        label_N, votes = outcome.label, outcome.shares
    table = _Split(split, np.arange(rows), label_N, clean_N, votes)
    if role == "train":
        missing = label_N == UNKNOWN
        return table.take(np.flatnonzero(~missing)) if missing.any() else table
    if clean_N is not None:
        table.label = label_N = np.where(label_N == UNKNOWN, clean_N, label_N)
    missing_rows = np.flatnonzero(label_N == UNKNOWN)
    if missing_rows.size == rows and optional:
        warnings.warn(f"The {role} split has no labels and is left out.", stacklevel=3)
        return None
    if missing_rows.size:
        where = " or ".join(labels.where for labels in (*given, clean) if labels is not None)
        raise ValueError(
            f"{where or f'the {role} split'}, {name_rows(missing_rows.tolist())}: no label. Drop these rows, fill the "
            "labels in, or give the clean ones with clean_label_column."
        )
    return table


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
    tables: dict[str, _Split], noise: NoiseSettings, space: LabelSpace, preset: Preset | None
) -> NoiseRecord | None:
    train = tables["train"]
    if noise.kind is None:
        if train.clean is None or not (train.clean != UNKNOWN).any():
            return None
        return measure_noise(train.clean, train.label, len(space.names))
    for table in tables.values():
        # Injected noise starts from labels taken as clean: the same columns then exist in every split.
        table.clean = table.label if table.clean is None else np.where(table.clean < 0, table.label, table.clean)
    train.votes = None  # who voted for what does not describe injected labels
    train.label, record = noise.inject(train.label, space.names, train.data, train.rows, preset)
    return record


def _warn_of_classes(train: _Split, space: LabelSpace, origin: str, preset: Preset | None) -> None:
    if preset is not None and preset.num_labels not in (None, len(space.names)):
        warnings.warn(
            f"{origin}: the preset {preset.name!r} has {preset.num_labels} classes, but these data have "
            f"{len(space.names)}. Results are not comparable with published ones.",
            stacklevel=3,
        )
    absent = absent_classes(train.label, space.names)
    if absent:
        warnings.warn(
            f"{origin}: no training row is labelled {quote(absent)}. Training works, but the model cannot "
            f"learn {'this class' if len(absent) == 1 else 'these classes'} from the given labels.",
            stacklevel=3,
        )


def _finish(table: _Split, names: list[str]) -> Dataset:
    from datasets import ClassLabel, List, Value

    feature = ClassLabel(names=names)
    dataset = _without_indices(table.data)
    total = len(dataset)
    for column, values in (("label", table.label), ("clean_label", table.clean)):
        if values is not None:
            # Columns first, rows after: adding a column to selected rows would copy every image.
            full = np.full(total, UNKNOWN, dtype=np.int64)
            full[table.rows] = values
            dataset = dataset.add_column(column, full, feature=feature)
    if table.votes is not None:
        shares = np.zeros((total, len(names)), dtype=np.float32)
        shares[table.rows] = table.votes
        dataset = dataset.add_column(VOTES_COLUMN, list(shares), feature=List(Value("float32"), length=len(names)))
    return dataset if len(table.rows) == total else dataset.select(table.rows)


def _without_indices(dataset: Dataset) -> Dataset:
    # add_column would do this by writing a cache file, beside the data for a folder written by save_to_disk.
    return dataset if dataset._indices is None else dataset.flatten_indices(keep_in_memory=True)
