"""What may leave for the Hub, and what stays whatever happens."""

import copy
import io
import json
import os
import pickle
from dataclasses import asdict, dataclass

import pytest
import torch

from hf_clidmu.staging import (
    PushError,
    SecretToken,
    publishable,
    remove_staged,
    require_complete,
    stage,
    staging_folder,
)


MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
OURS = {"clidmu/weighting.safetensors", "clidmu/results.json", "clidmu/curves.png"}
LABELS = {
    *(f"clidmu/ledger.{kind}" for kind in ("parquet", "safetensors")),
    *(f"clidmu/label_report.{kind}" for kind in ("parquet", "csv", "html", "json")),
    "clidmu/label_report_noise.png",
}
RESUME = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "trainer_state.json", "clidmu/state.json"}
NEVER = {
    ".env", ".git/config", ".hidden/model.safetensors", "training_args.bin", "pytorch_model.bin", "data.csv",
    "train.parquet", "notes.txt", "runs/events.out.tfevents.1", "model.pkl", "x/config.json", "clidmu/data.npz",
    "member-2/optimizer.pt",
    "clidmu/.env", "clidmu/deep/er.json", "checkpoint-3/config.json", "results.json", "id_rsa", "modeling_evil.py",
}  # fmt: skip


def fill(folder, names, text="{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_is_not_on_the_list_stays(tmp_path):
    fill(tmp_path, MODEL | OURS | LABELS | RESUME | NEVER)
    assert set(publishable(tmp_path)) == MODEL | OURS
    assert set(publishable(tmp_path, labels=True)) == MODEL | OURS | LABELS
    assert set(publishable(tmp_path, resume=True)) == MODEL | OURS | RESUME | {"clidmu/ledger.safetensors"}


@pytest.mark.parametrize(
    "name",
    ["model-00001-of-00003.safetensors", "model.safetensors.index.json", "vocab.txt", "merges.txt", "spiece.model",
     "sentencepiece.bpe.model", "preprocessor_config.json", "special_tokens_map.json", "adapter_config.json",
     "ensemble.json", "member-2/model.safetensors"],
)  # fmt: skip
def test_what_models_and_processors_save_may_leave(name, tmp_path):
    fill(tmp_path, [name])
    assert set(publishable(tmp_path)) == {name}


def test_links_stay_and_so_does_what_lies_behind_them(tmp_path):
    secret, folder = tmp_path / "secret", tmp_path / "run"
    fill(secret, ["config.json", "weighting.safetensors"])
    folder.mkdir()
    (folder / "config.json").symlink_to(secret / "config.json")
    (folder / "clidmu").symlink_to(secret)
    assert publishable(folder, labels=True, resume=True) == {}


def test_what_is_staged_does_not_change_with_the_run(tmp_path):
    run = tmp_path / "run"
    fill(run, ["model.safetensors", "config.json"], '{"epoch": 1}')
    folder = staging_folder(run)
    stage(publishable(run), folder)
    assert os.path.samefile(run / "model.safetensors", folder / "model.safetensors")  # a second name, no second copy
    for name in ("model.safetensors", "config.json"):  # rotation only unlinks
        (run / name).unlink()
        (run / name).write_text('{"epoch": 2}')
    assert (folder / "model.safetensors").read_text() == (folder / "config.json").read_text() == '{"epoch": 1}'
    assert folder.name not in publishable(run)
    remove_staged(run)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors"]


def test_paths_of_the_machine_are_taken_out_of_what_is_staged(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "staged"
    fill(run, ["tokenizer_config.json"], json.dumps({"name_or_path": str(tmp_path), "pad_token": "[PAD]"}))
    fill(run, ["trainer_state.json"], json.dumps({"best_model_checkpoint": f"{run}/checkpoint-3", "global_step": 4}))
    fill(run, ["config.json"], json.dumps({"_name_or_path": "google-bert/bert-base-uncased"}))
    stage(publishable(run, resume=True), folder)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"name_or_path": "", "pad_token": "[PAD]"}
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state == {"best_model_checkpoint": None, "global_step": 4}
    assert "google-bert" in (folder / "config.json").read_text()
    assert str(tmp_path) in (run / "tokenizer_config.json").read_text()  # the run's own file is as it was


def test_models_that_nobody_could_load_are_refused(tmp_path):
    with pytest.raises(PushError, match="there is no model"):
        require_complete(tmp_path, "text")
    fill(tmp_path, ["config.json", "model.safetensors"])
    with pytest.raises(PushError, match="text model without its tokenizer.*processing_class"):
        require_complete(tmp_path, "text")
    with pytest.raises(PushError, match="image model without its processor"):
        require_complete(tmp_path, "image")
    fill(tmp_path, ["tokenizer.json", "tokenizer_config.json"])
    require_complete(tmp_path, "text")
    fill(tmp_path, ["preprocessor_config.json"])
    require_complete(tmp_path, "image")
    (tmp_path / "preprocessor_config.json").unlink()
    fill(tmp_path, ["config.json"], '{"pretrained_cfg": {"input_size": [3, 32, 32]}}')
    require_complete(tmp_path, "image")  # timm keeps its processor there


def test_a_secret_token_is_sent_and_not_kept():
    @dataclass
    class Arguments:
        hub_token: str | None = None

    arguments = Arguments(SecretToken.of("hf_secret"))
    assert f"Bearer {arguments.hub_token}" == "Bearer hf_secret"
    assert "hf_secret" not in repr(arguments)
    assert copy.deepcopy(arguments).hub_token == copy.copy(arguments).hub_token == "hf_secret"
    assert asdict(arguments)["hub_token"] == "hf_secret"
    file = io.BytesIO()
    torch.save(arguments.hub_token, file)
    for kept in (file.getvalue(), *(pickle.dumps(arguments.hub_token, protocol) for protocol in range(6))):
        assert b"hf_secret" not in kept
    assert pickle.loads(pickle.dumps(arguments.hub_token)) is None
    assert SecretToken.of(None) is None
