"""What transformers asks of its own Trainer, asked of ours: with `weighting="none"` there is no telling them apart.

The model and the data are those of its tests: a regression of one number, in double precision.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.trainer import CLIDMUTrainer


EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


class Regression(nn.Module):
    def __init__(self, a=0.0, b=0.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (a, b))

    def forward(self, x, labels=None):
        y = self.a * x + self.b
        return (y,) if labels is None else (F.mse_loss(y, labels), y)


def samples(size, seed):
    x_N = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise_N = torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return [{"x": x, "labels": 2 * x + 3 + 0.1 * noise} for x, noise in zip(x_N, noise_N, strict=True)]


def hears(name, told):
    return lambda *args, **kwargs: told.append(name)


def run(kind, folder, resume=None, callbacks=(), **changes):
    """A run of either trainer, and every event that its callbacks were told of."""
    told: list[str] = []
    listener = type("Listener", (TrainerCallback,), {name: hears(name, told) for name in EVENTS})
    settings = {"learning_rate": 0.1, "max_steps": 12, "logging_steps": 1, "use_cpu": True, "report_to": "none"}
    settings |= {"disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no", "seed": 3}
    settings |= {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "metric_for_best_model": "loss"}
    arguments = TrainingArguments if kind is Trainer else CLIDMUConfig
    settings |= {} if kind is Trainer else {"weighting": "none"}
    trainer = kind(
        model=Regression(),
        args=arguments(output_dir=str(folder), **{**settings, **changes}),
        train_dataset=samples(64, 0),
        eval_dataset=samples(32, 5),
        callbacks=[listener(), *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, told


def traces(trainer, folder):
    """Everything about a run that a user could look at, but the time it took and where it lies."""
    log = [
        {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_second"))}
        for entry in trainer.state.log_history
    ]
    best = str(trainer.state.best_model_checkpoint).removeprefix(str(folder))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    own = re.compile(r"(^|/)clidmu/")
    return {
        "model": [float(parameter) for parameter in trainer.model.parameters()],
        "log": log,
        "best": (best, trainer.state.best_metric, trainer.state.best_global_step),
        "files": [name for name in files if not own.search(name)],
    }


CASES = {
    "plain": {},
    "epochs": {"max_steps": -1, "num_train_epochs": 2.5, "logging_strategy": "epoch", "eval_strategy": "epoch"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 15},
    "clipping": {"max_grad_norm": 0.01, "optim": "sgd"},
    "best model": {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "load_best_model_at_end": True,
        "learning_rate": 1.5,
        "optim": "sgd",
    },
    "best only": {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "save_total_limit": 1},
    "evaluation first": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 5, "eval_delay": 4},
    **{
        f"schedule {name}": {"lr_scheduler_type": name, "warmup_steps": 2, **extra}
        for name, extra in {
            "linear": {},
            "cosine": {},
            "constant_with_warmup": {},
            "cosine_with_restarts": {"lr_scheduler_kwargs": {"num_cycles": 2}},
            "polynomial": {},
            "inverse_sqrt": {},
            "reduce_lr_on_plateau": {"eval_strategy": "steps", "eval_steps": 2},
        }.items()
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_trainer_in_every_trace(case, tmp_path):
    found = []
    for kind in (Trainer, CLIDMUTrainer):
        folder = tmp_path / kind.__name__
        trainer, told = run(kind, folder, **CASES[case])
        found.append({**traces(trainer, folder), "told": told})
    for part, expected in found[0].items():
        assert found[1][part] == expected, part


def test_eight_of_one_are_one_of_eight(tmp_path):
    ends = []
    for size, accumulation in ((8, 1), (1, 8)):
        trainer, _ = run(
            CLIDMUTrainer,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        ends.append(torch.stack([parameter.detach() for parameter in trainer.model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [Trainer, CLIDMUTrainer])
@pytest.mark.parametrize("step", [5, 10])
def test_a_resumed_run_ends_where_the_whole_one_does(kind, step, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
    whole, _ = run(kind, tmp_path, **saving)
    resumed, _ = run(kind, tmp_path, resume=str(tmp_path / f"checkpoint-{step}"), **saving)
    assert [float(p) for p in resumed.model.parameters()] == [float(p) for p in whole.model.parameters()]
    assert resumed.state.global_step == 12


def test_a_run_is_stopped_early_by_the_callback_of_transformers(tmp_path):
    changes = {**CASES["best model"], "learning_rate": 3.0, "max_steps": 60}
    ends = [
        run(kind, tmp_path / kind.__name__, callbacks=[EarlyStoppingCallback(2)], **changes)[0].state.global_step
        for kind in (Trainer, CLIDMUTrainer)
    ]
    assert ends[0] == ends[1] < 60
