"""The Hub of the tests speaks the protocol: seen through the real client."""

import os

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError


def test_what_goes_up_comes_down(hub, tmp_path, transport):
    folder, large = tmp_path / "folder", os.urandom(300_000)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(large)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    api = HfApi()
    assert api.whoami()["name"] == "alice"
    assert api.create_repo("model", private=True).repo_id == "alice/model"
    commit = api.upload_folder(repo_id="alice/model", folder_path=folder, commit_message="both")
    assert hub.repositories["alice/model"].private
    assert hub.repositories["alice/model"].head.title == "both"
    assert hub.repositories["alice/model"].head.read("model.safetensors") == large
    assert ("storage" in hub.routes(), "xet_write_token" in hub.routes()) == (transport == "lfs", transport == "xet")

    assert api.model_info("alice/model").sha == commit.oid
    down = hf_hub_download("alice/model", "model.safetensors", cache_dir=tmp_path / "down")
    assert open(down, "rb").read() == large
    snapshot = snapshot_download("alice/model", cache_dir=tmp_path / "again")
    assert sorted(os.listdir(snapshot)) == [".gitattributes", "README.md", "model.safetensors"]


@pytest.mark.parametrize("transport", ["lfs"], indirect=True)
def test_it_refuses_what_the_hub_refuses(hub):
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("alice/nothing")
    HfApi().create_repo("model")
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo("model")
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_wrong").whoami()
    assert error.value.response.status_code == 401
    hub.fail(500, "info", times=1)
    with pytest.raises(HfHubHTTPError, match="500"):
        HfApi().model_info("alice/model")
    assert HfApi().model_info("alice/model").id == "alice/model"
