"""What an import costs: heavy libraries are imported where they are used, and a call for help is answered at once."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from recipe_scripts import RECIPES, recipe

from hf_clidmu.config import CLIDMUConfig


HEAVY = {"datasets", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "sklearn", "timm", "torch", "torchvision"}


def fresh(code: str) -> dict:
    """What a new interpreter prints, as JSON, after running this code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("before", "ours"),
    [
        ("import transformers", "import hf_clidmu"),
        ("import numpy", "import hf_clidmu.data"),
        ("from transformers import Trainer", "import hf_clidmu.trainer"),
    ],
)
def test_an_import_of_ours_adds_no_heavy_library_and_little_time(before, ours):
    code = f"""
import json, sys, time
{before}
known, started = set(sys.modules), time.process_time()
{ours}
seconds = time.process_time() - started
print(json.dumps({{"seconds": seconds, "added": sorted({{name.split(".")[0] for name in set(sys.modules) - known}})}}))
"""
    found = fresh(code)
    known_beforehand = {"torch", "torchvision"} if "Trainer" in before else set()  # parts of them that are loaded late
    assert not (HEAVY - known_beforehand) & set(found["added"]), found["added"]
    assert found["seconds"] < 0.3


def test_help_is_answered_without_a_heavy_library():
    code = f"""
import json, runpy, sys, time
sys.path.insert(0, {str(RECIPES)!r})
sys.argv, started = ["train.py", "--help"], time.process_time()
try:
    runpy.run_path({str(RECIPES / "train.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
seconds = time.process_time() - started
print(json.dumps({{"seconds": seconds, "modules": sorted({{name.split(".")[0] for name in sys.modules}})}}))
"""
    found = fresh(code)
    assert not (HEAVY | {"transformers"}) & set(found["modules"])
    assert found["seconds"] < 2


def test_help_names_every_argument_of_ours(capsys):
    arguments = recipe("arguments")
    with pytest.raises(SystemExit) as end:
        arguments.answer_help(["--seed", "3", "-h"])
    assert not end.value.code
    shown = capsys.readouterr().out
    declared = {name: default for name, _, default, _ in arguments.declared_settings()}
    assert list(declared) == list(CLIDMUConfig.__annotations__)
    for setting in dataclasses.fields(CLIDMUConfig):
        if setting.name in declared:
            assert declared[setting.name] == repr(setting.default)
            assert setting.metadata["help"][:40] in " ".join(shown.split())
    for argument in dataclasses.fields(arguments.RunArguments):
        assert f"--{argument.name} " in shown
    arguments.answer_help(["--config", "help"])  # nobody asked


def test_the_whole_help_is_there_for_those_who_wait(capsys):
    arguments = recipe("arguments")
    with pytest.raises(SystemExit):
        arguments.parse((arguments.RunArguments, CLIDMUConfig), ["--help_all"])
    assert "--gradient_checkpointing_kwargs" in capsys.readouterr().out
