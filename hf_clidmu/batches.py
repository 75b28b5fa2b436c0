"""How samples reach the trainer: with a stable index, in repeatable meta batches, through any collator.

Nothing here knows models. The index of a sample is its row in the training dataset, whatever the sampler does.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler


INDEX_COLUMN = "sample_index"
FEATURES_COLUMN = "frozen_features"
LABEL_NAMES = ("labels", "label", "label_ids")

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def is_stream(dataset: Any) -> bool:
    """Whether a dataset has no length and no stable rows."""
    return dataset is not None and (isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"))


def derive_seed(seed: int, *stream: int) -> int:
    """A seed for one purpose at one moment: the same on every platform, unrelated to its neighbours."""
    return int(np.random.SeedSequence([seed, len(stream), *stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def repeatable(seed: int, *stream: int) -> Iterator[None]:
    """Inside, Python's `random`, from which augmentation draws, follows the seed; afterwards it is what it was."""
    before = random.getstate()
    random.seed(derive_seed(seed, *stream))
    try:
        yield
    finally:
        random.setstate(before)


class IndexedDataset(Dataset):
    """A map-style dataset whose samples carry their row number as `sample_index`.

    Args:
        dataset: anything with `__len__` and `__getitem__` that yields dictionaries.
        seed: of augmentation that draws from Python's `random`: its draws then depend on the seed, the epoch and the
            rows of the batch alone, so that a resumed run repeats them. None leaves them to the global state.
    """

    def __init__(self, dataset: Any, seed: int | None = None):
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        if self.seed is None:
            samples = fetch(self.dataset, rows)
        else:
            with repeatable(self.seed, int(self._epoch), rows[0]):
                samples = fetch(self.dataset, rows)
        return [{**sample, INDEX_COLUMN: row} for row, sample in zip(rows, samples, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Other augmentation in every epoch; worker processes that live on are told as well."""
        self._epoch.share_memory_().fill_(epoch)

    def evaluation_view(self) -> "IndexedDataset":
        """The same samples without training augmentation, where the dataset can tell them apart."""
        return IndexedDataset(evaluation_view(self.dataset))


class CachedFeatures(Dataset):
    """Samples whose frozen part was computed before: a vector and a label in place of the raw input.

    Args:
        features_ND: (N, D), row i belongs to sample i.
        labels_N: (N,), or None for an unlabelled set.
    """

    def __init__(self, features_ND: Tensor, labels_N: Tensor | None):
        self.features_ND = features_ND
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.features_ND)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample: dict[str, Any] = {FEATURES_COLUMN: self.features_ND[row], INDEX_COLUMN: row}
        if self.labels_N is not None:
            sample["labels"] = self.labels_N[row]
        return sample

    def __getitems__(self, rows: list[int]) -> "StackedSamples":
        index_B = torch.tensor(rows)
        columns = {FEATURES_COLUMN: self.features_ND[index_B], INDEX_COLUMN: index_B}
        if self.labels_N is not None:
            columns["labels"] = self.labels_N[index_B]
        return StackedSamples(columns)

    def evaluation_view(self) -> "CachedFeatures":
        return self


class StackedSamples(Sequence[dict[str, Any]]):
    """Samples that lie together, one tensor a column: they can be taken one by one, and need no stacking.

    Args:
        columns: tensors by name, of the same length.
    """

    def __init__(self, columns: dict[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[INDEX_COLUMN])

    def __getitem__(self, position: Any) -> Any:
        return {name: values[position] for name, values in self.columns.items()}


class SampleCollator:
    """Lets any collator handle samples that carry an index or cached features.

    Labels are checked here, on the CPU and in the loading process, where a bad one can be named and costs no wait for
    the device.

    Args:
        collator: the user's; it sees samples without the columns it cannot know.
        num_labels: labels must lie in `0 .. num_labels - 1`; None checks nothing.
    """

    def __init__(self, collator: Collator, num_labels: int | None = None):
        self.collator = collator
        self.num_labels = num_labels
        self.tokenizer = getattr(collator, "tokenizer", None)  # the Trainer saves it from here

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not samples:
            raise ValueError("cannot collate an empty batch")
        if isinstance(samples, StackedSamples):
            batch = dict(samples.columns)
        elif FEATURES_COLUMN in samples[0]:
            batch = {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}
        else:
            rest = [{key: value for key, value in sample.items() if key != INDEX_COLUMN} for sample in samples]
            batch = dict(self.collator(rest))
            if INDEX_COLUMN in samples[0]:
                batch[INDEX_COLUMN] = torch.tensor([sample[INDEX_COLUMN] for sample in samples])
        if self.num_labels is not None:
            check_labels(batch, self.num_labels)
            for name in LABEL_NAMES:
                if isinstance(batch.get(name), Tensor):
                    batch[name] = batch[name].long()  # losses take no smaller integers
        return batch


def check_labels(batch: Mapping[str, Any], num_labels: int) -> None:
    """Raise unless the labels of a batch, if it has any, are one class per sample.

    Raises:
        ValueError: for labels that are not integers, several per sample, or outside `0 .. num_labels - 1`; the
            message names the column, the row and the value.
    """
    name = next((name for name in LABEL_NAMES if batch.get(name) is not None), None)
    if name is None:
        return
    labels_B = torch.as_tensor(batch[name])
    if labels_B.ndim != 1:
        raise ValueError(
            f"column '{name}' holds {tuple(labels_B.shape[1:])} values per sample: multi-label and soft targets are "
            "not supported, every sample must have exactly one integer label"
        )
    if labels_B.is_floating_point() or labels_B.is_complex() or labels_B.dtype == torch.bool:
        raise ValueError(f"column '{name}' holds {labels_B.dtype} values; labels must be integers (cast the column)")
    outside_B = (labels_B < 0) | (labels_B >= num_labels)
    if outside_B.any():
        first, rows = int(outside_B.int().argmax()), batch.get(INDEX_COLUMN)
        where = f"row {int(rows[first])}" if rows is not None else f"sample {first} of the batch"
        raise ValueError(
            f"column '{name}', {where}: label {int(labels_B[first])} is outside 0..{num_labels - 1}, the classes "
            f"of the model; map the labels to 0..{num_labels - 1} or load the model with more labels (num_labels)"
        )


def fetch(dataset: Any, rows: list[int]) -> Sequence[dict[str, Any]]:
    """Several samples at once, by the dataset's own fast way where it has one."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(rows)
    return [dataset[row] for row in rows]


def evaluation_view(dataset: Any) -> Any:
    """The dataset without training augmentation, where it offers that; itself otherwise."""
    return dataset.evaluation_view() if hasattr(dataset, "evaluation_view") else dataset


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without waiting for what a GPU has yet to do, as a copy from pageable memory would."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # itself, if it is pinned already
    return tensor.to(device, non_blocking=True)


def model_inputs(batch: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Tensor]:
    """What of a batch a forward may see: no label, no index. On `device`, if one is given."""
    inputs = {key: value for key, value in batch.items() if key not in (*LABEL_NAMES, INDEX_COLUMN)}
    return inputs if device is None else {key: sent(value, device) for key, value in inputs.items()}


def labels_of(batch: Mapping[str, Any]) -> Tensor | None:
    """The labels of a batch under whatever name it uses, or None."""
    return next((batch[name] for name in LABEL_NAMES if batch.get(name) is not None), None)


class RandomRows(Sampler[list[int]]):
    """Endless batches of rows; the n-th batch depends on the seed and n alone, so that a resumed run repeats it.

    Args:
        rows: the rows to draw from, without replacement within a batch.
        batch_size: rows a batch of one process; at most its share of all of them.
        seed: of the draws.
        start: number of the first batch.
        process: whose rows to yield, of a batch that is drawn for all processes together.
        num_processes: how many there are.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batch_size: int,
        seed: int,
        start: int = 0,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.rows = torch.as_tensor(rows)
        self.batch_size = min(batch_size, max(len(rows) // num_processes, 1))
        self.seed = seed
        self.start = start
        self.first = process * self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
            order = torch.randperm(len(self.rows), generator=generator)
            own = torch.arange(self.first, self.first + self.batch_size) % len(order)  # more processes than rows share
            yield self.rows[order[own]].tolist()
            number += 1


class MetaBatches:
    """Batches for the look-ahead's judge: fixed rows of a dataset, drawn anew for each meta step.

    Args:
        dataset: map-style; its evaluation view is used where it has one.
        size: how many rows take part, drawn once with the seed; None takes all.
        batch_size: rows a meta batch.
        collate: makes a batch of samples.
        seed: of rows and draws; the order of batches depends on nothing else.
        num_workers: worker processes that load samples.
        process, num_processes: see [`RandomRows`]; each training process gets other rows of one large batch.
        pin_memory: load batches into memory from which a GPU can fetch them meanwhile.

    Raises:
        ValueError: when the dataset is empty or smaller than `size`.
    """

    def __init__(
        self,
        dataset: Any,
        size: int | None,
        batch_size: int,
        collate: Collator,
        seed: int,
        num_workers: int = 0,
        process: int = 0,
        num_processes: int = 1,
        pin_memory: bool = False,
    ):
        self.dataset = evaluation_view(dataset)
        self.rows = random_rows(len(self.dataset), size, seed, "meta_size")
        self.batch_size = batch_size
        self.collate = collate
        self.seed = seed
        self.num_workers = num_workers
        self.place = (process, num_processes)
        self.pin_memory = pin_memory
        self._next = -1
        self._batches: Iterator[dict[str, Any]] = iter(())

    def restart(self, batch_size: int) -> None:
        """From the beginning, with batches of another size."""
        self.batch_size, self._next = batch_size, -1

    def batch(self, number: int) -> dict[str, Any]:
        """The meta batch of that number, on the CPU. Asking in order is fast; any order gives the same batches."""
        if number != self._next:
            sampler = RandomRows(self.rows, self.batch_size, derive_seed(self.seed, 1), number, *self.place)
            loader = DataLoader(
                self.dataset,
                batch_sampler=sampler,
                collate_fn=self.collate,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                generator=torch.Generator().manual_seed(self.seed),  # else workers take theirs from the global state
            )
            self._batches, self._next = iter(loader), number
        self._next += 1
        return next(self._batches)


def random_rows(length: int, size: int | None, seed: int, argument: str) -> list[int]:
    """`size` different rows of a dataset, drawn with the seed; all of them for None.

    Raises:
        ValueError: for an empty dataset, or one smaller than `size`; the message names `argument`.
    """
    if length == 0:
        raise ValueError("the dataset is empty: there are no rows to draw from")
    if size is not None and size > length:
        raise ValueError(
            f"{argument}={size} is larger than the dataset, which has {length} rows; lower {argument} to "
            f"{length} or less"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, 0))
    return torch.randperm(length, generator=generator)[:size].tolist()
