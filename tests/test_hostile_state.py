"""Saved state may come from anywhere: whatever is in it, it is loaded whole or refused with a clean error.

How many mutations: HF_CLIDMU_MUTATIONS, 40 by default; `HF_CLIDMU_MUTATIONS=1000 pytest tests/test_hostile_state.py`
is what the figures were made with.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_clidmu.checkpoints import MANIFEST_NAME, choose, flaw, seal
from hf_clidmu.files import read_tensors, write_json, write_tensors
from hf_clidmu.guard import Guard
from hf_clidmu.judge import Judge, Levels
from hf_clidmu.ledger import Ledger
from hf_clidmu.meters import Meters
from hf_clidmu.precompute import FeatureTable
from hf_clidmu.snapshots import Snapshots
from hf_clidmu.state import FOLDER, OptimizerState, load_state, real_number, save_state, whole_number
from hf_clidmu.warmup import WarmUp
from hf_clidmu.weighting import get_weighting


MUTATIONS = int(os.environ.get("HF_CLIDMU_MUTATIONS", "40"))
CLEAN = (ValueError, RuntimeError, FileNotFoundError)  # RuntimeError: torch's own, of a state dict that does not fit
fuzzed = settings(
    max_examples=MUTATIONS, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def parts():
    torch.manual_seed(0)
    weighting = get_weighting("wnet", 3, 4)
    weighting.configure_optimizer("adam", 0.1, 0.0)
    for parameter in weighting.parameters():
        parameter.grad = torch.ones_like(parameter)
    weighting.optimizer.step()
    ledger, meters = Ledger(20), Meters()
    ledger.update(torch.arange(5), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    meters.add("meta_loss", torch.tensor(1.5))
    return {
        "weighting": weighting,
        "weighting_optimizer": OptimizerState(weighting.optimizer),
        "guard": Guard(3),
        "ledger": ledger,
        "judge": Judge(None, None, [1, 2, 3], None, 2, 0.5, torch.randn(3, 4)),
        "meta_features": FeatureTable([0, 2], torch.randn(2, 4)),
        "since_log": meters,
    }


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What the first table of a ledger imports takes longer than an example may."""
    parts()["ledger"].table()


VALUES = {
    "meta_steps": 7,
    "last_logged": 3,
    "alignment": 1.5,
    "levels": {"first": [4.5, 4.25], "lowest": [4.0, 4.125], "clustering": 0.7},
    "warmup": {"readings": [[4.5, 4.25], [4.0, 4.125]], "steps": None},
    "snapshots": [
        {"step": 2, "score": 0.5, "file": "step-2.safetensors"},
        {"step": 4, "score": None, "file": None},
    ],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("saved") / "checkpoint-4"
    save_state(checkpoint, {name: part.state_dict() for name, part in parts().items()}, VALUES)
    write_tensors(checkpoint / FOLDER / "snapshots" / "step-2.safetensors", {"a": torch.ones(3)})
    (checkpoint / "model.safetensors").write_bytes(b"the model")
    seal(checkpoint)
    assert flaw(checkpoint) is None
    load_all(checkpoint, checkpoint.parent / "run")
    return checkpoint


def load_all(checkpoint, run_folder):
    """Everything that a resumed run does with the files of ours, the seal left out."""
    tensors, values = load_state(checkpoint)
    for name, part in parts().items():
        if name in tensors:
            part.load_state_dict(tensors[name])
    assert 0 <= whole_number(values, "meta_steps") and 0 <= whole_number(values, "last_logged")
    real_number(values, "alignment")
    Levels().load(values.get("levels"))
    WarmUp(None).load(values.get("warmup"))
    snapshots = Snapshots(run_folder, 2)
    snapshots.load_files(checkpoint / FOLDER / "snapshots", values.get("snapshots"))
    snapshots.load_kept_state(values.get("snapshots"))
    for snapshot in snapshots.kept:
        snapshots.weights(snapshot)
    snapshots.save_files(checkpoint / FOLDER / "again")


def mutate(content, where, how, noise):
    """One change of a file: bytes replaced, cut off, put in, doubled."""
    place = int(where * len(content))
    return {
        "replaced": content[:place] + noise + content[place + len(noise) :],
        "cut": content[:place],
        "inserted": content[:place] + noise + content[place:],
        "doubled": content + content[:place],
        "gone": None,
    }[how]


FILES = ["state.json", "ledger.safetensors", "weighting.safetensors", "weighting_optimizer.safetensors"]
FILES += ["guard.safetensors", "since_log.safetensors", "judge.safetensors", "snapshots/step-2.safetensors"]
MUTATION = {
    "where": st.floats(0, 1, exclude_max=True),
    "how": st.sampled_from(["replaced", "replaced", "replaced", "cut", "inserted", "doubled", "gone"]),
    "noise": st.binary(min_size=1, max_size=8),
}


@given(file=st.sampled_from([*FILES, MANIFEST_NAME]), **MUTATION)
@fuzzed
def test_a_sealed_checkpoint_that_changed_is_refused(saved, tmp_path, file, where, how, noise):
    folder = fresh_copy(saved, tmp_path)
    path = folder / FOLDER / file
    content = path.read_bytes()
    changed = mutate(content, where, how, noise)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    reason = flaw(folder)
    if changed == content:
        assert reason is None
    elif file != MANIFEST_NAME:
        assert reason is not None and file in reason
    elif reason is None:  # all that may change unnoticed is when it was written
        manifests = [json.loads(text) for text in (content, changed)]
        assert manifests[0]["files"] == manifests[1]["files"]
    if reason is not None:
        with pytest.raises(ValueError, match="there is no whole checkpoint"):
            choose(str(folder), tmp_path)


@given(file=st.sampled_from(FILES), **MUTATION)
@fuzzed
def test_without_the_seal_it_is_loaded_or_refused_and_nothing_else(saved, tmp_path, file, where, how, noise):
    folder = fresh_copy(saved, tmp_path)
    path = folder / FOLDER / file
    changed = mutate(path.read_bytes(), where, how, noise)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    try:
        load_all(folder, tmp_path / "run")
    except CLEAN as error:
        assert str(error)
    assert_nothing_outside(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = JSON | st.sampled_from(["../../x", "/etc/passwd", "step-2.safetensors", "..", 10**400, -1, 1e999, [[]], {}])


@given(name=st.sampled_from(sorted(VALUES)), value=HOSTILE, inner=st.sampled_from(["step", "score", "file", None]))
@fuzzed
def test_values_of_any_kind_are_loaded_or_refused(saved, tmp_path, name, value, inner):
    folder = fresh_copy(saved, tmp_path)
    values = json.loads((folder / FOLDER / "state.json").read_text())
    if inner is not None and name == "snapshots":
        values[name][0][inner] = value
    else:
        values[name] = value
    (folder / FOLDER / "state.json").unlink()
    write_json(folder / FOLDER / "state.json", values)
    try:
        load_all(folder, tmp_path / "run")
    except CLEAN as error:
        assert str(error)
    assert_nothing_outside(tmp_path)


TENSOR = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.sampled_from([(20,), (3, 4), (2,), (3,), (2, 4)]),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16, torch.uint8]),
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30]),
)


@given(part=st.sampled_from(sorted(parts())), data=st.data())
@fuzzed
def test_tensors_of_any_kind_are_loaded_or_refused(part, data):
    loaded = parts()[part]
    state = dict(loaded.state_dict())
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(
            st.sampled_from(sorted(state)) | st.text(max_size=8) | st.sampled_from(["0.x", "99.step", "-1."])
        )
        state[name] = data.draw(TENSOR)
    try:
        loaded.load_state_dict(state)
    except CLEAN as error:
        assert str(error)
        return
    loaded.state_dict()
    if part == "ledger":
        loaded.update(torch.arange(5), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
        loaded.table()
    if part == "since_log":
        loaded.take()
    if part == "guard":
        loaded.look(0)


def test_a_ledger_file_that_changed_is_never_a_crash(saved, tmp_path):
    content = (saved / FOLDER / "ledger.safetensors").read_bytes()
    refused = 0
    for bit in range(0, 8 * len(content), max(1, 8 * len(content) // 400)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "ledger.safetensors").write_bytes(changed)
        try:
            ledger = Ledger(20)
            ledger.load_state_dict(read_tensors(tmp_path / "ledger.safetensors"))
        except ValueError:
            refused += 1
    assert refused > 50


def fresh_copy(saved, tmp_path):
    folder = tmp_path / "checkpoint-4"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(saved, folder)
    return folder


def assert_nothing_outside(tmp_path):
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint-4", "run"}
    assert not (Path(tmp_path).parent / "x").exists()
