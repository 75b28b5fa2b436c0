"""One process of a tiny training run, told what to do by a dictionary; it reports everything a run is made of.

    python tests/distributed/tiny_run.py '{"output_dir": "o", "report": "o.json"}'     # or through accelerate launch

A run can be told to kill itself (SIGKILL) at its n-th event: a training step, an evaluation, a file half written, a
rename, a seal, a deletion. An event count comes with every report, so that a moment can be drawn at random.
"""

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path


sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import process_checks  # noqa: E402
import pytest  # noqa: E402
import spread_on_cpu  # noqa: E402
import torch  # noqa: E402
from tiny_models import tiny_batch, tiny_classifier  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    modeling_utils,
    trainer_jit_checkpoint,
)

from hf_clidmu import checkpoints, files, resumable  # noqa: E402
from hf_clidmu.config import CLIDMUConfig  # noqa: E402
from hf_clidmu.processes import digest  # noqa: E402
from hf_clidmu.sharding import whole  # noqa: E402
from hf_clidmu.trainer import CLIDMUTrainer  # noqa: E402
from hf_clidmu.weighting import WNet  # noqa: E402


DEFAULTS = {
    "per_device_train_batch_size": 4,
    "max_steps": 14,
    "learning_rate": 1e-2,
    "meta_warmup_steps": 1,
    "logging_steps": 3,
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "judge_size": 16,
    "meta_size": 20,
}


class Samples(Dataset):
    """Tiny texts, some of their tokens replaced at random: augmentation that a resumed run must repeat."""

    def __init__(self, size: int, seed: int = 0, augment: bool = True):
        self.inputs, self.labels_N = tiny_batch("bert", size=size, seed=seed)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, row: int) -> dict:
        sample = {name: values[row].clone() for name, values in self.inputs.items()}
        if self.augment:
            sample["input_ids"][random.randrange(4)] = random.randrange(5, 60)
        return {**sample, "labels": int(self.labels_N[row])}

    def evaluation_view(self) -> "Samples":
        view = Samples.__new__(Samples)
        view.inputs, view.labels_N, view.augment = self.inputs, self.labels_N, False
        return view


class Events:
    """Counts what happens to a run, and ends it at a given moment."""

    def __init__(self, kill_at: int | None):
        self.count = 0
        self.kill_at = kill_at

    def happens(self, half_written: str | Path | None = None) -> None:
        self.count += 1
        if self.count == self.kill_at:
            if half_written is not None and Path(half_written).is_file():
                os.truncate(half_written, Path(half_written).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.happens()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def after_writing(self, owner: object, name: str, path_at: int) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            result = original(*args, **kwargs)
            self.happens(half_written=args[path_at])
            return result

        setattr(owner, name, wrapped)

    def install(self) -> None:
        for owner, name in (
            (CLIDMUTrainer, "training_step"),
            (CLIDMUTrainer, "evaluate"),
            (CLIDMUTrainer, "log"),
            (CLIDMUTrainer, "load_selected"),
            (Path, "replace"),
            (resumable, "seal"),
            (resumable, "rotate"),
            (checkpoints, "write_json"),
            (shutil, "rmtree"),
        ):
            self.before(owner, name)
        self.after_writing(torch, "save", 1)
        self.after_writing(files, "save_file", 1)
        self.after_writing(modeling_utils, "safe_save_file", 1)
        self.after_writing(TrainerState, "save_to_json", 1)


def fill_disk(allowed: int) -> None:
    """From the n-th write of a file on, for three writes, the disk is full."""
    writes = 0

    def limited(original, path_at):
        def wrapped(*args, **kwargs):
            nonlocal writes
            writes += 1
            if allowed < writes <= allowed + 3:
                Path(args[path_at]).write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device", str(args[path_at]))
            return original(*args, **kwargs)

        return wrapped

    torch.save = limited(torch.save, 1)
    files.save_file = limited(files.save_file, 1)
    modeling_utils.safe_save_file = limited(modeling_utils.safe_save_file, 1)
    TrainerState.save_to_json = limited(TrainerState.save_to_json, 1)


class TellToEnd(TrainerCallback):
    """Sends this process the signal of `enable_jit_checkpoint` in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_substep_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class AtOnce:
    """In place of `threading.Timer`: Trainer waits three seconds to see whether a kill follows."""

    def __init__(self, wait: float, function: Callable[[], None]):
        self.start = function


def build(job: dict) -> Trainer:
    settings = {**DEFAULTS, **job.get("config", {})}
    kind = TrainingArguments if job.get("stock") else CLIDMUConfig
    known = {field.name for field in dataclasses.fields(kind)}
    config = kind(output_dir=job["output_dir"], **{key: value for key, value in settings.items() if key in known})
    model = tiny_classifier("bert", seed=job.get("model_seed", 0))
    if job.get("exact"):  # no randomness but that of the seed, and double precision
        model.double()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    weighting = None
    if "own_weighting_of_seed" in job:
        torch.manual_seed(job["own_weighting_of_seed"] + int(os.environ.get("RANK", 0)))
        weighting = WNet()
    train_dataset = Samples(job.get("size", 30), augment=not job.get("exact"))
    if job.get("stock"):
        return Trainer(model, config, default_data_collator, train_dataset)
    callbacks = [TellToEnd(job["tell_at"])] if job.get("tell_rank") == int(os.environ.get("RANK", 0)) else []
    return CLIDMUTrainer(
        weighting=weighting,
        callbacks=callbacks,
        model=model,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=Samples(12, seed=7, augment=False) if job.get("evaluate", True) else None,
        data_collator=default_data_collator,
    )


def run(job: dict) -> None:
    """Train, and write the report."""
    if "check" in job:
        process_checks.run(job["check"])
        return
    if "hub" in job:
        push(job)
        return
    events = Events(job.get("kill_at") if job.get("kill_rank", 0) == int(os.environ.get("RANK", 0)) else None)
    if "fsdp2" in job:
        spread_on_cpu.install(**job["fsdp2"])
    torch.manual_seed(0)
    trainer = build(job)
    events.install()
    if "tell_rank" in job:
        trainer_jit_checkpoint.threading.Timer = AtOnce
    if "disk_full_after" in job:
        fill_disk(job["disk_full_after"])
    trainer.train(resume_from_checkpoint=job.get("resume"))
    found = {"events": events.count, **(plain_state_of(trainer) if job.get("stock") else state_of(trainer))}
    if job.get("tensors"):
        phi = {} if job.get("stock") or trainer.weighting is None else trainer.weighting.state_dict()
        state = {"model": whole_state(trainer.model), "weighting": dict(phi)}
        torch.save(state, f"{job['tensors']}.{trainer.args.process_index}")
    if job.get("save_to"):
        trainer.save_model(job["save_to"])
    Path(f"{job['report']}.{trainer.args.process_index}").write_text(json.dumps(found, sort_keys=True))


def push(job: dict) -> None:
    """Train and push; the report holds the whole weights at every checkpoint and at the end."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "hub"))
    import local_hub
    import tiny_runs

    local_hub.connect(pytest.MonkeyPatch(), **job["hub"])
    if "fsdp2" in job:
        spread_on_cpu.install(**job["fsdp2"])
    settings = {
        "push_to_hub": True,
        "hub_strategy": job.get("strategy", "every_save"),
        "hub_token": job["hub"]["token"],
        "hub_always_push": True,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    trainer = tiny_runs.tiny_run("bert", Path(job["output_dir"]), **settings)
    states: dict[int | str, dict] = {}
    save = trainer._save_checkpoint

    def saved(*args, **kwargs):
        states[trainer.state.global_step] = copy_of(trainer.model)
        return save(*args, **kwargs)

    trainer._save_checkpoint = saved
    trainer.train()
    states["end"] = copy_of(trainer.model)
    trainer.push_to_hub()
    found = {"selected": trainer.snapshots.best.step, "states": states}
    torch.save(found, f"{job['report']}.{trainer.args.process_index}")


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in whole_state(model).items()}


def state_of(trainer: CLIDMUTrainer) -> dict:
    """A digest of everything that a run is made of."""
    folder = Path(trainer.args.output_dir) / "snapshots"
    return {
        **plain_state_of(trainer),
        "parts": {name: digest(part.state_dict()) for name, part in trainer.stateful_parts().items() if part},
        "meta_steps": trainer._meta_steps,
        "ledger": None if trainer.ledger is None else _text(str(trainer.ledger.table().to_pylist())),
        "times_seen": None if trainer.ledger is None else trainer.ledger.table()["times_seen"].to_pylist(),
        "history": trainer.snapshots.save_kept_state(),
        "snapshot_files": {path.name: _text(path.read_bytes()) for path in sorted(folder.glob("*"))},
        "best": [trainer.state.best_global_step, repr(trainer.state.best_metric)],
    }


def plain_state_of(trainer: Trainer) -> dict:
    """What any Trainer's run is made of."""
    numpy_state = np.random.get_state()
    return {
        "model": digest(whole_state(trainer.model)),
        "optimizer": _digest_of(trainer.optimizer.state_dict()),
        "scheduler": repr(trainer.lr_scheduler.state_dict()),
        "rng": {
            "torch": digest({"": torch.get_rng_state()}),
            "python": _text(repr(random.getstate())),
            "numpy": _text(repr((numpy_state[1].tolist(), numpy_state[2:]))),
        },
        "log": [{key: repr(value) for key, value in e.items() if not _timed(key)} for e in trainer.state.log_history],
        "step": trainer.state.global_step,
    }


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}


def _timed(key: str) -> bool:
    # Trainer's train_loss is the mean over the steps of one call of train(): a resumed run has another.
    return key.endswith(("_runtime", "_per_second")) or key == "train_loss"


def _text(value: str | bytes) -> str:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def _digest_of(state: object) -> str:
    if isinstance(state, torch.Tensor):
        return digest({"": whole(state)})
    if isinstance(state, dict):
        return _text(repr([(repr(key), _digest_of(value)) for key, value in state.items()]))
    if isinstance(state, (list, tuple)):
        return _text(repr([_digest_of(value) for value in state]))
    return repr(state)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(json.loads(sys.argv[1]))
