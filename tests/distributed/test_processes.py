"""Two processes with batch b do what one process with batch 2b does."""

import json
from pathlib import Path

import process_checks
import pytest
import torch

from hf_clidmu.checkpoints import checkpoints
from hf_clidmu.weighting import available_weightings


# Stochastic gradient descent in double precision, no dropout: nothing but the order of sums may differ.
EXACT = {
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "learning_rate": 0.1,
    "max_grad_norm": 0.0,
    "max_steps": 10,
    "meta_warmup_steps": 1,
    "meta_learning_rate": 1e-2,
    "clid_across_processes": True,
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_steps": 5,
}
HELPERS = ("run", "rows")
WEIGHTINGS = available_weightings()


def _is_check(value):
    return callable(value) and getattr(value, "__module__", "") == "process_checks" and value.__name__ not in HELPERS


def trained(launch, tmp_path, name, processes, size=80, job=None, **changes):
    """A run's parameters, and what its processes report; the state of its weighting is among the first report."""
    job = {
        **(job or {}),
        "output_dir": tmp_path / name,
        "report": tmp_path / f"{name}.json",
        "tensors": tmp_path / f"{name}.pt",
        "processes": processes,
        "exact": True,
        "size": size,
        "config": {**EXACT, "per_device_train_batch_size": 8 // processes, **changes},
    }
    codes = launch(**job)
    log = "\n".join(Path(f"{job['report']}.{rank}.log").read_text()[-3000:] for rank in range(processes))
    assert codes == [0] * processes, log
    reports = [json.loads(Path(f"{job['report']}.{rank}").read_text()) for rank in range(processes)]
    tensors = torch.load(f"{job['tensors']}.0", weights_only=True)
    return tensors["model"], [{**report, "phi": tensors["weighting"]} for report in reports]


def relative_difference(state, expected):
    """The largest of all tensors that are more than rounding: a key's bias has no gradient at all."""
    assert state.keys() == expected.keys()
    real = {name: value for name, value in expected.items() if value.is_floating_point() and value.norm() > 1e-12}
    assert len(real) >= len(expected) - 3
    return max(float((state[name] - value).norm() / value.norm()) for name, value in real.items())


@pytest.mark.parametrize("check", [name for name, value in vars(process_checks).items() if _is_check(value)])
def test_in_two_processes(check, launch, tmp_path):
    report = tmp_path / "report.json"
    codes = launch(check=check, processes=2, report=report)
    assert codes == [0, 0], "\n".join(Path(f"{report}.{rank}.log").read_text()[-3000:] for rank in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("meta_source", ["subset", "batch"])
def test_two_processes_do_what_one_does_with_twice_the_batch(weighting, meta_source, launch, tmp_path):
    changes = {"weighting": weighting, "meta_source": meta_source}
    if weighting == "none":  # Trainer's own scaling by the number of processes, which these models do not expect
        changes["average_tokens_across_devices"] = False
    (one, [report]), (two, reports) = (trained(launch, tmp_path, f"p{n}", n, **changes) for n in (1, 2))
    assert all(value.dtype == torch.float64 for value in one.values() if value.is_floating_point())
    assert relative_difference(two, one) <= 1e-9
    for key in ("meta_loss", "weight_mean", "loss"):
        values = [[float(entry[key]) for entry in r["log"] if key in entry] for r in (report, *reports)]
        assert values[1:] == [pytest.approx(values[0], rel=1e-6)] * 2 or values[2] == []
    assert reports[0]["parts"] == reports[1]["parts"]  # weighting, its optimiser, ledger and counts are the same


@pytest.mark.slow
def test_without_a_weighting_two_processes_are_those_of_trainer_bit_for_bit(launch, tmp_path):
    # Trainer multiplies the loss by the number of processes for models that take `num_items_in_batch`; BERT takes it
    # and divides by the number of its own samples instead. That is so here, too: a baseline is Trainer's.
    changes = {"weighting": "none", "gradient_accumulation_steps": 2, "optim": "adamw_torch", "max_grad_norm": 1.0}
    changes |= {"per_device_train_batch_size": 4, "logging_steps": 1}
    ours, reports = trained(launch, tmp_path, "ours", 2, **changes)
    stock, expected = trained(launch, tmp_path, "stock", 2, job={"stock": True}, **changes)
    assert all(torch.equal(value, stock[name]) for name, value in ours.items())
    for report, other in zip(reports, expected, strict=True):
        for part in ("model", "optimizer", "scheduler", "rng", "log", "step"):
            assert report[part] == other[part], part
    assert reports[0]["times_seen"] == reports[1]["times_seen"] and sum(reports[0]["times_seen"]) == 160


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step_and_they_go_on(launch, tmp_path):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "eval_strategy": "steps"}
    changes |= {"eval_steps": 2, "enable_jit_checkpoint": True}
    _, whole = trained(launch, tmp_path, "whole", 2, **changes)
    _, told = trained(launch, tmp_path, "told", 2, job={"tell_rank": 1, "tell_at": 3}, **changes)
    assert [report["step"] for report in told] == [4, 4]
    assert [path.name for path in checkpoints(tmp_path / "told")] == ["checkpoint-4"]
    _, resumed = trained(launch, tmp_path, "told", 2, job={"resume": True, "model_seed": 5}, **changes)
    for report, expected in zip(resumed, whole, strict=True):
        for part in set(expected) - {"events", "phi"}:
            assert report[part] == expected[part], part


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("weighting", ["vri", "none"])
def test_what_the_sampler_repeats_is_not_counted(weighting, accumulation, launch, tmp_path):
    # 44 samples in batches of 4 for 2 processes: the last round of an epoch is filled up with the first samples.
    changes = {"weighting": weighting, "gradient_accumulation_steps": accumulation, "max_steps": -1}
    _, reports = trained(launch, tmp_path, "run", 2, size=44, num_train_epochs=3, **changes)
    assert [report["times_seen"] for report in reports] == [[3] * 44] * 2
    assert reports[0]["ledger"] == reports[1]["ledger"]


@pytest.mark.slow
def test_a_weighting_of_each_process_own_is_refused_at_the_start(launch, tmp_path):
    job = {"output_dir": tmp_path / "run", "report": tmp_path / "report.json", "own_weighting_of_seed": 3}
    assert launch(**job, processes=2) == [1, 1]
    log = Path(f"{job['report']}.1.log").read_text()
    assert "the weighting differs between processes: process 1 from process 0. All must start from the same" in log
