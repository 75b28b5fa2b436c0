"""The state of a run beside the model: it comes back bit for bit, or not at all."""

import json

import pytest
import torch
from torch import nn

from hf_clidmu.state import (
    FOLDER,
    VERSION,
    load_optimizer_tensors,
    load_state,
    optimizer_tensors,
    save_state,
)


TENSORS = {
    "ledger": {"loss": torch.tensor([0.1, float("nan"), 3e-42]), "seen": torch.tensor([1, 2, 3], dtype=torch.int32)},
    "weighting": {"net.0.weight": torch.randn(4, 3).T, "scale": torch.tensor(2.0, dtype=torch.bfloat16)},
}
VALUES = {"meta_steps": 7, "snapshots": [{"step": 2, "score": 0.1 + 0.2, "file": None}]}


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save_state(tmp_path / "checkpoint-1", TENSORS, VALUES)
    tensors, values = load_state(str(tmp_path / "checkpoint-1"))
    assert values == {**VALUES, "version": VERSION}
    assert {name: set(group) for name, group in tensors.items()} == {name: set(g) for name, g in TENSORS.items()}
    for name, group in TENSORS.items():
        for key, value in group.items():
            assert tensors[name][key].dtype == value.dtype
            assert torch.equal(tensors[name][key].nan_to_num(-1), value.nan_to_num(-1)), key


def test_only_safetensors_and_json_are_written(tmp_path):
    save_state(tmp_path, {**TENSORS, "empty": {}}, VALUES)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "ledger.safetensors",
        "state.json",
        "weighting.safetensors",
    ]
    assert load_state(tmp_path)[0].get("empty", {}) == {}


def test_a_checkpoint_of_somebody_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not written by CLIDMUTrainer, or not completely"):
        load_state(tmp_path)


def test_a_half_written_folder_is_refused(tmp_path, monkeypatch):
    save_state(tmp_path, TENSORS, VALUES)

    def broken(group, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("hf_clidmu.files.save_file", broken)
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path, TENSORS, {"meta_steps": 8})  # over a finished one, as a resumed run does
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not completely"):
        load_state(tmp_path)


def test_nothing_of_a_former_run_is_left_in_a_folder(tmp_path):
    save_state(tmp_path, TENSORS, VALUES)
    save_state(tmp_path, {"weighting": TENSORS["weighting"]}, {"meta_steps": 9})
    tensors, values = load_state(tmp_path)
    assert set(tensors) == {"weighting"}
    assert values == {"meta_steps": 9, "version": VERSION}


@pytest.mark.parametrize("version", [0, VERSION + 1, None])
def test_another_format_is_refused(version, tmp_path):
    save_state(tmp_path, TENSORS, VALUES)
    (tmp_path / FOLDER / "state.json").write_text(json.dumps({**VALUES, "version": version}))
    with pytest.raises(ValueError, match=f"has format {version}, this version reads format {VERSION}"):
        load_state(tmp_path)


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=5e-4),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain_sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def net_and_optimizer(kind, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return net, OPTIMIZERS[kind](net.parameters())


def step(net, optimizer, seed):
    optimizer.zero_grad()
    net(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).pow(2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_continues_bit_for_bit(kind, tmp_path):
    net, optimizer = net_and_optimizer(kind)
    for number in range(3):
        step(net, optimizer, number)
    save_state(tmp_path, {"optimizer": optimizer_tensors(optimizer), "net": net.state_dict()}, {})
    tensors, _ = load_state(tmp_path)

    other, continued = net_and_optimizer(kind, seed=1)
    other.load_state_dict(tensors["net"])
    load_optimizer_tensors(continued, tensors.get("optimizer", {}))
    found = optimizer_tensors(continued)
    assert set(found) == set(optimizer_tensors(optimizer))
    assert bool(found) == (kind != "plain_sgd")
    for key, value in optimizer_tensors(optimizer).items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
    for number in range(3, 6):
        step(net, optimizer, number)
        step(other, continued, number)
    for value, expected in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_without_an_optimizer_there_is_nothing_to_save():
    assert optimizer_tensors(None) == {}
    assert optimizer_tensors(net_and_optimizer("adam")[1]) == {}  # before its first step
    load_optimizer_tensors(None, {"0.step": torch.tensor(1.0)})
