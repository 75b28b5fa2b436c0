"""Runs that meet full disks, damaged files and their own last step. Kills are in `distributed/test_survival.py`."""

import json
import logging
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from disks import files_limited_to, full
from test_trainer import Samples, assert_bitwise_equal, losses, settings, train
from tiny_models import tiny_classifier
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from hf_clidmu.checkpoints import checkpoints, flaw, is_sealed
from hf_clidmu.files import write_json
from hf_clidmu.state import VERSION
from hf_clidmu.trainer import CLIDMUTrainer


SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_steps": 2}


def again(tmp_path, resume=True, seed=5, **changes):
    args = settings(tmp_path, **{**SAVING, **changes})
    run = CLIDMUTrainer(tiny_classifier("bert", seed=seed), args, default_data_collator, Samples("bert"))
    run.train(resume_from_checkpoint=resume)
    return run


def steps(folder):
    return [int(path.name.split("-")[1]) for path in checkpoints(folder)]


def assert_same_run(run, expected):
    assert losses(run) == losses(expected)
    assert_bitwise_equal(run.model, expected.model)
    assert_bitwise_equal(run.weighting, expected.weighting)
    assert run.ledger.table().equals(expected.ledger.table())
    assert run.snapshots.history == expected.snapshots.history


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_and_the_user_told(tmp_path, caplog):
    whole = train("bert", tmp_path / "a", **SAVING)
    train("bert", tmp_path / "b", **SAVING)
    damaged = tmp_path / "b" / "checkpoint-6" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        run = again(tmp_path / "b")
    size = damaged.stat().st_size  # it was written anew
    assert f"Continuing from {tmp_path}/b/checkpoint-4, the newest whole checkpoint. Passed over: " in caplog.text
    assert f"{tmp_path}/b/checkpoint-6: its file optimizer.pt has {size - 10} bytes instead of {size}" in caplog.text
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "trainer_state.json", "rng_state.pth", "clidmu/ledger.safetensors"]
)
def test_a_path_is_checked_like_the_newest(file, tmp_path, caplog):
    train("bert", tmp_path, **SAVING)
    (tmp_path / "checkpoint-4" / file).unlink()
    run = again(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert f"Continuing from {tmp_path}/checkpoint-2" in caplog.text and f"its file {file} is missing" in caplog.text
    assert run.state.global_step == 6
    (tmp_path / "checkpoint-2" / file).write_bytes(b"")
    (tmp_path / "checkpoint-4" / file).unlink()
    with pytest.raises(
        ValueError, match=rf"no whole checkpoint at .*checkpoint-4.*its file {file} .*checkpoint-2: its"
    ):
        again(tmp_path, resume=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_of_another_version_is_never_loaded(tmp_path):
    train("bert", tmp_path, **{**SAVING, "max_steps": 2})
    path = tmp_path / "checkpoint-2" / "clidmu" / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), "version": 1})
    with pytest.raises(ValueError, match=f"checkpoint-2: it has format 1, this version reads format {VERSION}"):
        again(tmp_path)


def test_without_a_checkpoint_to_go_on_from_the_error_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"there is no whole checkpoint in .* \(there is none\). Start without"):
        again(tmp_path)


def test_a_finished_run_takes_not_one_step_more(tmp_path):
    common = {**SAVING, "max_steps": 13, "save_steps": 13}  # in the middle of its second epoch
    whole = train("bert", tmp_path, **common)
    before = torch.get_rng_state()
    run = again(tmp_path, **common)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.state.global_step == 13
    assert_same_run(run, whole)


def test_a_run_that_saves_between_two_logs_logs_what_the_unbroken_one_does(tmp_path):
    common = {**SAVING, "max_steps": 10, "logging_steps": 4, "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = train("bert", tmp_path, **common)
    run = again(tmp_path, resume=str(tmp_path / "checkpoint-3"), **common)
    keys = ("loss", "grad_norm", "meta_loss", "clid", "weight_mean", "weight_std", "meta_skipped", "eval_clid")
    logs = [[{key: e[key] for key in keys if key in e} for e in one.state.log_history] for one in (whole, run)]
    assert logs[0] == logs[1] and sum("loss" in entry for entry in logs[0]) == 2
    # Trainer's mean is over this call: steps 4 to 10. Earlier versions divide their sum by all steps of the run.
    total = whole.state.log_history[-1]["train_loss"] * 10 - steps_loss(whole, tmp_path)
    found = run.state.log_history[-1]["train_loss"]
    assert found in (pytest.approx(total / 7, rel=1e-4), pytest.approx(total / 10, rel=1e-4))


def steps_loss(whole, tmp_path):
    """The sum of the first three steps' losses, of a run that logs each."""
    run = train("bert", tmp_path / "each", max_steps=10, eval_steps=2, gradient_accumulation_steps=2)
    return sum(losses(run)[:3])


def test_snapshots_that_were_pushed_out_since_come_back_with_their_checkpoint(tmp_path):
    whole = train("bert", tmp_path, **SAVING, snapshot_top_k=1)
    history = json.loads((tmp_path / "checkpoint-2" / "clidmu" / "state.json").read_text())["snapshots"]
    assert history[0]["file"] == "step-2.safetensors"
    for path in (tmp_path / "snapshots").iterdir():
        path.unlink()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    args = settings(tmp_path, **{**SAVING, "eval_strategy": "no", "save_strategy": "no", "snapshot_top_k": 1})
    run = CLIDMUTrainer(tiny_classifier("bert", 5), args, default_data_collator, Samples("bert"), callbacks=[Stop()])
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    weights = run.snapshots.weights(run.snapshots.best)
    assert run.snapshots.best.step == 2 and run.snapshots.history[0].score == whole.snapshots.history[0].score
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())


def test_augmentation_from_pythons_random_is_repeated(tmp_path):
    import random

    class Augmented(Samples):
        def __getitem__(self, row):
            sample = super().__getitem__(row)
            seen.append((row, random.random()))
            return sample

        def evaluation_view(self):
            return Samples("bert")

    draws = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        seen = []
        args = settings(tmp_path, **{**SAVING, "max_steps": 8, "per_device_train_batch_size": 10})
        run = CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Augmented("bert"))
        run.train(resume_from_checkpoint=resume)
        draws.append(dict(enumerate(seen[40:] if resume is None else seen)))  # 4 batches of 10 an epoch
    first, resumed = draws
    assert resumed == first and len({draw for _, draw in first.values()}) == 40


# ---- saving ----------------------------------------------------------------------------------------------------------

WRITERS = {
    "the model": ("transformers.modeling_utils.safe_save_file", 1),
    "the optimiser": ("torch.save", 1),
    "our state": ("hf_clidmu.files.save_file", 1),
    "the trainer's state": ("transformers.TrainerState.save_to_json", 1),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(what, tmp_path, monkeypatch, caplog):
    whole = train("bert", tmp_path / "a", **SAVING, save_total_limit=3)
    target, path_at = WRITERS[what]

    class FullAtStep4(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                monkeypatch.setattr(target, full(None, path_at))

        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                monkeypatch.undo()
                assert steps(tmp_path / "b") == [2] and flaw(tmp_path / "b" / "checkpoint-2") is None

    run = train("bert", tmp_path / "b", **SAVING, save_total_limit=3, callbacks=[FullAtStep4()])
    assert losses(run) == losses(whole)
    assert steps(tmp_path / "b") == [2, 6] and flaw(tmp_path / "b" / "checkpoint-6") is None
    message = f"The checkpoint {tmp_path}/b/checkpoint-4 could not be written and was dropped "
    assert message in caplog.text and "No space left on device" in caplog.text
    assert "Training goes on; earlier checkpoints are as they were. Make room" in caplog.text


@pytest.mark.parametrize("size", [3000, 20_000, 70_000])
def test_a_disk_that_really_takes_no_more(size, tmp_path, caplog):
    class Limit(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                self.limit = files_limited_to(size)
                self.limit.__enter__()

        def on_epoch_end(self, args, state, control, **kwargs):
            self.limit.__exit__(None, None, None)

    whole = train("bert", tmp_path / "a", **SAVING)
    args = settings(tmp_path / "b", **SAVING)
    run = CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Samples("bert"), callbacks=[Limit()])
    run.remove_callback(PrinterCallback)  # pytest captures what it prints, in a file
    run.train()
    assert losses(run) == losses(whole)
    assert steps(tmp_path / "b") == [2] and flaw(tmp_path / "b" / "checkpoint-2") is None
    assert caplog.text.count("could not be written and was dropped") == 2
    assert_same_run_but_snapshots(again(tmp_path / "b"), whole)


def assert_same_run_but_snapshots(run, expected):
    assert losses(run) == losses(expected)
    assert_bitwise_equal(run.model, expected.model)


def test_an_error_that_is_not_the_disks_stops_the_run(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("hf_clidmu.resumable.save_state", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train("bert", tmp_path, **SAVING)


def test_a_checkpoint_is_whole_before_older_ones_are_deleted(tmp_path, monkeypatch):
    seen = []

    def watched(folder, limit, *protected):
        seen.append((steps(folder), [is_sealed(path) for path in checkpoints(folder)], limit))

    monkeypatch.setattr("hf_clidmu.resumable.rotate", watched)
    run = train("bert", tmp_path, **SAVING, save_total_limit=1)
    assert seen == [([2], [True], 1), ([2, 4], [True] * 2, 1), ([2, 4, 6], [True] * 3, 1)]
    assert run.args.save_total_limit == 1


def test_what_is_pushed_is_sealed(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(CLIDMUTrainer, "publish_checkpoint", lambda self, folder: pushed.append(flaw(folder)))
    monkeypatch.setattr(CLIDMUTrainer, "init_hf_repo", lambda self, token=None: None)
    train("bert", tmp_path, **SAVING, push_to_hub=True)
    assert pushed == [None] * 3


def test_save_only_model_leaves_nothing_to_resume_from(tmp_path):
    train("bert", tmp_path, **SAVING, save_only_model=True)
    assert steps(tmp_path) == [2, 4, 6] and (tmp_path / "checkpoint-6" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="or save_only_model"):
        again(tmp_path)


@pytest.mark.parametrize("limit", [1, 2])
def test_as_many_checkpoints_are_kept_as_in_trainer(limit, tmp_path):
    common = {**SAVING, "max_steps": 10, "save_total_limit": limit, "weighting": "none", "learning_rate": 5e-2}
    run = train("bert", tmp_path / "a", **common)
    reference = train("bert", tmp_path / "b", WithoutResume, **common)
    assert run.state.best_global_step == reference.state.best_global_step
    assert steps(tmp_path / "a") == steps(tmp_path / "b")
    assert all(flaw(path) is None for path in checkpoints(tmp_path / "a"))


class WithoutResume(CLIDMUTrainer):
    """Saves as Trainer does."""

    def _save_checkpoint(self, model, trial):
        self.resumable = False
        super()._save_checkpoint(model, trial)


@pytest.mark.parametrize("config", [TrainingArguments, None])
def test_plain_arguments_mean_a_plain_trainer_in_saving_as_well(config, tmp_path):
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    if config is None:
        run = train("bert", tmp_path, weighting="none", **common)
        assert flaw(tmp_path / "checkpoint-4") is None and run.state.global_step == 4
        return
    train("bert", tmp_path / "a", Trainer, config=TrainingArguments, **common)
    train("bert", tmp_path / "b", config=TrainingArguments, **common)
    files = [
        sorted(path.relative_to(tmp_path / n).as_posix() for path in (tmp_path / n).rglob("*") if path.is_file())
        for n in "ab"
    ]
    assert files[0] == files[1] and not any(re.search("clidmu", name) for name in files[1])
    args = settings(tmp_path / "b", TrainingArguments, **common)
    run = CLIDMUTrainer(tiny_classifier("bert", 5), args, default_data_collator, Samples("bert"))
    run.train(resume_from_checkpoint=True)  # Trainer's own rules


@pytest.mark.parametrize("moment", ["on_substep_end", "on_pre_optimizer_step", "on_step_end"])
def test_a_run_that_is_told_to_end_saves_and_goes_on_bitwise(moment, tmp_path, monkeypatch):
    """SIGTERM with `enable_jit_checkpoint`: the checkpoint comes after the step and the evaluation that are due."""
    monkeypatch.setattr(
        "transformers.trainer_jit_checkpoint.threading.Timer", lambda wait, function: SimpleNamespace(start=function)
    )

    def tell(self, args, state, control, **kwargs):
        if state.global_step == (4 if moment == "on_step_end" else 3):
            os.kill(os.getpid(), signal.SIGTERM)

    common = {"max_steps": 7, "eval_steps": 2, "gradient_accumulation_steps": 2, "enable_jit_checkpoint": True}
    handler = signal.getsignal(signal.SIGTERM)
    whole = train("bert", tmp_path / "a", **common)
    told = train("bert", tmp_path / "b", callbacks=[type("Tell", (TrainerCallback,), {moment: tell})()], **common)
    assert told.state.global_step == 4 and steps(tmp_path / "b") == [4]
    assert flaw(checkpoints(tmp_path / "b")[0]) is None
    assert [snapshot.step for snapshot in told.snapshots.history] == [2, 4]
    assert_same_run(again(tmp_path / "b", **{**common, "save_strategy": "no"}), whole)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_batch_size_that_is_found_starts_from_nothing(tmp_path):
    class TooLarge(CLIDMUTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if len(inputs["input_ids"]) > 4 and self.state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, num_items_in_batch)

    common = {"max_steps": 6, "eval_steps": 2, "auto_find_batch_size": True}
    run = train("bert", tmp_path / "a", TooLarge, **common, per_device_train_batch_size=5)
    assert run._train_batch_size <= 4 and run._meta_steps == 6
    assert sum(run.ledger.table()["times_seen"].to_pylist()) == 6 * run._train_batch_size
    assert [snapshot.step for snapshot in run.snapshots.history] == [2, 4, 6]
