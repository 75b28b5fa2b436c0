"""Two processes with batch b do what one process with batch 2b does."""

import json
from pathlib import Path

import process_checks
import pytest
import torch

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


def trained(launch, tmp_path, name, processes, size=80, **changes):
    job = {
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
    return torch.load(f"{job['tensors']}.0", weights_only=True), reports


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
