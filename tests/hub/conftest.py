"""A Hub of our own for the tests of this folder, and the client that talks to it, with and without xet."""

import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from local_hub import LocalHub


_sleep = time.sleep


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
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", transport == "lfs")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: _sleep(min(seconds, 0.002)))  # back-off takes no time
    monkeypatch.setenv("HF_TOKEN", server.token)
    return server
