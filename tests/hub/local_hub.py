"""A Hub on this machine: the protocol as the real `huggingface_hub` client speaks it, with faults on request.

Repositories live in memory, a commit is applied whole or not at all, large files come by LFS or by xet (through
hf_xet's own local store). Every request is noted, and any of them can be made to fail.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep  # the real one: tests shorten that of the client
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants


LARGE = (".safetensors", ".parquet", ".bin", ".pt", ".pth", ".onnx", ".png")
STATUS_FAULTS = (401, 403, 409, 412, 429, 500)
FAULTS = (*STATUS_FAULTS, "dropped before", "dropped after", "truncated", "slow")


def git_oid(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file: its content, or for xet how to find it."""

    size: int
    oid: str
    sha256: str
    read: Callable[[], bytes]
    large: bool = False
    xet_hash: str | None = None

    @classmethod
    def of(cls, data: bytes, large: bool = False) -> "Blob":
        return cls(len(data), git_oid(data), hashlib.sha256(data).hexdigest(), lambda: data, large)


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]

    def read(self, path: str) -> bytes:
        return self.files[path].read()


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def commit(self, title: str, files: dict[str, Blob]) -> Commit:
        oid = hashlib.sha1(f"{title} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, files))
        return self.head

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Fault:
    """One of FAULTS, `times` times: at requests of a route, after `skip` of them, or at the request of a number."""

    kind: int | str
    route: str | None = None
    number: int | None = None
    times: float = 1
    skip: int = 0

    def applies(self, seen: "Seen", number: int) -> bool:
        if self.times < 1 or self.route not in (None, seen.route) or self.number not in (None, number):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    route: str
    path: str
    authorization: str | None
    body: bytes


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.code, self.body = status, code, body


def connect(patch: pytest.MonkeyPatch, url: str, token: str, cache: Path, xet: bool = False) -> None:
    """Connect the client of this process to a Hub: with a token, an empty cache, and a back-off that takes no time."""
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.002)))
    patch.setenv("HF_TOKEN", token)


class LocalHub:
    """The server, and what tests ask it.

    Args:
        store: folder of the xet store.
        user: who the token belongs to.
    """

    def __init__(self, store: Path, user: str = "alice"):
        self.user, self.store = user, store
        self.token = "hf_" + "LocalHubSecret" * 2 + "0123456789"
        self.repositories: dict[str, Repository] = {}
        self.foreign: set[str] = set()  # repositories that the user may read and not write
        self.large: dict[str, bytes] = {}  # sha256 -> content that came by LFS
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.delay = 0.2
        self.connections: set[socket.socket] = set()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.elsewhere = f"http://localhost:{self.server.server_port}"  # storage is another origin: no token goes there

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            connection.close()

    def fail(self, kind: int | str, route: str | None = None, **how: Any) -> None:
        """Make requests fail, see [`Fault`]; numbers count from the next request on."""
        self.requests.clear()
        self.faults.append(Fault(kind, route, **how))

    def heal(self) -> None:
        self.faults.clear()
        self.requests.clear()

    def routes(self) -> list[str]:
        return [seen.route for seen in self.requests]

    # ---- what the routes do: (hub, groups of the path, query, body) -> status, headers, body ----------------------

    def whoami(self) -> Any:
        return {"name": self.user, "type": "user", "auth": {"type": "access_token"}, "orgs": []}

    def create_repo(self, values: dict[str, Any]) -> Any:
        name = f"{values.get('organization') or self.user}/{values['name']}"
        url = f"{self.url}/{name}"
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        private = values.get("visibility") == "private" or values.get("private") is True
        self.repositories[name] = Repository(private)
        self.repositories[name].commit("initial commit", {".gitattributes": Blob.of(b"*.safetensors filter=lfs\n")})
        return {"url": url, "name": name}

    def find(self, repo: str, revision: str = "main") -> Commit:
        if repo not in self.repositories:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        commit = self.repositories[repo].at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def info(self, repo: str, revision: str = "main") -> Any:
        commit = self.find(repo, revision)
        siblings = [{"rfilename": path, "size": blob.size, "blobId": blob.oid} for path, blob in commit.files.items()]
        private = self.repositories[repo].private
        return {"_id": repo, "id": repo, "sha": commit.oid, "private": private, "siblings": siblings, "tags": []}

    def preupload(self, repo: str, revision: str, values: dict[str, Any]) -> Any:
        files, answer = self.find(repo, revision).files, []
        for asked in values["files"]:
            path, large = asked["path"], asked["path"].endswith(LARGE) or asked["size"] > 10_000_000
            there = files.get(path)
            oid = None if there is None else there.sha256 if large else there.oid
            mode = "lfs" if large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def lfs_batch(self, values: dict[str, Any]) -> Any:
        objects = []
        for asked in values["objects"]:
            found = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.large:
                found["actions"] = {
                    "upload": {"href": f"{self.elsewhere}/storage/{asked['oid']}", "header": {}},
                    "verify": {"href": f"{self.url}/verify", "header": {}},
                }
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def store_large(self, oid: str, data: bytes) -> Any:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "the content does not match its name")
        self.large[oid] = data
        return {}

    def verify(self, values: dict[str, Any]) -> Any:
        if len(self.large.get(values["oid"], b"")) != values["size"]:
            raise Refusal(404, "no such object")
        return {}

    def commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> Any:
        head = self.find(repo, revision)
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        if header.get("parentCommit") not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            value, path = line["value"], line["value"].get("path")
            if line["key"] == "file":
                files[path] = Blob.of(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[path] = self.large_blob(value["oid"], value["size"])
            elif line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(path.rstrip("/") + "/")}
        made = self.repositories[repo].commit(header["summary"], files)
        return {"commitUrl": f"{self.url}/{repo}/commit/{made.oid}", "commitOid": made.oid, "success": True}

    def large_blob(self, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        if sha256 in self.large:
            data = self.large[sha256]
            return Blob(len(data), git_oid(pointer), sha256, lambda: data, large=True)
        xet_hash = dict(_xet_files(self.store)).get(sha256)
        if xet_hash is None:
            raise Refusal(400, f"LFS pointer to an object that was never uploaded: {sha256}")
        read = partial(_xet_read, self.store, xet_hash, size)
        return Blob(size, git_oid(pointer), sha256, read, large=True, xet_hash=xet_hash)

    def tree(self, repo: str, revision: str) -> Any:
        entries = []
        for path, blob in sorted(self.find(repo, revision).files.items()):
            entry = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
            if blob.xet_hash:
                entry["xetHash"] = blob.xet_hash
            entries.append(entry)
        return entries

    def xet_token(self) -> tuple[Any, dict[str, str]]:
        expires, url, token = int(time.time()) + 3600, f"local://{self.store}", "xet-token"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return {"casUrl": url, "accessToken": token, "exp": expires}, headers

    def validate_yaml(self, values: dict[str, Any]) -> Any:
        found = re.match(r"---\n(.*?)\n---", values["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            raise Refusal(400, "invalid card", errors=[{"message": str(error)}], warnings=[]) from error
        if "license" in metadata and not isinstance(metadata["license"], str):
            raise Refusal(400, "invalid card", errors=[{"message": '"license" must be a string'}], warnings=[])
        return {"errors": [], "warnings": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LocalHub, *arguments: Any):
        self.hub = hub
        super().__init__(*arguments)

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        url, body = urlsplit(self.path), self._body()
        path = unquote(url.path)
        route, groups = next(((name, match.groups()) for name, match in _matches(self.command, path)), ("unknown", ()))
        seen = Seen(self.command, route, path, self.headers.get("Authorization"), body)
        if path == "/api/agent-harnesses":  # asked once in a while, by the client on its own account
            self._send(*self._refused(Refusal(404, "no list")))
            return
        with self.hub.lock:
            self.hub.requests.append(seen)
            number = len(self.hub.requests) - 1
            fault = next((fault.kind for fault in self.hub.faults if fault.applies(seen, number)), None)
        if fault == "dropped before":
            self._drop()
            return
        if fault == "slow":
            sleep(self.hub.delay)
        if isinstance(fault, int):
            answer = self._refused(Refusal(fault, f"Injected error {fault}"))
            answer[1]["Retry-After"] = "0"
        else:
            with self.hub.lock:
                try:
                    answer = self._answer(seen, groups, parse_qs(url.query))
                except Refusal as refusal:
                    answer = self._refused(refusal)
        if fault == "dropped after":
            self._drop()
            return
        self._send(*answer, truncated=fault == "truncated")

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def _answer(self, seen: Seen, groups: tuple[str, ...], query: dict[str, list[str]]) -> Any:
        hub, route = self.hub, seen.route
        if route == "storage":
            if seen.authorization:
                raise Refusal(400, "the token was sent to the storage")
            if seen.method == "PUT":
                return 200, {}, _json(hub.store_large(groups[0], seen.body))
            return 200, {}, hub.large[groups[0]]
        repo = groups[0] if groups and "/" in groups[0] else None
        private = repo in hub.repositories and hub.repositories[repo].private
        writes = route in ("create_repo", "preupload", "lfs_batch", "xet_write_token", "commit", "whoami", "verify")
        if seen.authorization not in (None, f"Bearer {hub.token}"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        if (writes or private) and seen.authorization is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if writes and repo in hub.foreign:
            raise Refusal(403, f"Forbidden: you don't have the right to write to {repo}")
        if route == "whoami":
            return 200, {}, _json(hub.whoami())
        if route == "create_repo":
            return 200, {}, _json(hub.create_repo(json.loads(seen.body)))
        if route == "validate_yaml":
            return 200, {}, _json(hub.validate_yaml(json.loads(seen.body)))
        if route == "info":
            return 200, {}, _json(hub.info(*(group for group in groups if group)))
        if route == "preupload":
            return 200, {}, _json(hub.preupload(*groups, json.loads(seen.body)))
        if route == "lfs_batch":
            return 200, {}, _json(hub.lfs_batch(json.loads(seen.body)))
        if route == "verify":
            return 200, {}, _json(hub.verify(json.loads(seen.body)))
        if route in ("xet_write_token", "xet_read_token"):
            values, headers = hub.xet_token()
            return 200, headers, _json(values)
        if route == "commit":
            return 200, {}, _json(hub.commit(*groups, [json.loads(line) for line in seen.body.splitlines()]))
        if route == "tree":
            return 200, {}, _json(hub.tree(*groups))
        if route == "paths_info":
            wanted = parse_qs(seen.body.decode()).get("paths", [])
            return 200, {}, _json([entry for entry in hub.tree(*groups) if entry["path"] in wanted])
        if route == "resolve":
            return self._resolve(seen, *groups)
        raise Refusal(404, f"no route for {seen.method} {seen.path}")

    def _resolve(self, seen: Seen, repo: str, revision: str, path: str) -> Any:
        commit = self.hub.find(repo, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            refused = self._refused(Refusal(404, "Entry not found", "EntryNotFound"))
            return refused[0], {**refused[1], **headers}, refused[2]
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.sha256 if blob.large else blob.oid}"'
        if blob.large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(blob.size)}
        if blob.xet_hash is not None:
            token = f"{self.hub.url}/api/models/{repo}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
        elif blob.large:
            return 302, {**headers, "Location": f"{self.hub.elsewhere}/storage/{blob.sha256}"}, b""
        return 200, headers, blob.read()

    def _refused(self, refusal: Refusal) -> Any:
        headers = {"X-Error-Message": str(refusal)}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        return refusal.status, headers, _json({"error": str(refusal), **refusal.body})

    def _send(self, status: int, headers: dict[str, str], body: bytes, truncated: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (20 if truncated else 0)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncated else body)
        if truncated:
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


_REPO = r"([^/]+/[^/]+)"
_ROUTES = (
    ("GET", "whoami", r"/api/whoami-v2"),
    ("POST", "create_repo", r"/api/repos/create"),
    ("POST", "validate_yaml", r"/api/validate-yaml"),
    ("POST", "preupload", rf"/api/models/{_REPO}/preupload/([^/]+)"),
    ("POST", "commit", rf"/api/models/{_REPO}/commit/([^/]+)"),
    ("GET", "tree", rf"/api/models/{_REPO}/tree/([^/]+)"),
    ("POST", "paths_info", rf"/api/models/{_REPO}/paths-info/([^/]+)"),
    ("GET", "xet_write_token", rf"/api/models/{_REPO}/xet-write-token/([^/]+)"),
    ("GET", "xet_read_token", rf"/api/models/{_REPO}/xet-read-token/([^/]+)"),
    ("GET", "info", rf"/api/models/{_REPO}(?:/revision/([^/]+))?"),
    ("POST", "lfs_batch", rf"/{_REPO}\.git/info/lfs/objects/batch"),
    ("PUT|GET", "storage", r"/storage/([0-9a-f]{64})"),
    ("POST", "verify", r"/verify"),
    ("HEAD|GET", "resolve", rf"/{_REPO}/resolve/([^/]+)/(.+)"),
)


def _matches(method: str, path: str) -> Iterator[tuple[str, re.Match[str]]]:
    for methods, name, pattern in _ROUTES:
        if method in methods.split("|") and (match := re.fullmatch(pattern, path)):
            yield name, match


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()


# ---- xet: what hf_xet's own local store holds ------------------------------------------------------------------------


def _xet_files(store: Path) -> Iterator[tuple[str, str]]:
    """SHA-256 and xet hash of every file in the store, from its shards: records of 48 bytes."""
    for shard in store.rglob("xorbs/shards/*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            flags, entries = struct.unpack("<II", data[at + 32 : at + 40])
            xet_hash = _words(data[at : at + 32])
            at += 48 * (1 + entries * (2 if flags & 0x80000000 else 1))
            if flags & 0x40000000:
                yield _words(data[at : at + 32]), xet_hash
                at += 48


def _words(digest: bytes) -> str:
    return b"".join(digest[at : at + 8][::-1] for at in range(0, 32, 8)).hex()


def _xet_read(store: Path, xet_hash: str, size: int) -> bytes:
    from hf_xet import XetFileInfo
    from huggingface_hub.utils._xet import get_xet_session

    target = store / f"read-{xet_hash}-{threading.get_ident()}"
    with get_xet_session().new_file_download_group(
        endpoint=f"local://{store}", token="xet-token", token_expiry_unix_secs=int(time.time()) + 3600
    ) as group:
        group.start_download_file(XetFileInfo(xet_hash, size), str(target))
    data = target.read_bytes()
    target.unlink()
    return data
