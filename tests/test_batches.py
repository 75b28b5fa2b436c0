"""Batches: samples keep their row, meta batches repeat themselves, bad labels are named."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import default_data_collator

from hf_clidmu.batches import (
    FEATURES_COLUMN,
    INDEX_COLUMN,
    CachedFeatures,
    IndexedDataset,
    MetaBatches,
    RandomRows,
    SampleCollator,
    check_labels,
    derive_seed,
    fetch,
    is_stream,
    labels_of,
    model_inputs,
    random_rows,
)


class Counted(Dataset):
    """Row r holds the value 10 r; remembers which rows were read, and how."""

    def __init__(self, size=20, labels=True):
        self.size, self.labels, self.read = size, labels, []

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        self.read.append(row)
        return {"x": torch.tensor([10.0 * row]), **({"labels": row % 3} if self.labels else {})}


class Batched(Counted):
    """Reads several rows at once."""

    def __getitem__(self, row):
        raise AssertionError("one by one is slow")

    def __getitems__(self, rows):
        return [Counted.__getitem__(self, row) for row in rows]


class Augmented(Counted):
    """Training samples differ from those for evaluation."""

    def evaluation_view(self):
        return Counted(self.size)

    def __getitem__(self, row):
        return {**super().__getitem__(row), "x": torch.tensor([-1.0])}


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_are_the_same_everywhere_and_always():
    # Written down once: a change would break the resuming of every run.
    assert derive_seed(0, 0) == derive_seed(0, 0) != derive_seed(0)  # trailing zeros count
    assert derive_seed(42, 1, 2) == int(np.random.SeedSequence([42, 2, 1, 2]).generate_state(1, np.uint64)[0]) >> 1


def test_seeds_of_neighbours_differ():
    seeds = [derive_seed(seed, a, b) for seed in range(8) for a in range(8) for b in range(8)]
    assert len(set(seeds)) == len(seeds) == 512
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


# ---- datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Counted, Batched])
def test_samples_carry_their_row(kind):
    dataset = IndexedDataset(kind(5))
    assert len(dataset) == 5
    samples = fetch(dataset, [4, 0, 4])
    assert [sample[INDEX_COLUMN] for sample in samples] == [4, 0, 4]
    assert [float(sample["x"]) for sample in samples] == [40.0, 0.0, 40.0]
    assert dataset.dataset.read == [4, 0, 4]
    if kind is Counted:
        assert dataset[3][INDEX_COLUMN] == 3
        assert float(dataset[3]["x"]) == 30.0


def test_the_wrapped_dataset_is_not_changed():
    samples = [{"x": 1}, {"x": 2}]
    dataset = IndexedDataset(samples)
    assert dataset[1] == {"x": 2, INDEX_COLUMN: 1}
    assert samples == [{"x": 1}, {"x": 2}]


def test_evaluation_view_is_that_of_the_dataset_with_the_same_rows():
    dataset = IndexedDataset(Augmented(5))
    assert float(dataset[2]["x"]) == -1.0
    assert float(dataset.evaluation_view()[2]["x"]) == 20.0
    assert dataset.evaluation_view()[2][INDEX_COLUMN] == 2
    plain = Counted(5)
    assert IndexedDataset(plain).evaluation_view().dataset is plain


@pytest.mark.parametrize("labelled", [True, False])
def test_cached_features_are_samples(labelled):
    features_ND = torch.arange(12.0).reshape(4, 3)
    dataset = CachedFeatures(features_ND, torch.tensor([3, 2, 1, 0]) if labelled else None)
    assert len(dataset) == 4
    assert dataset.evaluation_view() is dataset
    batch = SampleCollator(None, 4)([dataset[row] for row in (2, 0)])
    assert torch.equal(batch[FEATURES_COLUMN], features_ND[[2, 0]])
    assert batch[INDEX_COLUMN].tolist() == [2, 0]
    assert (batch["labels"].tolist() == [1, 3]) if labelled else ("labels" not in batch)
    # Fetched together they lie together, and are the same samples.
    stacked = fetch(dataset, [2, 0])
    assert len(stacked) == 2 and [int(sample[INDEX_COLUMN]) for sample in stacked] == [2, 0]
    together = SampleCollator(None, 4)(stacked)
    assert set(together) == set(batch) and all(torch.equal(together[name], batch[name]) for name in batch)
    one_by_one = SampleCollator(None, 4)(list(stacked))
    assert all(torch.equal(one_by_one[name], batch[name]) for name in batch)


# ---- collating -------------------------------------------------------------------------------------------------------


def test_the_users_collator_never_sees_our_columns():
    seen = []

    def collator(samples):
        seen.extend(samples)
        return {"x": torch.stack([sample["x"] for sample in samples])}

    collator.tokenizer = "a tokenizer"
    collate = SampleCollator(collator, 3)
    assert collate.tokenizer == "a tokenizer"
    dataset = IndexedDataset(Counted())
    samples = [dataset[7], dataset[1]]
    batch = collate(samples)
    assert [set(sample) for sample in seen] == [{"x", "labels"}] * 2
    assert batch[INDEX_COLUMN].tolist() == [7, 1]
    assert batch["x"].tolist() == [[70.0], [10.0]]
    assert samples[0][INDEX_COLUMN] == 7  # the caller's samples stay whole
    collate([{"x": torch.zeros(1)}])
    assert set(seen[-1]) == {"x"}


def test_samples_without_an_index_stay_without_one():
    batch = SampleCollator(default_data_collator, 3)([Counted()[4]])
    assert set(batch) == {"x", "labels"}


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="empty batch"):
        SampleCollator(default_data_collator)([])


def collated(labels, name="labels", num_labels=3):
    rows = [{"x": 0.0, INDEX_COLUMN: 40 + i} for i in range(len(labels))]
    return SampleCollator(lambda samples: {"x": torch.zeros(len(samples)), name: labels}, num_labels)(rows)


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), "row 42: label 3 is outside 0..2"),
        (torch.tensor([0, -1, 5]), "row 41: label -1 is outside 0..2"),
        (torch.tensor([-100, 0, 0]), "row 40: label -100"),
        (torch.tensor([300, 0, 0], dtype=torch.int16), "row 40: label 300"),
        (torch.tensor([[0, 1], [1, 0], [0, 0]]), r"holds \(2,\) values per sample: multi-label"),
        (torch.tensor(1), "values per sample"),
        (torch.tensor([0.0, 1.0, 2.0]), "holds torch.float32 values; labels must be integers"),
        (torch.tensor([True, False, True]), "holds torch.bool values; labels must be integers"),
    ],
)
def test_bad_labels_are_named_by_column_and_row(labels, message, name):
    with pytest.raises(ValueError, match=f"column '{name}'.*{message}"):
        collated(labels, name) if labels.ndim else check_labels({name: labels}, 3)


def test_a_bad_label_without_index_is_named_by_its_place():
    with pytest.raises(ValueError, match="sample 1 of the batch: label 9 is outside 0..8"):
        check_labels({"labels": torch.tensor([8, 9])}, 9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_any_size_become_what_losses_take(dtype):
    batch = collated(torch.tensor([0, 2, 1], dtype=dtype))
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [0, 2, 1]


def test_no_labels_and_no_number_of_labels_are_fine():
    check_labels({"x": torch.zeros(2)}, 3)
    check_labels({"labels": None}, 3)
    assert collated(torch.tensor([7.5]), num_labels=None)["labels"].tolist() == [7.5]


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
def test_a_forward_sees_neither_label_nor_index(name):
    batch = {name: torch.tensor([1]), INDEX_COLUMN: torch.tensor([4]), "x": torch.ones(1)}
    assert set(model_inputs(batch)) == {"x"}
    assert model_inputs(batch, torch.device("cpu"))["x"] is batch["x"]
    assert labels_of(batch) is batch[name]
    assert labels_of({"x": torch.ones(1), "labels": None}) is None


# ---- meta batches ----------------------------------------------------------------------------------------------------


def meta_batches(dataset=None, size=8, batch_size=3, seed=5, **kwargs):
    dataset = IndexedDataset(Counted()) if dataset is None else dataset
    return MetaBatches(dataset, size, batch_size, SampleCollator(default_data_collator), seed, **kwargs)


def rows_of(batches, numbers):
    return [batches.batch(number)[INDEX_COLUMN].tolist() for number in numbers]


def test_any_order_gives_the_same_batches():
    in_order = rows_of(meta_batches(), range(6))
    assert len({tuple(rows) for rows in in_order}) > 1
    for order in ([5, 0, 3, 3, 4, 1], [2, 3, 4, 0], [4]):
        assert rows_of(meta_batches(), order) == [in_order[number] for number in order]
    assert rows_of(meta_batches(seed=6), range(6)) != in_order


def test_rows_are_fixed_and_drawn_without_replacement():
    batches = meta_batches()
    assert len(set(batches.rows)) == 8
    assert set(batches.rows) <= set(range(20))
    assert batches.rows == meta_batches().rows
    assert batches.rows != meta_batches(seed=6).rows
    seen = rows_of(batches, range(30))
    assert all(len(set(rows)) == 3 for rows in seen)
    assert {row for rows in seen for row in rows} == set(batches.rows)
    batch = batches.batch(30)
    assert batch["x"].flatten().tolist() == [10.0 * row for row in batch[INDEX_COLUMN].tolist()]


def test_use_in_order_reads_each_batch_once_from_one_loader(monkeypatch):
    built = []
    loader = torch.utils.data.DataLoader

    def counting(*args, **kwargs):
        built.append(1)
        return loader(*args, **kwargs)

    monkeypatch.setattr("hf_clidmu.batches.DataLoader", counting)
    dataset = Counted()
    batches = meta_batches(IndexedDataset(dataset))
    assert dataset.read == []
    for number in range(3, 13):
        batches.batch(number)
    assert len(built) == 1
    assert len(dataset.read) == 10 * 3
    batches.batch(3)
    assert len(built) == 2


def test_all_rows_and_batches_larger_than_the_set():
    batches = meta_batches(size=None, batch_size=64)
    assert sorted(batches.rows) == list(range(20))
    assert sorted(rows_of(batches, [0])[0]) == list(range(20))


def test_the_evaluation_view_is_judged():
    batch = meta_batches(IndexedDataset(Augmented())).batch(0)
    assert batch["x"].flatten().tolist() == [10.0 * row for row in batch[INDEX_COLUMN].tolist()]


def test_workers_give_the_same_batches():
    assert rows_of(meta_batches(num_workers=1), [2, 3, 0]) == rows_of(meta_batches(), [2, 3, 0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_state_is_neither_used_nor_changed(num_workers):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rows_of(meta_batches(num_workers=num_workers), [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert rows_of(meta_batches(), [0, 1]) == first


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [(20, 21, "meta_size=21 is larger than the dataset, which has 20 rows"), (0, None, "empty"), (0, 3, "empty")],
)
def test_a_set_that_is_too_small_is_an_error(length, size, message):
    with pytest.raises(ValueError, match=message):
        meta_batches(IndexedDataset(Counted(length)), size=size)


def test_random_rows_are_a_function_of_the_seed():
    assert random_rows(50, 10, 1, "judge_size") == random_rows(50, 10, 1, "judge_size")
    assert random_rows(50, 10, 1, "judge_size") == random_rows(50, None, 1, "judge_size")[:10]
    with pytest.raises(ValueError, match="judge_size=2 is larger"):
        random_rows(1, 2, 0, "judge_size")


def test_the_nth_draw_depends_on_n_alone():
    def draws(start, count):
        batches = iter(RandomRows([3, 5, 8, 9], 2, seed=4, start=start))
        return [next(batches) for _ in range(count)]

    assert draws(0, 6)[2:] == draws(2, 4)
    assert all(set(rows) <= {3, 5, 8, 9} and len(set(rows)) == 2 for rows in draws(0, 20))


def test_a_stream_is_told_by_its_lack_of_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    assert is_stream(Stream()) and is_stream(iter([1]))
    assert not is_stream([1, 2]) and not is_stream(None)
