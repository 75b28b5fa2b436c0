"""Two processes that share the parameters (FSDP2) train the model that two with a copy each do (DDP), and one alone."""

import shutil
from pathlib import Path

import pytest
import torch
from test_processes import relative_difference, trained
from transformers import AutoModelForSequenceClassification

from hf_clidmu.checkpoints import checkpoints, flaw


pytestmark = pytest.mark.slow
# Several micro-batches, Adam, clipping, evaluations, snapshots, checkpoints.
EVERYTHING = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.5,
    "max_steps": 8,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 5,
    "logging_steps": 3,
}


@pytest.mark.parametrize("scope", ["head", "all", "layer.1"])
def test_parameters_and_weighting_are_those_of_ddp_and_of_one_process(scope, launch, tmp_path):
    one, [expected] = trained(launch, tmp_path, "one", 1, scope=scope)
    copied, _ = trained(launch, tmp_path, "copied", 2, scope=scope)
    # Each block by itself; or all as one, and then a forward leaves all parameters whole.
    for wrap in ("TRANSFORMER_BASED_WRAP", "NO_WRAP"):
        job = {"fsdp2": {"fsdp_auto_wrap_policy": wrap}}
        spread, reports = trained(launch, tmp_path, wrap, 2, job=job, scope=scope)
        assert relative_difference(spread, copied) <= 1e-9
        assert relative_difference(spread, one) <= 1e-9
        for name, value in expected["phi"].items():
            torch.testing.assert_close(reports[0]["phi"][name], value, rtol=1e-7, atol=1e-9)
        for part in ("model", "parts", "ledger"):
            assert reports[0][part] == reports[1][part], part


@pytest.mark.parametrize(
    "changes", [{"head_steps": 3}, {"scope": "all", "preconditioner": "adam", "snapshot_mode": "soup"}]
)
def test_a_whole_run_its_checkpoints_and_the_model_it_saves(changes, launch, tmp_path):
    job = {"fsdp2": {}, "save_to": str(tmp_path / "saved")}
    copied, _ = trained(launch, tmp_path, "copied", 2, **{**EVERYTHING, **changes})
    spread, reports = trained(launch, tmp_path, "spread", 2, job=job, **{**EVERYTHING, **changes})
    # Adam divides by the root of numbers near zero, and a finite difference by its radius, 1e-6.
    rtol, atol = (1e-5, 1e-7) if changes.get("scope") == "all" else (1e-7, 1e-9)
    for name, value in copied.items():
        torch.testing.assert_close(
            spread[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    # What CLID selected is saved as one file that anybody can load.
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float64).state_dict()
    assert saved.keys() == spread.keys() and all(torch.equal(value, spread[name]) for name, value in saved.items())
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    # Any checkpoint leads to the same end, bit for bit.
    written = checkpoints(tmp_path / "spread")
    assert [path.name for path in written] == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    assert [flaw(path) for path in written] == [None] * 3
    for path in written[1:]:
        shutil.rmtree(path)
    _, resumed = trained(
        launch, tmp_path, "spread", 2, job={**job, "resume": True, "model_seed": 5}, **{**EVERYTHING, **changes}
    )
    for report, expected in zip(resumed, reports, strict=True):
        for part in set(expected) - {"events", "phi"}:
            assert report[part] == expected[part], part


def test_a_full_disk_keeps_no_process_waiting(launch, tmp_path):
    _, expected = trained(launch, tmp_path, "spread", 2, job={"fsdp2": {}}, **EVERYTHING)
    _, reports = trained(launch, tmp_path, "full", 2, job={"fsdp2": {}, "disk_full_after": 9}, **EVERYTHING)
    log = Path(tmp_path / "full.json.0.log").read_text()
    assert "No space left on device" in log and "could not be written" in log
    assert [flaw(path) for path in checkpoints(tmp_path / "full")] == [None] * len(checkpoints(tmp_path / "full"))
    for report, other in zip(reports, expected, strict=True):
        assert report["optimizer"] == other["optimizer"] and report["step"] == 8


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, {}, "Set fsdp_state_dict_type: FULL_STATE_DICT"),
        ({"fsdp_offload_params": True}, {}, "fsdp_offload_params is not supported"),
        ({}, {"scope": "all", "tangent": "forward"}, "use tangent='finite_difference'"),
    ],
)
def test_refused_before_anything_is_computed(settings, changes, message, launch, tmp_path):
    report = tmp_path / "run.json"
    codes = launch(output_dir=tmp_path / "run", report=report, processes=2, fsdp2=settings, config=changes)
    assert codes == [1, 1]
    assert message in Path(f"{report}.0.log").read_text()
