"""A push gets through whole, or says why not; whatever the network does."""

import threading
from pathlib import Path

import pytest
from local_hub import FAULTS

from hf_clidmu.hub import Push, PushQueue, Repository
from hf_clidmu.staging import PushError


LFS = pytest.mark.parametrize("transport", ["lfs"], indirect=True)
FILES = {"README.md": b"# Model\n", "config.json": b"{}", "model.safetensors": b"weights" * 99, "tokenizer.json": b"[]"}
PASSING = (409, 412, 429, 500, "dropped before", "dropped after", "truncated", "slow")
REFUSED = (401, 403)


@pytest.fixture
def staged(tmp_path: Path):
    """Makes pushes of FILES, or of others."""
    number = iter(range(1000))

    def make(message="step 1", files=FILES, **kwargs):
        folder = tmp_path / f"staged-{next(number)}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return Push(folder, message, **kwargs)

    return make


def content(hub, name="alice/model"):
    head = hub.repositories[name].head
    return {path: head.read(path) for path in head.files if path != ".gitattributes"}


def push_all(name, push):
    repository = Repository(name)
    repository.create(private=None)
    return repository.push(push)


def test_a_push_is_one_commit_with_every_file(hub, staged):
    commit = push_all("model", staged())
    repository = hub.repositories["alice/model"]
    assert content(hub) == FILES
    assert [made.title for made in repository.commits] == ["initial commit", "step 1"]
    assert commit.oid == repository.head.oid
    assert {seen.authorization for seen in hub.requests if seen.route == "storage"} <= {None}


def test_the_same_push_again_is_nothing(hub, staged):
    push_all("model", staged())
    hub.heal()
    push_all("model", staged())
    assert len(hub.repositories["alice/model"].commits) == 2
    assert "storage" not in hub.routes()


def test_a_folder_that_is_replaced_holds_nothing_else(hub, staged):
    push_all("model", staged(files={"last-checkpoint/old.json": b"1", "last-checkpoint/x.json": b"1", "kept": b"2"}))
    push_all("model", staged(files={"last-checkpoint/x.json": b"3"}, replaces=("last-checkpoint/",)))
    assert content(hub) == {"last-checkpoint/x.json": b"3", "kept": b"2"}


def requests_of_a_push(hub, staged):
    hub.heal()
    push_all("alice/clean", staged())
    routes = hub.routes()
    hub.heal()
    return routes


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_request_ends_in_a_whole_push_or_a_clear_error(hub, staged, fault):
    hub.delay = 0.02
    routes = requests_of_a_push(hub, staged)
    assert {"create_repo", "validate_yaml", "preupload", "commit", "tree"} < set(routes)
    for number in range(len(routes)):
        name = f"alice/model-{number}"
        hub.large.clear()
        hub.fail(fault, number=number)
        try:
            push_all(name, staged())
        except PushError as error:
            assert fault in REFUSED
            assert "log in" in str(error) if fault == 401 else "may not write" in str(error)
            assert hub.token not in repr(error)
            if name in hub.repositories:  # as before, or whole: never half
                assert content(hub, name) in ({}, FILES)
        else:
            assert content(hub, name) == FILES
            assert fault not in REFUSED or routes[number] == "xet_write_token"  # which hf_xet asks for again
        hub.heal()
        push_all(name, staged())  # a second push repairs
        assert content(hub, name) == FILES
        assert [commit.title for commit in hub.repositories[name].commits[1:]] == ["step 1"]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("slow", "dropped after", "truncated")])
@LFS
def test_a_fault_that_stays_ends_in_an_error(hub, staged, fault):
    for route in dict.fromkeys(requests_of_a_push(hub, staged)):
        name = f"alice/stays-{route.replace('_', '-')}"
        hub.large.clear()
        hub.fail(fault, route, times=float("inf"))
        if route == "verify" and fault not in REFUSED:  # once it is asked again, the storage has the file
            push_all(name, staged())
            assert content(hub, name) == FILES
            continue
        with pytest.raises(PushError, match=name.split("/")[1]) as error:
            push_all(name, staged())
        assert hub.token not in str(error.value)
        assert "push again" in str(error.value) or fault in REFUSED
        if name in hub.repositories and route != "tree":
            assert content(hub, name) == {}
        hub.heal()
        push_all(name, staged())
        assert content(hub, name) == FILES


@LFS
def test_tries_are_bounded_and_grow_apart(hub, staged, monkeypatch):
    pauses = []
    monkeypatch.setattr("hf_clidmu.hub.time.sleep", pauses.append)
    Repository("model").create(None)
    hub.fail(500, "commit", times=float("inf"))
    with pytest.raises(PushError, match="'step 1' was not pushed to alice/model.*500"):
        Repository("alice/model").push(staged())
    assert hub.routes().count("commit") == 5
    assert pauses == [1, 2, 4, 8]


@LFS
def test_what_the_hub_says_it_has_is_looked_at(hub, staged, monkeypatch):
    """A commit that is announced and does not hold what was pushed is no push."""
    Repository("model").create(None)
    whole = hub.commit
    monkeypatch.setattr(hub, "commit", lambda repo, revision, lines: whole(repo, revision, lines[:2]))
    with pytest.raises(PushError, match="the Hub holds another"):
        Repository("alice/model", attempts=1).push(staged())


@LFS
def test_no_right_to_write_and_no_token(hub, staged, monkeypatch):
    Repository("model").create(None)
    hub.foreign.add("alice/model")
    with pytest.raises(PushError, match="may not write there; choose a repository of yours with hub_model_id"):
        Repository("alice/model").push(staged())
    with pytest.raises(PushError, match="hf auth login"):
        Repository("other", token="hf_wrong").create(None)


@LFS
def test_a_card_that_the_hub_refuses_is_an_error_with_its_words(hub, staged):
    with pytest.raises(PushError, match='"license" must be a string'):
        push_all("model", staged(files={"README.md": b"---\nlicense: [1]\n---\n", "config.json": b"{}"}))
    assert content(hub) == {}


# ---- in the background -----------------------------------------------------------------------------------------------


@LFS
def test_pushes_are_made_in_their_order_and_a_newer_one_takes_the_place_of_those_that_wait(hub, staged):
    Repository("model").create(None)
    started, gate = threading.Event(), threading.Event()

    def push(waiting):
        started.set()
        gate.wait()
        return Repository("alice/model").push(waiting)

    queue = PushQueue(push)
    pushes = [staged(f"step {step}", {"model.safetensors": b"%d" % step}) for step in range(4)]
    done = [queue.add(pushes[0])]
    started.wait()
    done += [queue.add(waiting, newest_only=True) for waiting in pushes[1:]]
    assert not queue.is_done()
    gate.set()
    assert queue.wait() == []
    assert [commit.title for commit in hub.repositories["alice/model"].commits[1:]] == ["step 0", "step 3"]
    assert [future.cancelled() for future in done] == [False, True, True, False]
    assert not any(waiting.folder.exists() for waiting in pushes)
    assert content(hub) == {"model.safetensors": b"3"}


@LFS
def test_a_failure_is_logged_at_once_and_tried_again_at_the_end(hub, staged, caplog):
    Repository("model").create(None)
    queue = PushQueue(Repository("alice/model", attempts=1).push)
    hub.fail(500, "commit")
    with pytest.raises(PushError):
        queue.add(staged()).result()
    assert "'step 1' was not pushed to alice/model" in caplog.text
    assert queue.wait() == []
    assert content(hub) == FILES
    hub.fail(403, "commit", times=2)
    queue.add(staged("step 2", {"config.json": b"[]"}))
    (error,) = queue.wait()
    assert "'step 2' was not pushed" in str(error)


@LFS
def test_an_older_push_never_replaces_a_newer_one(hub, staged):
    """What failed is made up for, but without the head: only the checkpoint that is missing."""
    Repository("model").create(None)
    queue = PushQueue(Repository("alice/model", attempts=1).push)
    hub.fail(500, "commit")
    for step in (1, 2):
        weights = b"%d" % step
        files = {"model.safetensors": weights, "clidmu/results.json": weights}
        queue.add(staged(f"step {step}", {**files, f"checkpoint-{step}/model.safetensors": weights}))
    assert queue.wait() == []
    assert content(hub) == {
        "model.safetensors": b"2",
        "clidmu/results.json": b"2",
        "checkpoint-1/model.safetensors": b"1",
        "checkpoint-2/model.safetensors": b"2",
    }
