"""Two processes push one model: whole, selected, once; a Hub that refuses ends both."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load


sys.path.append(str(Path(__file__).resolve().parents[1] / "hub"))

from local_hub import LocalHub  # noqa: E402


pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path):
    hub = LocalHub(tmp_path / "xet")
    yield hub
    hub.close()


def push(launch, hub, tmp_path, token=None, **job):
    """Exit codes of a run that pushes while it trains and once more at its end."""
    secret = hub.token if token is None else token
    job["hub"] = {"url": hub.url, "token": secret, "cache": str(tmp_path / "cache")}
    return launch(output_dir=tmp_path / "run", report=tmp_path / "report", processes=2, **job)


@pytest.mark.parametrize("engine", [{}, {"fsdp2": {"fsdp_auto_wrap_policy": "NO_WRAP"}}], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_the_weights_of_the_step_that_is_named_are_pushed_once_and_whole(strategy, engine, launch, hub, tmp_path):
    codes = push(launch, hub, tmp_path, strategy=strategy, **engine)
    assert codes == [0, 0], (tmp_path / "report.0.log").read_text()
    commits = hub.repositories["alice/run"].commits[1:]
    found = [torch.load(f"{tmp_path}/report.{rank}", weights_only=True) for rank in range(2)]
    selected, states = found[0]["selected"], found[0]["states"]
    assert found[1]["selected"] == selected and states.keys() == {2, 4, "end"}
    assert [commit.title for commit in commits] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        f"End of training: step {selected}, selected by CLID",
    ]
    for commit, state in zip(commits, states.values(), strict=True):
        weights = load(commit.read("model.safetensors"))
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[name], value) for name, value in state.items())
    assert {"config.json", "tokenizer.json", "README.md"} <= commits[-1].files.keys()
    assert not [name for name in commits[-1].files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in written if hub.token.encode() in path.read_bytes()]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".push")]


def test_a_token_that_the_hub_refuses_ends_all_processes_before_training(launch, hub, tmp_path):
    codes = push(launch, hub, tmp_path, token="hf_" + "wrong" * 7)
    assert all(codes)
    assert "PushError" in (tmp_path / "report.0.log").read_text()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
