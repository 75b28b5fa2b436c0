"""How files of ours are written, whole or not at all, and read, with a clean error or not at all.

A file is written under a temporary name, forced to the disk, and renamed: whoever finds the name finds the whole file,
whatever happened in between. What is read may come from anywhere: tensors are safetensors, values are JSON, names
cannot leave their folder, and nothing of a file is executed.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


UNFINISHED = ".tmp"
# What torch and safetensors raise when the disk does not take what they write is no OSError.
_WRITE_FAILURES = ("os error", "i/o error", "no space left", "failed writing", "inline_container", "iostream error")


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole, on the disk, or as it was before.

    Args:
        path: the file; its folder is made where it is missing.
        write: writes the content to the path that it is given.

    Raises:
        OSError: when the disk does not take it (or what `write` raises); the unfinished file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        write(unfinished)
        flush(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_json(path: str | Path, values: Any, indent: int | None = None) -> None:
    """[`write_whole`] of JSON values."""
    text = json.dumps(values, indent=indent) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf8"))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """[`write_whole`] of named tensors, as safetensors."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda unfinished: save_file(whole, unfinished, metadata={"format": "pt"}))


def read_json(path: str | Path, kind: type = dict) -> Any:
    """JSON values of a file.

    Raises:
        ValueError: when it cannot be read, is no JSON, or holds something else than a `kind`.
    """
    try:
        values = json.loads(Path(path).read_bytes().decode("utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, kind):
        raise ValueError(f"{path} holds a {type(values).__name__} where a {kind.__name__} belongs")
    return values


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: when it cannot be read, is cut short or no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def remove_unfinished(folder: str | Path) -> None:
    """Delete what killed processes left of [`write_whole`] in a folder, or below it, where nobody else writes."""
    for path in Path(folder).rglob(f"*{UNFINISHED}"):
        if path.suffixes[-2:-1] and path.suffixes[-2][1:].isdecimal():
            path.unlink(missing_ok=True)


def flush(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot synchronise a folder; a file that cannot be is an error
        if not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no second names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_whole(target, lambda unfinished: shutil.copyfile(source, unfinished))


def inside(folder: str | Path, name: Any) -> Path:
    """The path of a name that was read from a file, in `folder` or below it.

    Raises:
        ValueError: for anything but a relative path that stays there.
    """
    plain = isinstance(name, str) and name != "" and "\\" not in name and "\0" not in name and ":" not in name
    parts = name.split("/") if plain else [".."]
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is not the name of a file inside {folder}: it is not read")
    return Path(folder).joinpath(*parts)


def disk_refused(error: BaseException) -> bool:
    """Whether this is the disk not taking what was written, by whatever library it was written."""
    if isinstance(error, OSError):
        return True
    text = str(error).lower()
    return isinstance(error, (SafetensorError, RuntimeError)) and any(sign in text for sign in _WRITE_FAILURES)
