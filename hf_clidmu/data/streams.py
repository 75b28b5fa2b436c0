"""Training data too large to hold: the training split as a stream, with the columns of every other corpus.

The first rows of each split are loaded as any source is: that finds the columns, checks them, and gives validation and
test splits of bounded size. The rest of the training split is mapped row by row as it comes.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._rows import quote
from .corpora import Corpus, SourceColumns, find_columns, load_corpus
from .presets import find_preset
from .sources import SPLIT_NAMES, data_files


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .presets import Preset

_HEAD_ROWS = 1000


def stream_corpus(
    source: str,
    *,
    label_column: str | None = None,
    clean_label_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_names: Sequence[str] | None = None,
    shuffle_buffer: int = 10_000,
    evaluation_rows: int = 10_000,
    seed: int = 0,
    revision: str | None = None,
    config_name: str | None = None,
) -> Corpus:
    """Load a corpus whose training split is a stream.

    A stream has no length and no stable rows: training needs `max_steps`, there is no ledger, and CLID's meta batches
    come from the running batch (`meta_source="batch"`) or a dataset of your own; `judge_source="eval"` selects.

    Args:
        source: A folder with `train`, `validation`, `test` files, one such file, the name of a preset that is on the
            Hub, or the id of a dataset on the Hub.
        label_column, clean_label_column, image_column, text_column, revision, config_name: As in `load_corpus`.
        label_names: Class names in index order. Needed unless the label column is a `ClassLabel`: a stream cannot be
            searched for its classes.
        shuffle_buffer: Rows among which the next one is drawn; 0 keeps the order. The seed and the epoch decide.
        evaluation_rows: Most rows of the validation and of the test split, from their beginning.
        seed: Seed of the shuffling.

    Returns:
        A corpus whose `train` is a `datasets.IterableDataset` with columns `image` or `text`, `label` and, where it is
        known, `clean_label`; its noise is not known.

    Raises:
        FileNotFoundError: As in `load_corpus`.
        ValueError: The classes are not known, or as in `load_corpus`. While the stream is read: a label that is none
            of the classes, or missing.

    Warns:
        UserWarning: The validation or test split was cut.
    """
    from datasets import ClassLabel

    preset = find_preset(source)
    streams = _open(source, preset, config_name, revision)
    heads = {
        name: _head(stream, _HEAD_ROWS if _is_train(name) else evaluation_rows) for name, stream in streams.items()
    }
    for name, (_, was_cut) in heads.items():
        if was_cut and not _is_train(name):
            warnings.warn(f"Only the first {evaluation_rows} rows of the {name} split are used.", stacklevel=2)
    if preset is not None:
        label_column = label_column or preset.label_column
        label_names = label_names or preset.label_names
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no training row is labelled")  # not yet seen
        corpus = load_corpus(
            {name: head for name, (head, _) in heads.items()},
            label_column=label_column,
            label_names=label_names,
            clean_label_column=clean_label_column,
            image_column=image_column,
            text_column=text_column,
        )
    train_name = next(name for name in streams if _is_train(name))
    stream, head = streams[train_name], heads[train_name][0]
    columns = find_columns(
        {"train": head}, preset, label_column, clean_label_column, image_column, text_column, clean_wanted=False
    )
    if len(columns.labels) > 1:
        raise ValueError(f"A stream takes one label column, not the votes of {quote(columns.labels)}.")
    if label_names is None and not isinstance(head.features[columns.labels[0]], ClassLabel):
        raise ValueError(
            f"The classes of a stream cannot be searched for: column {columns.labels[0]!r} is no ClassLabel, so pass "
            f"label_names, in order. The first {len(head)} rows hold {quote(corpus.label_names[:20])}."
        )
    if shuffle_buffer:
        stream = stream.shuffle(seed=seed, buffer_size=shuffle_buffer)
    encoder = _RowLabels(columns, corpus.label_names)
    stream = stream.map(encoder, remove_columns=[name for name in head.column_names if name != columns.inputs])
    if columns.inputs != corpus.input_column:
        stream = stream.rename_column(columns.inputs, corpus.input_column)
    return replace(corpus, train=stream, noise=None, name=Path(source).stem, source=f"stream of {source}")


def stream_inputs(stream: IterableDataset, column: str, make: Callable[[Any], dict[str, Any]]) -> IterableDataset:
    """A stream as model inputs.

    Args:
        stream: With the column of the inputs and `label`.
        column: `image` or `text`.
        make: From one raw input to the model's.

    Returns:
        A stream of `make`'s outputs and `labels`.
    """
    names = ("label", "clean_label", column)
    columns = [name for name in names if stream.column_names is None or name in stream.column_names]
    return stream.map(lambda row: {**make(row[column]), "labels": row["label"]}, remove_columns=columns)


def is_stream(dataset: Any) -> bool:
    """Whether a split is a stream."""
    from datasets import IterableDataset

    return isinstance(dataset, IterableDataset)


class _RowLabels:
    """The labels of one row as class indices."""

    def __init__(self, columns: SourceColumns, label_names: Sequence[str]) -> None:
        self.label, self.clean = columns.labels[0], columns.clean
        self._index = {name: index for index, name in enumerate(label_names)}
        self._total = len(label_names)

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        labels = {"label": self._encoded(row[self.label], self.label)}
        if self.clean is not None and self.clean in row:
            labels["clean_label"] = self._encoded(row[self.clean], self.clean, optional=True)
        return labels

    def _encoded(self, value: Any, column: str, optional: bool = False) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self._total:
            return value
        if isinstance(value, str) and value in self._index:
            return self._index[value]
        if optional and value in (None, -1):
            return -1
        raise ValueError(
            f"column {column!r} of the stream holds {value!r}, which is none of the {self._total} classes "
            f"{quote(list(self._index)[:20])}."
        )


def _open(
    source: str, preset: Preset | None, config_name: str | None, revision: str | None
) -> dict[str, IterableDataset]:
    import datasets

    path = Path(source).expanduser()
    if path.exists():
        files = data_files(path)
        streams = {}
        for name, (builder, paths, options) in files.items():
            patterns = [glob.escape(str(file)) for file in paths]
            streams[name] = datasets.load_dataset(
                builder, data_files={"train": patterns}, split="train", streaming=True, **options
            )
        return _with_train(streams, source)
    identity = source if preset is None else preset.hub_id
    if identity is None:
        raise FileNotFoundError(f"The preset {source!r} is not on the Hub: stream its files from a folder instead.")
    if preset is not None:
        config_name, revision = preset.hub_config, preset.hub_revision
    try:
        streams = datasets.load_dataset(identity, config_name, revision=revision, streaming=True)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"{source!r} is no file or folder, and cannot be streamed from the Hub: {error}"
        ) from error
    if preset is not None and preset.hub_columns:
        renamed = dict(preset.hub_columns)
        streams = {
            name: stream.rename_columns(
                {old: new for old, new in renamed.items() if old in (stream.column_names or ())}
            )
            for name, stream in streams.items()
        }
    return _with_train(dict(streams), source)


def _with_train(streams: dict[str, IterableDataset], source: str) -> dict[str, IterableDataset]:
    known = {alias for aliases in SPLIT_NAMES.values() for alias in aliases}
    streams = {name: stream for name, stream in streams.items() if name in known}
    if not any(_is_train(name) for name in streams):
        raise ValueError(f"{source!r} has no training split to stream; found {quote(list(streams))}.")
    return streams


def _is_train(name: str) -> bool:
    return name in SPLIT_NAMES["train"]


def _head(stream: IterableDataset, rows: int) -> tuple[Dataset, bool]:
    """The first rows of a stream, and whether there are more."""
    from datasets import Dataset

    taken = list(stream.take(rows + 1))
    if not taken:
        raise ValueError("A split of the stream is empty.")
    return Dataset.from_list(taken[:rows], features=stream.features), len(taken) > rows
