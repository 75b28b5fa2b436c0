"""Runs of one or two CPU processes (gloo), as fixtures."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., list[int]]]:
    """Starts a tiny run and waits for it: `launch(output_dir=..., processes=2, ...)` returns its exit codes."""
    repository = HERE.parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / "zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None

    def start(**job: object) -> list[int]:
        process.stdin.write(json.dumps(job, default=str) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield start
    process.stdin.close()
    process.wait(timeout=60)
