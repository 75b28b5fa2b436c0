"""Disks that refuse: the real thing, without root."""

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Inside, the operating system refuses to let any file grow beyond so many bytes (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(write: Callable[..., Any], path_at: int = 1) -> Callable[..., Any]:
    """In place of what writes a file: half of something, and an error."""

    def refused(*args: Any, **kwargs: Any) -> None:
        with open(args[path_at], "wb") as file:
            file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(args[path_at]))

    return refused
