"""The arguments: documented, with the defaults that are documented, and accepted wherever arguments come from."""

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator, DistributedType
from transformers import HfArgumentParser, TrainingArguments

from hf_clidmu.config import CLIDMUConfig


REPOSITORY = Path(__file__).resolve().parents[1]
FIELDS = {
    field.name: field
    for field in dataclasses.fields(CLIDMUConfig)
    if field.name in vars(CLIDMUConfig)["__annotations__"]
}
INHERITED = {field.name for field in dataclasses.fields(TrainingArguments)}
ADDED = [name for name in FIELDS if name not in INHERITED]
CHANGED = [name for name in FIELDS if name in INHERITED]
DOC = inspect.cleandoc(CLIDMUConfig.__doc__)
# A value that differs from the default, as words of a command line.
OTHER = {
    "weighting": "wnet",
    "meta_learning_rate": "3e-3",
    "meta_optim": "sgd",
    "meta_weight_decay": "0.0",
    "meta_every": "5",
    "meta_warmup_steps": "0.25",
    "hold_features": False,
    "selection_tolerance": "0.5",
    "meta_patience": "7",
    "kl_weight": "0.25",
    "loss_q": "0.2",
    "scope": "all",
    "tangent": "forward",
    "lookahead": "false",
    "lookahead_lr": "0.02",
    "preconditioner": "adam",
    "objective": "mae",
    "temperature": "0.7",
    "detach_normaliser": "true",
    "judge_features": "own",
    "judge_predictions": "probabilities",
    "judge_centred": False,
    "objective_features": "pretrained",
    "meta_source": "batch",
    "meta_size": "77",
    "meta_batch_size": "9",
    "clid_across_processes": "true",
    "judge_source": "eval",
    "judge_size": "123",
    "snapshot_mode": "soup",
    "snapshot_top_k": "2",
    "keep_ledger": "false",
    "hub_label_report": "true",
    "hub_resume_state": "true",
    "freeze": "backbone",
    "cache_frozen": "false",
    "frozen_cache_dir": "kept",
    "head_learning_rate": "1e-3",
    "head_steps": "0.3",
    "classifier_module": "fc",
}


def documented(name):
    """(type, default) of a field in the docstring; the default as Python reads it, None where none is named."""
    found = re.search(rf"^ *{name} \(`([^`]+)`, \*optional\*(?:, defaults to `([^`]+)`)?\):\n +\S", DOC, re.MULTILINE)
    assert found, f"{name} is not documented"
    return found[1], None if found[2] is None else ast.literal_eval(found[2])


@pytest.mark.parametrize("name", ADDED)
def test_every_argument_is_documented_with_its_default(name):
    kind, default = documented(name)
    assert default == FIELDS[name].default
    assert kind == re.sub(r" \| None$", "", getattr(FIELDS[name].type, "__name__", str(FIELDS[name].type)))
    assert FIELDS[name].metadata["help"]


@pytest.mark.parametrize("name", CHANGED)
def test_every_default_that_differs_from_trainings_is_documented(name):
    field = FIELDS[name]
    base = next(f for f in dataclasses.fields(TrainingArguments) if f.name == name)
    assert field.default != base.default
    value = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
    assert f"`{name}={value}`" in DOC


def test_nothing_is_documented_that_is_not_there():
    assert set(re.findall(r"^ *(\w+) \(`", DOC, re.MULTILINE)) == set(ADDED) == set(OTHER)


def test_settings_go_through_json(tmp_path):
    config = CLIDMUConfig(
        str(tmp_path), weighting="wnet", meta_size=7, lookahead_lr=1e-3, use_cpu=True, keep_ledger=False
    )
    values = json.loads(config.to_json_string())
    assert {name: values[name] for name in ADDED} == {name: getattr(config, name) for name in ADDED}
    assert values["lookahead_lr"] == 1e-3
    known = {field.name for field in dataclasses.fields(CLIDMUConfig) if field.init}
    again = CLIDMUConfig(**{name: value for name, value in values.items() if name in known})
    assert again.to_dict() == config.to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path), "use_cpu": True, "weighting": "free", "kl_weight": 0.0}))
    (parsed,) = HfArgumentParser(CLIDMUConfig).parse_json_file(str(path))
    assert (parsed.weighting, parsed.metric_for_best_model, parsed.greater_is_better) == ("free", "clid", False)


@pytest.mark.parametrize("name", ADDED)
def test_the_command_line_sets_every_argument(name):
    words = ["--output_dir", "x", "--use_cpu", "true", f"--{name}", OTHER[name]]
    (config,) = HfArgumentParser(CLIDMUConfig).parse_args_into_dataclasses(words)
    value, default = getattr(config, name), FIELDS[name].default
    expected = {"true": True, "false": False}.get(OTHER[name], OTHER[name])
    assert value != default
    assert value == (expected if isinstance(expected, bool) or isinstance(value, str) else type(value)(expected))
    for other in set(ADDED) - {name}:
        assert getattr(config, other) == FIELDS[other].default


@pytest.mark.parametrize("metric", ["clid", "eval_clid"])
def test_low_clid_is_better_whatever_it_is_called(metric, tmp_path):
    assert CLIDMUConfig(str(tmp_path), metric_for_best_model=metric, use_cpu=True).greater_is_better is False


def test_another_metric_keeps_the_rules_of_training_arguments(tmp_path):
    config = CLIDMUConfig(
        str(tmp_path), metric_for_best_model="accuracy", use_cpu=True, load_best_model_at_end=True, save_strategy="best"
    )
    assert config.greater_is_better is True


def test_help_of_the_recipe_names_every_argument():
    environment = {**os.environ, "COLUMNS": "120"}
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "recipes" / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(re.findall(r"^  --(\w+)", done.stdout, re.MULTILINE)) >= {
        *FIELDS,
        "config",
        "dataset",
        "model",
        "dry_run",
    }


def test_the_settings_that_differ_from_their_defaults(tmp_path):
    assert CLIDMUConfig(str(tmp_path), use_cpu=True).non_default() == {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    changed = {"learning_rate": 3e-4, "lr_scheduler_type": "cosine", "meta_warmup_steps": 0, "keep_ledger": False}
    found = CLIDMUConfig(str(tmp_path), hub_token="hf_secret", **changed).non_default()
    assert changed.items() <= found.items()
    assert "hf_secret" not in str(found)


def test_looking_for_them_leaves_the_running_processes_alone(tmp_path):
    config = CLIDMUConfig(str(tmp_path), use_cpu=True)
    accelerator = Accelerator(cpu=True)
    config.non_default()
    assert accelerator.num_processes == 1  # raises once the state is gone
    assert accelerator.distributed_type == DistributedType.NO
