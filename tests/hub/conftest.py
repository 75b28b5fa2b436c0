"""A Hub of our own for the tests of this folder, and the client that talks to it, with and without xet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import LocalHub, connect


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """One server for all: the client keeps its connections."""
    hub = LocalHub(tmp_path_factory.mktemp("xet"))
    yield hub
    hub.close()


@pytest.fixture(params=["lfs", "xet"])
def transport(request: pytest.FixtureRequest) -> str:
    """How large files travel."""
    if request.param == "xet":
        pytest.importorskip("hf_xet")
    return request.param


@pytest.fixture
def hub(server: LocalHub, transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalHub:
    """An empty Hub; the client of this process is connected to it, with a token and an empty cache."""
    server.repositories.clear()
    server.large.clear()
    server.foreign.clear()
    server.heal()
    server.delay = 0.2
    connect(monkeypatch, server.url, server.token, tmp_path / "cache", xet=transport == "xet")
    return server
