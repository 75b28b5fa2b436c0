"""Runs that are killed, run out of disk or find a damaged file end as the run that was left alone, bit for bit.

How many are drawn: HF_CLIDMU_DRAWS, 3 by default; the figures in the README were drawn with 20.

    HF_CLIDMU_DRAWS=20 pytest -m slow tests/distributed/test_survival.py
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_clidmu.checkpoints import checkpoints, flaw


pytestmark = pytest.mark.slow
DRAWS = int(os.environ.get("HF_CLIDMU_DRAWS", "3"))
# Saved and evaluated at other steps than logged; within epochs and at their ends; one micro-batch and several.
SETTINGS = [
    {},
    {"head_steps": 7, "save_steps": 3, "eval_steps": 4, "scope": "all", "logging_steps": 2},
    {"gradient_accumulation_steps": 2, "save_steps": 3, "eval_steps": 4, "snapshot_top_k": 1},
    {"weighting": "context", "save_steps": 4, "eval_steps": 3, "logging_steps": 4, "meta_every": 2},
    {"gradient_accumulation_steps": 3, "weighting": "free", "save_steps": 2, "eval_steps": 5, "scope": "all"},
    {"weighting": "elr", "save_steps": 4, "max_steps": 16, "judge_features": "pretrained"},
    {
        "num_train_epochs": 3,
        "max_steps": -1,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "meta_source": "batch",
    },
    {"weighting": "none", "save_steps": 3, "dataloader_num_workers": 1},
]


class Runs:
    """Runs of one setting: what is left of the unbroken one, and others to compare with it."""

    def __init__(self, launch, folder, processes, number):
        self.launch, self.folder = launch, folder
        self.processes, self.config = processes, SETTINGS[number]
        self.name = f"{processes}-{number}"
        reference = folder / f"{self.name}.json"
        if not (folder / f"{self.name}.json.0").exists():
            assert self.start(self.name, reference) == [0] * processes, self.log(reference)
        self.expected = self.reports(reference)

    def start(self, name, report=None, **job):
        report = report or self.folder / f"{name}.json"
        common = {"output_dir": self.folder / name, "report": report, "processes": self.processes}
        return self.launch(**{**common, "config": self.config, **job})

    def log(self, report):
        return "\n".join(Path(f"{report}.{rank}.log").read_text()[-3000:] for rank in range(self.processes))

    def reports(self, report):
        return [json.loads(Path(f"{report}.{rank}").read_text()) for rank in range(self.processes)]

    def go_on(self, name):
        """Resume from what is there, as a user would; without a checkpoint start anew."""
        whole = [path for path in checkpoints(self.folder / name) if flaw(path) is None]
        codes = self.start(name, resume=True if whole else None, model_seed=5 if whole else 0)
        assert codes == [0] * self.processes, self.log(self.folder / f"{name}.json")
        return whole

    def assert_equal(self, name):
        for found, expected in zip(self.reports(self.folder / f"{name}.json"), self.expected, strict=True):
            for part in set(expected) - {"events"}:
                assert found[part] == expected[part], part


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_as_one_that_was_not(processes, draw, launch, folder):
    drawn = random.Random(1000 * processes + draw)
    runs = Runs(launch, folder, processes, draw % len(SETTINGS))
    name = f"killed-{processes}-{draw}"
    rank = drawn.randrange(processes)
    moment = drawn.randint(1, runs.expected[rank]["events"])
    assert runs.start(name, kill_at=moment, kill_rank=rank)[rank] == -signal.SIGKILL
    if drawn.random() < 0.5:  # and once more, on the way
        whole = [path for path in checkpoints(folder / name) if flaw(path) is None]
        runs.start(name, resume=True if whole else None, kill_at=drawn.randint(1, moment), kill_rank=rank)
    runs.go_on(name)
    runs.assert_equal(name)


def damage(path, drawn):
    """What happens to files: cut short, emptied, one bit turned, gone."""
    content = bytearray(path.read_bytes())
    how = drawn.choice(["truncated", "empty", "flipped", "gone"])
    path.unlink()  # not into the other name of a linked file
    if how == "truncated":
        path.write_bytes(content[: drawn.randrange(len(content))])
    elif how == "flipped":
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    return how


@pytest.mark.parametrize("draw", range(DRAWS))
def test_no_fault_loses_a_run_or_is_loaded_silently(draw, launch, folder):
    drawn = random.Random(draw)
    kind = ("file", "disk", "kill")[draw % 3]
    processes = 1 + draw // 3 % 2
    runs = Runs(launch, folder, processes, drawn.randrange(len(SETTINGS) - 1))
    name = f"fault-{draw}"
    report = folder / f"{name}.json"
    if kind == "disk":
        codes = runs.start(name, disk_full_after=drawn.randrange(1, 25))
        log = runs.log(report)
        assert codes == [0] * processes, log
        assert "No space left on device" in log and "could not be written" in log
        assert [flaw(path) for path in checkpoints(folder / name)] == [None] * len(checkpoints(folder / name))
        for found, expected in zip(runs.reports(report), runs.expected, strict=True):
            # The run itself never noticed; what it kept of the model may be fewer snapshots.
            for part in ("optimizer", "scheduler", "rng", "parts", "meta_steps", "ledger", "log"):
                assert found[part] == expected[part], part
        return
    if kind == "kill":  # while a checkpoint is being written
        assert runs.start(name, kill_at=drawn.randint(2, runs.expected[0]["events"]))[0] == -signal.SIGKILL
    else:
        shutil.copytree(folder / runs.name, folder / name)
        newest = checkpoints(folder / name)[-1]
        damaged = drawn.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        damage(damaged, drawn)
        # A bit of the manifest's own time stamp says nothing of the checkpoint.
        if flaw(newest) is None:
            assert damaged.name == "manifest.json"
    before = [path for path in checkpoints(folder / name) if flaw(path) is not None]
    whole = runs.go_on(name)
    runs.assert_equal(name)
    if before and whole:
        log = runs.log(report)
        assert f"Continuing from {whole[-1]}, the newest whole checkpoint. Passed over: {before[-1]}" in log


def test_through_accelerate_launch(launch, folder):
    """What users start is accelerate's launcher: the same run, killed and resumed."""
    runs = Runs(launch, folder, 2, 0)
    job = {"output_dir": str(folder / "launched"), "report": str(folder / "launched.json"), "config": runs.config}
    assert launch_with_accelerate({**job, "kill_at": 60}) != 0
    assert checkpoints(folder / "launched")
    assert launch_with_accelerate({**job, "resume": True, "model_seed": 5}) == 0
    runs.assert_equal("launched")


def launch_with_accelerate(job):
    script = Path(__file__).with_name("tiny_run.py")
    # With --cpu the launcher would start one process, whatever --num_processes says, unless mpirun is there.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(script), json.dumps(job)],
        env={"OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode
