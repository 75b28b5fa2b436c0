"""Which checkpoint counts, which one a run goes on from, and which ones are deleted."""

import json
import os

import pytest
import torch

from hf_clidmu.checkpoints import MANIFEST_NAME, checkpoints, choose, discard, flaw, is_sealed, rotate, seal, unseal
from hf_clidmu.files import write_json
from hf_clidmu.state import FOLDER, VERSION, save_state


def written(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    save_state(checkpoint, {"weighting": {"a": torch.full((3,), float(step))}}, {"meta_steps": step})
    (checkpoint / "model.safetensors").write_bytes(b"the model " * step)
    if sealed:
        seal(checkpoint)
    return checkpoint


def names(folder):
    return [path.name for path in checkpoints(folder)]


def test_a_sealed_checkpoint_is_whole_and_an_unsealed_one_is_not(tmp_path):
    checkpoint = written(tmp_path, 3, sealed=False)
    message = "it has no clidmu/manifest.json: it was not written by CLIDMUTrainer, or not completely"
    assert flaw(checkpoint).startswith(message) and not is_sealed(checkpoint)
    seal(checkpoint)
    assert flaw(checkpoint) is None and is_sealed(checkpoint)
    unseal(checkpoint)
    assert flaw(checkpoint).startswith(message)
    assert flaw(tmp_path / "checkpoint-9") == "there is no such folder"


def test_every_byte_counts(tmp_path):
    checkpoint = written(tmp_path, 3)
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST_NAME):
        name, content = path.relative_to(checkpoint).as_posix(), path.read_bytes()
        path.write_bytes(content[:-1])
        assert flaw(checkpoint) == f"its file {name} has {len(content) - 1} bytes instead of {len(content)}"
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert flaw(checkpoint) == f"its file {name} is not what was written"
        path.unlink()
        assert flaw(checkpoint) == f"its file {name} is missing"
        path.symlink_to("/dev/zero")
        assert flaw(checkpoint) == f"its file {name} is missing"
        path.unlink()
        path.write_bytes(content)
        assert flaw(checkpoint) is None


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"version": VERSION + 1, "files": {"a": [1, 2]}}, f"it has format {VERSION + 1}, this version reads format"),
        ({"files": {"a": [1, 2]}}, "it has format None"),
        ({"version": VERSION}, "its manifest lists no files"),
        ({"version": VERSION, "files": {}}, "its manifest lists no files"),
        ({"version": VERSION, "files": {"model.safetensors": 30}}, "where a size and a checksum belong"),
        ({"version": VERSION, "files": {"model.safetensors": [True, 3]}}, "where a size and a checksum belong"),
        ({"version": VERSION, "files": {"../secret": [1, 2]}}, "'../secret' is not the name of a file inside"),
        ({"version": VERSION, "files": {"/etc/passwd": [1, 2]}}, "'/etc/passwd' is not the name of a file inside"),
        ([], "holds a list where a dict belongs"),
    ],
)
def test_a_manifest_that_is_none(manifest, message, tmp_path):
    checkpoint = written(tmp_path, 3)
    write_json(checkpoint / FOLDER / MANIFEST_NAME, manifest)
    assert message in flaw(checkpoint)


def test_the_newest_whole_one_is_chosen_and_the_rest_is_named(tmp_path):
    for step in (2, 10, 9):
        written(tmp_path, step)
    written(tmp_path, 12, sealed=False)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"cut")
    chosen, passed_over = choose(True, tmp_path)
    assert chosen == str(tmp_path / "checkpoint-9")
    assert [text.split(":")[0] for text in passed_over] == [str(tmp_path / f"checkpoint-{n}") for n in (12, 10)]
    assert passed_over[1].endswith("its file model.safetensors has 3 bytes instead of 100")
    assert choose(str(tmp_path / "checkpoint-2"), "elsewhere") == (str(tmp_path / "checkpoint-2"), [])
    assert choose(tmp_path / "checkpoint-10", "elsewhere")[0] == str(tmp_path / "checkpoint-9")  # never a later one
    assert choose(tmp_path / "checkpoint-11", "elsewhere")[0] == str(tmp_path / "checkpoint-9")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (True, r"there is no whole checkpoint in .* \(there is none\). Start without resume_from_checkpoint"),
        ("nowhere/checkpoint-3", "no whole checkpoint at .*, nor an earlier one beside it .*there is no such folder"),
        ("my-model", "no whole checkpoint at .*my-model.*there is no such folder"),
    ],
)
def test_without_a_whole_one_the_error_says_what_there_is(asked, message, tmp_path):
    asked = asked if asked is True else tmp_path / asked
    with pytest.raises(ValueError, match=message):
        choose(asked, tmp_path)
    with pytest.raises(ValueError, match="there is none"):
        choose(True, tmp_path / "nowhere")


def test_the_oldest_are_deleted_by_when_they_were_sealed_and_the_protected_stay(tmp_path):
    for step in (8, 2, 4, 6):  # 8 is of a run that was taken back
        written(tmp_path, step)
    written(tmp_path, 5, sealed=False)
    for path in tmp_path.iterdir():  # what the file system says of times does not matter
        os.utime(path, (0, 0))
    rotate(tmp_path, None)
    rotate(tmp_path, 0)
    assert len(names(tmp_path)) == 5
    rotate(tmp_path, 3, tmp_path / "checkpoint-6")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    rotate(tmp_path, 1, tmp_path / "checkpoint-6", str(tmp_path / "checkpoint-2"), None)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    discard(tmp_path / "checkpoint-2")
    assert names(tmp_path) == ["checkpoint-6"]


def test_other_folders_are_nobodys_business(tmp_path):
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-1-old", "runs", "checkpoint--3", "checkpoint-" + "9" * 30):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert checkpoints(tmp_path) == []
    rotate(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_manifest_says_sizes_and_checksums(tmp_path):
    checkpoint = written(tmp_path, 1)
    (checkpoint / "left.1234.tmp").write_text("of a killed process")
    seal(checkpoint)
    manifest = json.loads((checkpoint / FOLDER / MANIFEST_NAME).read_text())
    assert set(manifest["files"]) == {"model.safetensors", "clidmu/state.json", "clidmu/weighting.safetensors"}
    assert manifest["files"]["model.safetensors"] == [10, 0x0B53688F]  # bytes, crc32
