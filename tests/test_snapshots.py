"""Snapshots: what is ranked, what stays on disk, what is put back."""

import errno
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_clidmu.snapshots import (
    Snapshot,
    Snapshots,
    changing_state,
    load_changing_state,
    mean_log_probability,
    running_mean,
    selection_score,
)


class Net(nn.Module):
    """A frozen layer, a normalisation with buffers, a trainable layer; every value equals `value`."""

    def __init__(self, value=0.0, width=3):
        super().__init__()
        self.below = nn.Linear(2, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)
        self.below.requires_grad_(False)
        self.set(value)

    def set(self, value, batches=0):
        with torch.no_grad():
            for parameter in (*self.norm.parameters(), *self.head.parameters()):
                parameter.fill_(value)
            self.norm.running_mean.fill_(value)
            self.norm.num_batches_tracked.fill_(batches)
        return self


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def names(*steps):
    return sorted(["snapshots.json", *(f"step-{step}.safetensors" for step in steps)])


def head_value(model):
    values = {value for parameter in model.head.parameters() for value in parameter.detach().flatten().tolist()}
    assert len(values) == 1
    return values.pop()


def filled(folder, clids, top_k=2, **kwargs):
    """Snapshots at steps 1, 2, ...; the weights at a step all equal the step."""
    snapshots = Snapshots(folder, top_k, **kwargs)
    model = Net()
    best = [snapshots.add(step, clid, model.set(step, batches=10 * step)) for step, clid in enumerate(clids, 1)]
    return snapshots, best


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_lowest_clid_first_and_of_equal_ones_the_earlier(tmp_path):
    snapshots, best = filled(tmp_path, [3.0, 2.0, 2.0, 5.0, 1.0, 1.0], top_k=3)
    assert [snapshot.step for snapshot in snapshots.ranked()] == [5, 6, 2, 3, 1, 4]
    assert [snapshot.step for snapshot in snapshots.kept] == [5, 6, 2]
    assert best == [True, True, False, False, True, False]
    assert snapshots.best == Snapshot(5, 1.0, "step-5.safetensors")


def test_of_equal_ones_the_later_where_that_is_asked_for(tmp_path):
    snapshots, best = filled(tmp_path, [3.0, 2.0, 2.0, 5.0, 1.0, 1.0], top_k=3, later=True)
    assert [snapshot.step for snapshot in snapshots.ranked()] == [6, 5, 3, 2, 1, 4]
    assert [snapshot.step for snapshot in snapshots.kept] == [6, 5, 3]
    assert best == [True, True, True, False, True, True]


def test_before_the_first_evaluation_there_is_nothing(tmp_path):
    snapshots = Snapshots(tmp_path / "none", 2)
    model = Net(7.0)
    snapshots.load_selected(model)
    assert (snapshots.best, snapshots.ranked(), snapshots.kept) == (None, [], [])
    assert head_value(model) == 7.0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_kept(value, tmp_path):
    snapshots, best = filled(tmp_path, [value, 4.0, value], top_k=3)
    assert best == [False, True, False]
    assert [snapshot.step for snapshot in snapshots.kept] == [2]
    assert [snapshot.step for snapshot in snapshots.history] == [1, 2, 3]
    assert files(tmp_path) == names(2)


def test_top_k_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Snapshots(tmp_path, 0)


# ---- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_exactly_the_best_k_are_on_disk_after_every_step(top_k, tmp_path):
    clids = [5.0, 3.0, 4.0, 3.0, 6.0, 1.0, 2.0]
    snapshots, model = Snapshots(tmp_path / "made" / "here", top_k), Net()
    for step, clid in enumerate(clids, 1):
        snapshots.add(step, clid, model.set(step))
        best = sorted(range(1, step + 1), key=lambda s: (clids[s - 1], s))[:top_k]
        assert files(tmp_path / "made" / "here") == names(*best)
        assert [snapshot.step for snapshot in snapshots.kept] == best
        for snapshot in snapshots.kept:
            assert float(snapshots.weights(snapshot)["head.bias"][0]) == snapshot.step
    index = json.loads((tmp_path / "made" / "here" / "snapshots.json").read_text())
    assert index == snapshots.save_kept_state()
    assert [entry["score"] for entry in index] == clids


def test_a_step_that_is_evaluated_again_replaces_itself(tmp_path):
    snapshots, _ = filled(tmp_path, [2.0, 3.0])
    assert snapshots.add(2, 1.0, Net(20.0))
    assert [(s.step, s.score) for s in snapshots.history] == [(1, 2.0), (2, 1.0)]
    assert files(tmp_path) == names(1, 2)
    assert float(snapshots.weights(snapshots.best)["head.bias"][0]) == 20.0


@pytest.mark.parametrize("clid", [9.0, math.nan])
def test_a_step_that_got_worse_leaves_no_file_behind(clid, tmp_path):
    snapshots, _ = filled(tmp_path, [2.0, 3.0, 4.0], top_k=1)
    assert not snapshots.add(1, clid, Net())
    assert files(tmp_path) == ["snapshots.json"]  # the weights at step 2 are gone: nothing is kept, and it says so
    assert snapshots.kept == []


def test_a_process_that_does_not_write_leaves_the_disk_alone(tmp_path):
    writer, _ = filled(tmp_path, [2.0, 1.0, 3.0], top_k=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other, _ = filled(tmp_path, [2.0, 1.0, 3.0], top_k=1, writes=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert other.history == writer.history  # it knows what the writing process kept, and loads it
    model = Net()
    other.load_selected(model)
    assert head_value(model) == 2.0
    filled(tmp_path / "never", [1.0], writes=False)
    assert not (tmp_path / "never").exists()


def test_a_full_disk_costs_a_snapshot_and_nothing_else(tmp_path, monkeypatch, caplog):
    snapshots, _ = filled(tmp_path, [2.0, 3.0, 4.0], top_k=2)

    def broken(state, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_clidmu.files.save_file", broken)
    assert snapshots.add(4, 1.0, Net(5.0))  # the best so far, whatever became of its file
    assert "step-4.safetensors could not be written and is not kept: [Errno 28] No space left" in caplog.text
    assert [snapshot.step for snapshot in snapshots.kept] == [1, 2]  # nothing was pushed out by what is not there
    assert files(tmp_path) == names(1, 2)
    monkeypatch.undo()
    snapshots.add(5, 1.5, Net(6.0))
    assert [snapshot.step for snapshot in snapshots.kept] == [5, 1]
    assert files(tmp_path) == names(1, 5)


def test_an_error_that_is_not_the_disks_is_raised(tmp_path, monkeypatch):
    snapshots, _ = filled(tmp_path, [2.0])

    def broken(state, path, metadata=None):
        raise RuntimeError("something else")

    monkeypatch.setattr("hf_clidmu.files.save_file", broken)
    with pytest.raises(RuntimeError, match="something else"):
        snapshots.add(1, 1.0, Net(5.0))
    assert float(load_file(tmp_path / "step-1.safetensors")["head.bias"][0]) == 1.0


def test_a_checkpoint_holds_the_kept_weights_and_gives_them_back(tmp_path):
    snapshots, _ = filled(tmp_path / "a", [1.0, 2.0], top_k=2)
    history = snapshots.save_kept_state()
    snapshots.save_files(tmp_path / "kept")
    snapshots.add(3, 0.5, Net(3.0))
    snapshots.add(4, 0.4, Net(4.0))
    assert files(tmp_path / "a") == names(3, 4)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-1.safetensors", "step-2.safetensors"]
    for folder in ("a", "elsewhere"):
        other = Snapshots(tmp_path / folder, 2)
        other.load_files(tmp_path / "kept", history)
        other.load_kept_state(history)
        assert [float(other.weights(snapshot)["head.bias"][0]) for snapshot in other.kept] == [1.0, 2.0]


# ---- what is put back ------------------------------------------------------------------------------------------------


def test_a_lower_score_begins_the_mean_anew_and_a_state_counts_once(tmp_path):
    snapshots, _ = filled(tmp_path, [3.0, 3.0, 1.0], top_k=1, averages=True, later=True)
    snapshots.load_selected(model := Net(), "soup")
    assert (head_value(model), [snapshot.step for snapshot in snapshots.members]) == (3.0, [3])
    for step in (4, 4, 5):
        snapshots.add(step, 1.0, Net(step))
    snapshots.load_selected(model, "soup")
    assert (head_value(model), [snapshot.step for snapshot in snapshots.members]) == (4.0, [3, 4, 5])
    assert files(tmp_path) == ["mean.safetensors", *names(5)]


def test_the_mean_of_an_earlier_run_is_not_left_behind(tmp_path):
    filled(tmp_path, [1.0, 1.0], averages=True)
    filled(tmp_path, [1.0])
    assert files(tmp_path) == names(1)


def test_a_checkpoint_keeps_the_mean_of_its_time(tmp_path):
    snapshots, _ = filled(tmp_path / "run", [1.0, 1.0], averages=True)
    snapshots.save_files(tmp_path / "kept")
    history = snapshots.save_kept_state()
    snapshots.add(3, 1.0, Net(9.0))
    snapshots.load_files(tmp_path / "kept", history)
    snapshots.load_kept_state(history)
    snapshots.add(3, 1.0, Net(3.0))
    snapshots.load_selected(model := Net(), "soup")
    assert head_value(model) == 2.0


def test_where_the_disk_did_not_take_the_mean_a_single_state_is_selected(tmp_path, monkeypatch, caplog):
    snapshots, _ = filled(tmp_path, [1.0], averages=True)
    real = snapshots._write
    monkeypatch.setattr(snapshots, "_write", lambda name, state: not name.startswith("mean") and real(name, state))
    snapshots.add(2, 1.0, Net(2.0))
    monkeypatch.setattr(snapshots, "_write", real)
    snapshots.add(3, 1.0, Net(3.0))
    snapshots.load_selected(model := Net(), "soup")
    assert (head_value(model), [snapshot.step for snapshot in snapshots.members]) == (1.0, [1])


def test_single_loads_the_best_and_soup_the_mean_of_all_with_its_score(tmp_path):
    snapshots, _ = filled(tmp_path, [3.0, 1.0, 9.0, 1.0, 1.0], top_k=2, averages=True)
    model = Net(100.0)
    below = {name: value.clone() for name, value in model.below.state_dict().items()}
    for mode in ("single", "ensemble"):
        snapshots.load_selected(model.set(100.0), mode)
        assert head_value(model) == 2.0
        assert int(model.norm.num_batches_tracked) == 20
    snapshots.load_selected(model, "soup")
    assert [snapshot.step for snapshot in snapshots.members] == [2, 4, 5]
    assert head_value(model) == pytest.approx((2 + 4 + 5) / 3)
    assert float(model.norm.running_mean[0]) == pytest.approx(11 / 3)
    assert int(model.norm.num_batches_tracked) == 50  # of the last: integers have no mean
    for name, value in model.below.state_dict().items():
        assert torch.equal(value, below[name])


def test_frozen_parameters_are_not_saved(tmp_path):
    snapshots, _ = filled(tmp_path, [1.0])
    expected = {"head.weight", "head.bias"}
    expected |= {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(snapshots.weights(snapshots.best)) == expected == set(changing_state(Net()))


def test_a_snapshot_is_a_copy():
    model = Net(1.0)
    state = changing_state(model)
    model.set(2.0, batches=5)
    assert {float(value.flatten()[0]) for name, value in state.items() if "running_var" not in name} == {0.0, 1.0}
    load_changing_state(model, state)
    assert head_value(model) == 1.0
    assert int(model.norm.num_batches_tracked) == 0


def test_the_mean_does_not_lose_digits_in_half_precision():
    states = [
        {"a": torch.tensor([value], dtype=torch.bfloat16), "n": torch.tensor(n)} for value, n in ((256, 1), (1, 5))
    ]
    mean = states[0]
    for count in range(2, 257):
        mean = running_mean(mean, states[1], count)
    assert mean["a"].dtype == torch.float32
    assert float(mean["a"]) == pytest.approx(1 + 255 / 256)
    assert int(mean["n"]) == 5
    assert float(states[0]["a"]) == 256.0


@pytest.mark.parametrize("other", [Net(width=4), nn.Sequential(nn.Linear(3, 2)), nn.Linear(1, 1)])
def test_weights_of_another_model_are_refused(other, tmp_path):
    snapshots, _ = filled(tmp_path, [1.0])
    with pytest.raises(ValueError, match="does not fit the model"):
        snapshots.load_selected(other)


def test_a_state_that_lacks_a_trainable_parameter_is_refused():
    state = changing_state(Net())
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"missing \['head.bias'\]"):
        load_changing_state(Net(), state)


def test_weights_that_are_not_there_are_named(tmp_path):
    snapshots, _ = filled(tmp_path, [1.0, 2.0, 3.0], top_k=2)
    with pytest.raises(FileNotFoundError, match=r"step 3 .*only the best 2"):
        snapshots.weights(snapshots.history[2])
    (tmp_path / "step-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="step 1 "):
        snapshots.load_selected(Net())


# ---- continuing ------------------------------------------------------------------------------------------------------


def test_history_goes_through_json(tmp_path):
    snapshots, _ = filled(tmp_path, [3.0, math.nan, 1.0, 0.1 + 0.2], top_k=2)
    other = Snapshots(tmp_path, 2)
    other.load_kept_state(json.loads(json.dumps(snapshots.save_kept_state())))
    assert other.ranked() == snapshots.ranked()
    assert other.kept == snapshots.kept
    assert [snapshot.step for snapshot in other.history] == [1, 2, 3, 4]
    assert math.isnan(other.history[1].score)
    other.add(5, 0.2, Net(5.0))
    assert files(tmp_path) == names(4, 5)


def test_a_kept_file_that_vanished_is_not_kept(tmp_path):
    snapshots, _ = filled(tmp_path, [1.0, 2.0])
    history = snapshots.save_kept_state()
    (tmp_path / "step-1.safetensors").unlink()
    other = Snapshots(tmp_path, 2)
    other.load_kept_state(history)
    assert [snapshot.step for snapshot in other.kept] == [2]
    assert other.best.step == 1  # it is still the best that was seen
    model = Net()
    other.load_selected(model)
    assert head_value(model) == 2.0


@pytest.mark.parametrize("name", ["../../step-1.safetensors", "../step-1.safetensors", "/etc/passwd", "sub/../../x"])
def test_a_name_in_a_history_cannot_leave_the_folder(name, tmp_path):
    folder = tmp_path / "a" / "snapshots"
    filled(folder, [1.0])
    history = [{"step": 1, "score": 1.0, "file": name}]
    snapshots = Snapshots(folder, 1)
    with pytest.raises(ValueError, match="which is no snapshot: step, score and file of its weights"):
        snapshots.load_kept_state(history)
    with pytest.raises(ValueError, match="which is no snapshot"):
        snapshots.load_files(tmp_path, history)
    assert snapshots.history == [] and files(folder) == names(1)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {"step": 1},
        [1],
        [{"step": -1, "score": 1.0, "file": None}],
        [{"step": 1.5, "score": 1.0, "file": None}],
        [{"step": True, "score": 1.0, "file": None}],
        [{"step": 1, "score": "1", "file": None}],
        [{"step": 1, "score": float("inf"), "file": None}],
        [{"step": 1, "score": 1.0, "file": ""}],
        [{"step": 1, "score": 1.0, "file": 7}],
        [{"step": 1, "score": 1.0, "file": None, "run": "this"}],
    ],
)
def test_a_history_that_is_none_is_refused(values, tmp_path):
    with pytest.raises(ValueError, match="which is no snapshot|where a list belongs"):
        Snapshots(tmp_path, 1).load_kept_state(values)


@pytest.mark.parametrize(
    "metric, greater, expected",
    [
        ("clid", False, 4.2),
        ("eval_clid", False, 4.2),
        (None, None, 4.2),
        ("accuracy", True, -0.7),
        ("loss", False, 1.5),
    ],
)
def test_the_metric_that_was_named_ranks(metric, greater, expected):
    assert selection_score({"eval_clid": 4.2, "eval_accuracy": 0.7, "eval_loss": 1.5}, metric, greater) == expected


def test_a_metric_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="'f1' is not among the metrics of an evaluation: eval_clid"):
        selection_score({"eval_clid": 4.2}, "f1", True)


def test_an_ensemble_is_the_mean_of_probabilities_not_of_logits():
    members = [np.array([[0.0, np.log(3.0)]]), np.array([[1000.0, 0.0]])]
    found_NC = np.exp(mean_log_probability(members))
    np.testing.assert_allclose(found_NC, [[(0.25 + 1) / 2, 0.75 / 2]], rtol=1e-6)
