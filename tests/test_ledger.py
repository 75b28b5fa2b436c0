"""The ledger against a record kept sample by sample in plain Python."""

import math
from collections import Counter

import pyarrow.parquet
import pytest
import torch

from hf_clidmu.ledger import Ledger


N, C = 13, 4
COLUMNS = [
    "index",
    "given_label",
    "predicted_label",
    "label_score",
    "margin",
    "agreement",
    "times_seen",
    "times_forgotten",
    "loss",
    "weight",
]


def random_batches(seed, steps=40, samples=N, fixed_labels=True):
    """Batches of different rows with a label that belongs to the row, random logits and random weights."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, C, (samples,), generator=generator)
    for _ in range(steps):
        size = int(torch.randint(1, 7, (), generator=generator))
        index_B = torch.randperm(samples, generator=generator)[:size]
        logits_BC = torch.randn(size, C, generator=generator) * 2
        yield index_B, logits_BC, labels_N[index_B], torch.rand(size, generator=generator)


def reference(batches):
    """What the ledger should hold: a dictionary a sample, computed with `math` alone."""
    record = {}
    for index_B, logits_BC, labels_B, weight_B in batches:
        for i, row in enumerate(index_B.tolist()):
            logits, label = logits_BC[i].tolist(), int(labels_B[i])
            total = sum(math.exp(value) for value in logits)
            probability = math.exp(logits[label]) / total
            predicted = logits.index(max(logits))
            seen = record.setdefault(row, {"label": label, "p": [], "m": [], "loss": [], "w": [], "predicted": []})
            seen["label"] = label
            seen["p"].append(probability)
            seen["m"].append(logits[label] - max(value for c, value in enumerate(logits) if c != label))
            seen["loss"].append(-math.log(probability))
            seen["w"].append(float(weight_B[i]))
            seen["predicted"].append(predicted)
    return record


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(5))
def test_columns_are_those_of_a_record_kept_sample_by_sample(seed):
    batches = list(random_batches(seed))
    ledger = Ledger(N)
    for batch in batches:
        ledger.update(*batch)
    expected = reference(batches)
    rows = ledger.table().to_pylist()
    assert [row["index"] for row in rows] == sorted(expected)
    assert sum(row["times_forgotten"] for row in rows) > 0
    for row in rows:
        seen = expected[row["index"]]
        agreed = [predicted == seen["label"] for predicted in seen["predicted"]]
        assert row["given_label"] == seen["label"]
        assert row["times_seen"] == len(agreed)
        assert row["times_forgotten"] == sum(
            before and not now for before, now in zip(agreed, agreed[1:], strict=False)
        )
        assert row["agreement"] == pytest.approx(mean(agreed))
        assert row["label_score"] == pytest.approx(mean(seen["p"]), rel=1e-5)
        assert row["margin"] == pytest.approx(mean(seen["m"]), rel=1e-4, abs=1e-5)
        assert row["loss"] == pytest.approx(mean(seen["loss"]), rel=1e-5)
        assert row["weight"] == pytest.approx(mean(seen["w"]), rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_the_predicted_label_is_the_majority_whenever_there_is_one(seed):
    generator = torch.Generator().manual_seed(seed)
    ledger, times = Ledger(30), 9
    predicted_TN = torch.randint(0, 3, (times, 30), generator=generator)
    for predicted_N in predicted_TN:
        logits_NC = torch.nn.functional.one_hot(predicted_N, 3).float() * 5
        ledger.update(torch.arange(30), logits_NC, torch.zeros(30, dtype=torch.long))
    found = ledger.table()["predicted_label"].to_pylist()
    majorities = 0
    for row in range(30):
        label, count = Counter(predicted_TN[:, row].tolist()).most_common(1)[0]
        if count > times / 2:
            majorities += 1
            assert found[row] == label, predicted_TN[:, row].tolist()
    assert majorities > 3


def test_a_sample_that_stands_twice_in_a_batch_counts_once():
    ledger = Ledger(5)
    logits_BC = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    ledger.update(torch.tensor([3, 3, 1]), logits_BC, torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5, 2.0]))
    table = ledger.table().to_pydict()
    assert table["index"] == [1, 3]
    assert table["times_seen"] == [1, 1]
    assert table["weight"] == [2.0, 0.5]
    assert table["label_score"][1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert table["agreement"] == [1.0, 1.0]


def test_without_weights_every_label_counts_fully():
    ledger = Ledger(2)
    for _ in range(3):
        ledger.update(torch.tensor([0]), torch.randn(1, C), torch.tensor([1]))
    assert ledger.table()["weight"].to_pylist() == [1.0]


def test_it_listens_without_a_graph_and_in_half_precision():
    ledger = Ledger(3)
    logits_BC = torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16, requires_grad=True)
    weight_B = torch.tensor([0.25], requires_grad=True)
    ledger.update(torch.tensor([2]), logits_BC, torch.tensor([0]), weight_B)
    assert not any(values.requires_grad for values in ledger.state_dict().values())
    row = ledger.table().to_pylist()[0]
    assert row["margin"] == -2.0
    assert row["label_score"] == pytest.approx(1 / (1 + math.exp(2)), rel=1e-6)


def test_a_sample_costs_at_most_64_bytes():
    ledger = Ledger(1000)
    for batch in random_batches(seed=0):
        ledger.update(*batch)
    held = [value for value in vars(ledger).values() if isinstance(value, torch.Tensor)]  # columns are views of these
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) <= 64 * 1000
    state = ledger.state_dict()
    assert sum(values.untyped_storage().nbytes() for values in state.values()) <= 64 * 1000


@pytest.mark.parametrize("samples", [1, 5])
def test_the_saved_record_shares_no_memory(samples):
    ledger = Ledger(samples)
    state = ledger.state_dict()
    assert len({values.untyped_storage().data_ptr() for values in state.values()}) == len(state)
    ledger.update(torch.tensor([0]), torch.randn(1, C), torch.tensor([1]))
    assert not any(bool(values.any()) for name, values in state.items() if name not in ("given_label", "candidate"))


def test_table_has_the_documented_columns_and_leaves_out_what_was_never_seen():
    ledger = Ledger(6)
    assert ledger.table().num_rows == 0
    assert ledger.table().column_names == COLUMNS
    ledger.update(torch.tensor([4, 2]), torch.eye(2), torch.tensor([0, 0]))
    table = ledger.table()
    assert table.column_names == COLUMNS
    assert table["index"].to_pylist() == [2, 4]
    assert table["predicted_label"].to_pylist() == [1, 0]
    assert table["agreement"].to_pylist() == [0.0, 1.0]


def test_suspects_are_ordered_by_how_little_the_run_believes_the_label():
    ledger = Ledger(6)
    given_B = torch.tensor([1.0, -2.0, 0.0, 3.0, -2.0])  # logit of the given label; the other one is 0
    logits_BC = torch.stack([given_B, torch.zeros(5)], dim=1)
    ledger.update(torch.tensor([0, 5, 2, 3, 1]), logits_BC, torch.zeros(5, dtype=torch.long))
    suspects = ledger.suspects()
    assert suspects["index"].tolist() == [1, 5, 2, 0, 3]  # equal ones by index
    assert suspects["label_score"].is_monotonic_increasing
    assert suspects.index.tolist() == [0, 1, 2, 3, 4]
    assert ledger.suspects(2)["index"].tolist() == [1, 5]
    assert len(ledger.suspects(100)) == 5


def test_state_continues_the_record():
    batches = list(random_batches(seed=3))
    whole, first, second = Ledger(N), Ledger(N), Ledger(N)
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:17]:
        first.update(*batch)
    saved = {name: values.clone() for name, values in first.state_dict().items()}
    second.load_state_dict(saved)
    first.update(*batches[0])  # what is loaded is a copy
    for batch in batches[17:]:
        second.update(*batch)
    assert second.table().equals(whole.table())
    assert not first.table().equals(whole.table())


@pytest.mark.parametrize("change", ["size", "missing", "additional"])
def test_the_record_of_another_dataset_or_version_is_refused(change):
    state = Ledger(7).state_dict()
    if change == "missing":
        state.pop("margin")
    elif change == "additional":
        state["entropy"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"does not fit.*another training dataset"):
        Ledger(8 if change == "size" else 7).load_state_dict(state)


def test_save_writes_the_table_whole_or_not_at_all(tmp_path, monkeypatch):
    ledger = Ledger(N)
    for batch in random_batches(seed=1):
        ledger.update(*batch)
    path = tmp_path / "ledger.parquet"
    ledger.save(path)
    saved = pyarrow.parquet.read_table(path)
    assert saved.equals(ledger.table())
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.parquet"]

    def broken(table, where, **kwargs):
        where.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", broken)
    with pytest.raises(OSError, match="no space"):
        ledger.save(path)
    monkeypatch.undo()
    assert pyarrow.parquet.read_table(path).equals(saved)
