"""Files are there whole or not at all, and what is read gives values or a clean error."""

import json
import os
from pathlib import Path

import pytest
import torch
from disks import files_limited_to

from hf_clidmu.files import (
    disk_refused,
    inside,
    link_or_copy,
    read_json,
    read_tensors,
    remove_unfinished,
    write_json,
    write_tensors,
    write_whole,
)


TENSORS = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(0.1, dtype=torch.bfloat16)}


def test_what_was_written_comes_back(tmp_path):
    write_tensors(tmp_path / "x" / "a.safetensors", TENSORS)
    write_json(tmp_path / "x" / "a.json", {"a": [1, None, 0.1 + 0.2]})
    found = read_tensors(tmp_path / "x" / "a.safetensors")
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in found)
    assert read_json(tmp_path / "x" / "a.json") == {"a": [1, None, 0.1 + 0.2]}
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a.json", "a.safetensors"]


def test_an_interrupted_write_leaves_what_was_there_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(unfinished):
        unfinished.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in ("a.json.123.tmp", "deep/b.safetensors.9.tmp", "a.json", "mine.tmp", "v1.2.tmp.txt", "notes.old.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_unfinished(tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a.json", "mine.tmp", "notes.old.tmp", "v1.2.tmp.txt"]
    remove_unfinished(tmp_path / "nowhere")


def test_the_order_is_write_synchronise_rename_synchronise(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")).name)))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(("rename", to.name)), replace(self, to)))
    write_whole(tmp_path / "a", lambda path: path.write_text("x"))
    assert seen == [("fsync", f"a.{os.getpid()}.tmp"), ("rename", "a"), ("fsync", tmp_path.name)]


@pytest.mark.parametrize("writer", ["torch", "safetensors", "text", "parquet"])
def test_a_full_disk_is_told_from_other_errors_whoever_writes(writer, tmp_path):
    import pyarrow
    import pyarrow.parquet

    big = {"a": torch.rand(100_000)}
    write = {
        "torch": lambda path: torch.save(big, path),
        "safetensors": lambda path: write_tensors(path, big),
        "text": lambda path: write_json(path, big["a"].tolist()),
        "parquet": lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": big["a"].numpy()}), path),
    }[writer]
    with files_limited_to(5000), pytest.raises(Exception) as raised:
        write_whole(tmp_path / "big", write)
    assert disk_refused(raised.value), raised.value
    assert list(tmp_path.iterdir()) == []
    assert not disk_refused(RuntimeError("CUDA out of memory")) and not disk_refused(ValueError("os error"))


@pytest.mark.parametrize("name", ["a", "a/b.txt", "a b", "ä", "..a", "a.."])
def test_names_inside_a_folder(name, tmp_path):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "a/", "a\\..\\b", "C:x", "a\0b", 3, None, ["a"]]
)
def test_names_cannot_leave_a_folder(name, tmp_path):
    with pytest.raises(ValueError, match="is not the name of a file inside .*: it is not read"):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "holds a list where a dict belongs"),
        (b"null", "holds a NoneType where a dict belongs"),
        (None, "cannot be read as JSON: .*No such file"),
    ],
)
def test_what_is_no_json_is_a_clean_error(content, message, tmp_path):
    path = tmp_path / "values.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path)


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * 64, (10).to_bytes(8, "little") + b"{}        ", None])
def test_what_is_no_safetensors_is_a_clean_error(content, tmp_path):
    path = tmp_path / "tensors.safetensors"
    if content is not None:
        path.write_bytes(content)
    if content is not None and content.endswith(b"{}        "):
        assert read_tensors(path) == {}
        return
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_tensors(path)


def test_a_pickle_is_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    torch.save({"a": Evil()}, tmp_path / "tensors.safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "tensors.safetensors")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_json(tmp_path / "tensors.safetensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_survives_the_first(links, tmp_path, monkeypatch):
    if not links:

        def refused(*args, **kwargs):
            raise OSError("no second names here")

        monkeypatch.setattr(os, "link", refused)
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_text(json.dumps([1]))
    link_or_copy(source, target)
    link_or_copy(source, target)  # again, over itself
    source.unlink()
    assert target.read_text() == "[1]"
