"""How a push gets to the Hub, or fails where somebody sees it.

A push is one commit, tried again a bounded number of times, and done when the Hub has been seen to hold every file of
it. This room knows staged files and the Hub, not trainers.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from hf_clidmu.staging import PushError, regular_files


logger = logging.getLogger(__name__)

ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


@dataclass
class Push:
    """One commit to come.

    Attributes:
        folder: what it holds, staged.
        message: of the commit.
        replaces: folders of the repository that hold nothing else afterwards.
        revision: the branch, where it is not that of the repository.
        done: the commit, or why there is none.
    """

    folder: Path
    message: str
    replaces: tuple[str, ...] = ()
    revision: str | None = None
    done: "Future[CommitInfo]" = field(default_factory=Future)

    def files(self) -> dict[str, Path]:
        """What is to be pushed, by its name in the repository."""
        return {path.relative_to(self.folder).as_posix(): path for path in sorted(regular_files(self.folder))}

    def drop_head(self) -> bool:
        """Leave out what a newer push has replaced: everything but folders of checkpoints. Says whether any is left."""
        for path in self.folder.iterdir():
            if path.is_dir() and path.name.startswith("checkpoint-"):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return any(self.folder.iterdir())

    def discard(self) -> None:
        """Delete what was staged."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Repository:
    """A model repository on the Hub.

    Attributes:
        name: `namespace/name`.
        token: None takes the one that the user is logged in with.
        revision: the branch to push to; None is the main one.
        attempts: how often a push is tried before it counts as failed.
    """

    name: str
    token: str | None = None
    revision: str | None = None
    attempts: int = ATTEMPTS

    @property
    def api(self) -> HfApi:
        """The client."""
        return HfApi(token=self.token, library_name="hf_clidmu")

    def create(self, private: bool | None) -> None:
        """Make the repository if it is not there; `name` is then complete.

        Raises:
            PushError: when that is not allowed or the Hub does not answer.
        """
        self.name = self._trying("the repository could not be created", lambda: self._created(private))

    def _created(self, private: bool | None) -> str:
        name = self.name if "/" in self.name else f"{self.api.whoami()['name']}/{self.name}"
        try:
            return self.api.create_repo(name, private=private).repo_id
        except HfHubHTTPError as refusal:  # it may be there already, and ours to write or not
            if refusal.response.status_code not in (401, 402, 403, 409):
                raise
            try:
                return self.api.repo_info(name).id
            except HfHubHTTPError:
                raise refusal from None

    def is_private(self) -> bool:
        """Whether others cannot see it."""
        info = self._trying("the repository could not be looked at", lambda: self.api.repo_info(self.name))
        return bool(info.private)

    def push(self, push: Push) -> CommitInfo:
        """Make the commit, and see that the Hub holds it whole.

        Pushing the same again is nothing: what is there is not sent again, and a commit whose answer was lost is found.

        Raises:
            PushError: when it did not get through; the message says why and what to do.
        """
        return self._trying(f"'{push.message}' was not pushed", lambda: self._commit(push))

    def _commit(self, push: Push) -> CommitInfo:
        files = push.files()
        additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        deletions = [CommitOperationDelete(name) for name in self._replaced(push, files)]
        commit = self.api.create_commit(
            self.name,
            [*additions, *deletions],
            commit_message=push.message,
            revision=push.revision or self.revision,
        )
        self._verify(commit, additions)
        return commit

    def _replaced(self, push: Push, files: Iterable[str]) -> list[str]:
        if not push.replaces:
            return []
        there = self.api.list_repo_files(self.name, revision=push.revision or self.revision)
        return [name for name in there if name.startswith(push.replaces) and name not in files]

    def _verify(self, commit: CommitInfo, additions: list[CommitOperationAdd]) -> None:
        tree = self.api.list_repo_tree(self.name, recursive=True, revision=commit.oid)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        for addition in additions:
            found = there.get(addition.path_in_repo)
            if found is None or not _same(found, addition):
                raise _NotThere(f"the Hub holds another {addition.path_in_repo} at {commit.oid} than was pushed")

    def _trying(self, failure: str, action: Callable[[], Any]) -> Any:
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except Exception as error:
                last = attempt == self.attempts
                if last or not passing(error):
                    raise PushError(f"{failure} to {self.name}: {advice(error)}") from error
                pause = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
                pause = max(pause, min(_asked_pause(error), _LONGEST_PAUSE))
                logger.warning(
                    "%s to %s (%s); trying again in %.0f s, %d of %d",
                    failure, self.name, _short(error), pause, attempt + 1, self.attempts,
                )  # fmt: skip
                time.sleep(pause)
        raise AssertionError("unreachable")


def _same(found: RepoFile, addition: CommitOperationAdd) -> bool:
    if found.size != addition.upload_info.size:
        return False
    if found.lfs is not None:
        return found.lfs.sha256 == addition.upload_info.sha256.hex()
    data = Path(str(addition.path_or_fileobj)).read_bytes()
    return found.blob_id == sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _NotThere(RuntimeError):
    """The Hub says that it has a commit, and does not have what was in it."""


def passing(error: BaseException | None) -> bool:
    """Whether the same may succeed later: lost connections, conflicts, a Hub that is busy or broken."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status in (408, 409, 412, 425, 429) or status >= 500
        if isinstance(error, (httpx.TransportError, httpx.StreamError, ConnectionError, TimeoutError, _NotThere)):
            return True
        if isinstance(error, json.JSONDecodeError):  # an answer that was cut short
            return True
        error = error.__cause__ or error.__context__
    return False


def advice(error: BaseException) -> str:
    """What went wrong, and what to do, in a sentence."""
    status: int | None = None
    cause: BaseException | None = error
    while cause is not None and status is None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__ or cause.__context__
    help_for = {
        401: "the token is not valid or there is none; log in with 'hf auth login', or set HF_TOKEN",
        403: "the token may not write there; choose a repository of yours with hub_model_id, or a token with the right "
        "to write",
        404: "there is no such repository or branch; check hub_model_id and hub_revision",
        409: "somebody else is changing the repository; push again",
        412: "somebody else has changed the repository; push again",
        429: "the Hub asks for fewer requests; push again later",
    }
    default = "the Hub did not answer as it should; push again later" if passing(error) else "mend this and push again"
    return f"{help_for.get(status or 0, default)} ({_short(error)})"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _asked_pause(error: BaseException) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("Retry-After", "0")
    return float(asked) if asked.isdecimal() else 0.0


class PushQueue:
    """Pushes in the background: one at a time, in their order, and none is lost in silence.

    Args:
        push: makes one commit; raises [`PushError`].
    """

    def __init__(self, push: Callable[[Push], CommitInfo]):
        self._push = push
        self._waiting: list[Push] = []
        self._failed: list[tuple[Push, Exception]] = []
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, push: Push, newest_only: bool = False) -> "Future[CommitInfo]":
        """Push as soon as those before it are done.

        Args:
            push: what to push; it belongs to the queue now.
            newest_only: whether it takes the place of those that still wait.
        """
        with self._lock:
            if newest_only:
                for old in self._waiting:
                    old.discard()
                    old.done.cancel()
                self._waiting.clear()
            self._waiting.append(push)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="push to the Hub")
                self._worker.start()
        return push.done

    def is_done(self) -> bool:
        """Whether nothing is under way."""
        return self._worker is None

    def wait(self) -> list[Exception]:
        """Wait for all, try once more what has failed, and return what failed for good."""
        self.join()
        failed, self._failed = self._failed, []
        for push, _ in failed:
            push.done = Future()
            self.add(push)
        self.join()
        failed, self._failed = self._failed, []
        for push, _ in failed:
            push.discard()
        return [error for _, error in failed]

    def join(self) -> None:
        """Wait for all."""
        while (worker := self._worker) is not None:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._worker = None
                    return
                push = self._waiting.pop(0)
            try:
                commit = self._push(push)
            except Exception as error:
                logger.error("%s", error)
                self._failed.append((push, error))
                push.done.set_exception(error)
            else:
                self.replaced_by(push)
                push.discard()
                push.done.set_result(commit)

    def replaced_by(self, push: Push) -> None:
        """A newer push got through: of what has failed before it, only checkpoints are still worth pushing."""
        kept = []
        for old, error in self._failed:
            if old.drop_head():
                kept.append((old, error))
            else:
                logger.warning("'%s' was never pushed; '%s' has taken its place", old.message, push.message)
                old.discard()
        self._failed = kept
