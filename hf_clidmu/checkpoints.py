"""Whether a checkpoint is whole, and which one to continue from.

A checkpoint is sealed when all of it is on the disk: a manifest with the size and checksum of every file is written
last. Without a seal it is an unfinished one; with a file that does not match, a damaged one. Neither is ever loaded.
This room knows folders and files, not trainers.
"""

import logging
import re
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

from hf_clidmu.files import UNFINISHED, flush, inside, read_json, remove_unfinished, write_json
from hf_clidmu.state import FOLDER, VERSION


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{1,18})")
_BLOCK = 1 << 22


def seal(checkpoint: str | Path) -> None:
    """Wait until everything in the folder is on the disk, and say so in its manifest.

    Raises:
        OSError: when the disk does not take it; the checkpoint then stays unsealed.
    """
    checkpoint = Path(checkpoint)
    files = {}
    for path in _files(checkpoint):
        flush(path)
        files[path.relative_to(checkpoint).as_posix()] = [path.stat().st_size, _checksum(path)]
    for folder in {checkpoint, *(path.parent for path in _files(checkpoint))}:
        flush(folder)
    write_json(_manifest(checkpoint), {"version": VERSION, "written": time.time_ns(), "files": files})
    flush(checkpoint.parent)


def unseal(checkpoint: str | Path) -> None:
    """Before anything in a checkpoint changes: from here on it is an unfinished one."""
    _manifest(checkpoint).unlink(missing_ok=True)
    remove_unfinished(Path(checkpoint) / FOLDER)


def is_sealed(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was finished once; whether it still is what it was then, [`flaw`] says."""
    return _manifest(checkpoint).is_file()


def flaw(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint, or None for a whole one. Reads every byte of it, and loads nothing."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not is_sealed(checkpoint):
        return (
            f"it has no {FOLDER}/{MANIFEST_NAME}: it was not written by CLIDMUTrainer, or not completely (a killed "
            "run, a full disk, or save_only_model)"
        )
    try:
        manifest = read_json(_manifest(checkpoint))
        if manifest.get("version") != VERSION:
            return f"it has format {manifest.get('version')}, this version reads format {VERSION}"
        for name, expected in _entries(manifest):
            path = inside(checkpoint, name)
            if not path.is_file() or path.is_symlink():
                return f"its file {name} is missing"
            if path.stat().st_size != expected[0]:
                return f"its file {name} has {path.stat().st_size} bytes instead of {expected[0]}"
            if _checksum(path) != expected[1]:
                return f"its file {name} is not what was written"
    except (ValueError, OSError) as error:
        return str(error)
    return None


def choose(asked: str | Path | bool, output_dir: str | Path) -> tuple[str, list[str]]:
    """The checkpoint to continue from: the one asked for or, where it is not whole, the newest whole one before it.

    Args:
        asked: a checkpoint's folder; True means the newest whole one in `output_dir`.
        output_dir: where the run keeps its checkpoints.

    Returns:
        Its folder, and what is wrong with each one that was passed over.

    Raises:
        ValueError: when there is no whole one; the message says what is wrong with each.
    """
    if isinstance(asked, bool):
        candidates, where = list(reversed(checkpoints(output_dir))), f"in {output_dir}"
    else:
        path = Path(asked)
        step, candidates, where = _step(path), [path], f"at {asked}, nor an earlier one beside it"
        if step is not None and path.parent.is_dir():
            candidates += [other for other in reversed(checkpoints(path.parent)) if (_step(other) or 0) < step]
    passed_over: list[str] = []
    for candidate in candidates:
        reason = flaw(candidate)
        if reason is None:
            return str(candidate), passed_over
        passed_over.append(f"{candidate}: {reason}")
    found = "; ".join(passed_over) or "there is none"
    raise ValueError(
        f"there is no whole checkpoint {where} ({found}). Start without resume_from_checkpoint, or from another one"
    )


def checkpoints(folder: str | Path) -> list[Path]:
    """Folders named `checkpoint-<step>`, by step."""
    folder = Path(folder)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((path for path in found if _step(path) is not None), key=lambda path: _step(path) or 0)


def rotate(folder: str | Path, limit: int | None, *protected: str | Path | None) -> None:
    """Keep the `limit` checkpoints that were written last, and those protected; delete the rest.

    Unfinished ones go first. None, or a limit of zero, keeps all, as in Trainer.
    """
    if limit is None or limit <= 0:
        return
    safe = {Path(path).resolve() for path in protected if path is not None}
    by_age = sorted(checkpoints(folder), key=_written)
    surplus = len(by_age) - max(limit, len(safe))
    for path in [path for path in by_age if path.resolve() not in safe][: max(surplus, 0)]:
        discard(path)


def discard(checkpoint: str | Path) -> None:
    """Delete a checkpoint."""
    unseal(checkpoint)  # half deleted is not whole
    shutil.rmtree(checkpoint, ignore_errors=True)


def _manifest(checkpoint: str | Path) -> Path:
    return Path(checkpoint) / FOLDER / MANIFEST_NAME


def _files(checkpoint: Path) -> list[Path]:
    own = _manifest(checkpoint)
    found = [path for path in checkpoint.rglob("*") if path.is_file() and path != own]
    return sorted(path for path in found if not path.name.endswith(UNFINISHED))


def _entries(manifest: dict[str, Any]) -> list[tuple[str, list[int]]]:
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError("its manifest lists no files")
    for name, expected in files.items():
        if not (isinstance(expected, list) and len(expected) == 2 and all(type(number) is int for number in expected)):
            raise ValueError(f"its manifest holds {expected!r} of file {name}, where a size and a checksum belong")
    return list(files.items())


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _step(checkpoint: Path) -> int | None:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def _written(checkpoint: Path) -> tuple[int, int]:
    """When it was sealed, by its own record: the times of a file system can be made up."""
    try:
        written = read_json(_manifest(checkpoint)).get("written")
    except ValueError:
        written = None
    return (written if isinstance(written, int) else -1), _step(checkpoint) or 0
