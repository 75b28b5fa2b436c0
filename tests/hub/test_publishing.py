"""What a training run leaves on the Hub: train, push, wipe the disk, load."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load_file
from tiny_runs import CLASSES, KINDS, inputs, logits_of, tiny_run
from transformers import TrainingArguments, pipeline

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.staging import PushError, SecretToken
from hf_clidmu.trainer import CLIDMUTrainer


LFS = pytest.mark.parametrize("transport", ["lfs"], indirect=True)
STRATEGIES = ("every_save", "checkpoint", "all_checkpoints", "end")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".npy")


def pushed(hub, name="alice/run"):
    return hub.repositories[name].head.files


@pytest.mark.parametrize("kind", KINDS)
@LFS
def test_what_was_trained_loads_for_anybody_and_gives_the_same_logits(kind, hub, tmp_path):
    trainer = tiny_run(kind, tmp_path / "run")
    trainer.train()
    expected = logits_of(trainer.model, kind)
    trainer.push_to_hub()
    selected = trainer.snapshots.best.step
    assert hub.repositories["alice/run"].head.title == f"End of training: step {selected}, selected by CLID"
    shutil.rmtree(tmp_path / "run")

    task = "text-classification" if kind in ("bert", "qwen2") else "image-classification"
    classify = pipeline(task, model="alice/run")
    assert torch.equal(logits_of(classify.model, kind), expected)
    assert set(classify.model.config.id2label.values()) == set(CLASSES)
    assert not [name for name in pushed(hub) if name.endswith(PICKLES)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_token_no_pickle_and_the_weights_of_the_step_that_is_named(strategy, hub, tmp_path, caplog, capfd):
    """With a Hub slower than the run: nothing waits for it, and nothing is overtaken."""
    caplog.set_level(logging.DEBUG)
    hub.delay = 0.05
    hub.fail("slow", times=float("inf"))
    run = tmp_path / "run"
    (run / ".hidden").mkdir(parents=True)
    for name in (".env", ".hidden/x.json", "data.csv", "train.parquet", "labels.json"):
        (run / name).write_text("private")
    (run / "link.safetensors").symlink_to(run / "data.csv")
    secret = hub.token
    trainer = tiny_run(
        "bert", run, push_to_hub=True, hub_strategy=strategy, hub_token=secret, save_strategy="steps", save_steps=2,
        hub_always_push=True, save_total_limit=1, max_steps=6,
    )  # fmt: skip
    states = keep_states(trainer)
    trainer.train()
    trainer.save_model()
    commits = hub.repositories["alice/run"].commits[1:]
    titles = [commit.title for commit in commits]
    during = [] if strategy == "end" else [f"Training in progress, step {step}" for step in (2, 4, 6)]
    assert titles == [*during, f"Model save: step {trainer.snapshots.best.step}, selected by CLID"]
    for commit, step in zip(
        commits, [*([] if strategy == "end" else (2, 4, 6)), trainer.snapshots.best.step], strict=True
    ):
        weights = read_tensors(commit.read("model.safetensors"), tmp_path)
        assert all(torch.equal(weights[name], value) for name, value in states[step].items())
        if strategy == "all_checkpoints" and "progress" in commit.title:
            weights = read_tensors(commit.read(f"checkpoint-{step}/model.safetensors"), tmp_path)
            assert all(torch.equal(weights[name], value) for name, value in states[step].items())
    folders = {name.split("/")[0] for name in commits[-1].files if "/" in name} - {"clidmu"}
    wanted = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4", "checkpoint-6"}}
    assert folders == wanted.get(strategy, set())

    everything = {f"{commit.oid}/{name}": commit.read(name) for commit in commits for name in commit.files}
    assert not [name for name in everything if name.endswith(PICKLES) or "private" in name or "data" in name]
    saved = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert any(name.endswith("training_args.bin") for name in saved)
    said = capfd.readouterr()
    for name, content in {**everything, **saved, "log": caplog.text.encode(), "out": said.out.encode()}.items():
        assert secret.encode() not in content, name
    assert not [name for name, content in everything.items() if str(tmp_path).encode() in content]
    assert not [path for path in run.iterdir() if path.name.startswith(".push")]


def keep_states(trainer):
    """The weights at every step, taken beside the run."""
    states, step = {}, trainer.training_step

    def watched(*args, **kwargs):
        states[trainer.state.global_step] = copy_of(trainer.model)
        return step(*args, **kwargs)

    trainer.training_step = watched
    save = trainer._save_checkpoint

    def saved(*args, **kwargs):
        states[trainer.state.global_step] = copy_of(trainer.model)
        return save(*args, **kwargs)

    trainer._save_checkpoint = saved
    evaluate = trainer.evaluate

    def evaluated(*args, **kwargs):
        states[trainer.state.global_step] = copy_of(trainer.model)
        return evaluate(*args, **kwargs)

    trainer.evaluate = evaluated
    return states


def copy_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def read_tensors(content, folder):
    (folder / "read.safetensors").write_bytes(content)
    return load_file(folder / "read.safetensors")


@LFS
def test_a_run_resumes_from_the_hub_when_its_state_was_asked_for(hub, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = tiny_run("bert", tmp_path / "whole", **settings)
    whole.train()
    half = tiny_run(
        "bert", tmp_path / "run", push_to_hub=True, hub_strategy="checkpoint", hub_resume_state=True, **settings
    )
    half.train()
    assert hub.repositories["alice/run"].private
    first = hub.repositories["alice/run"].commits[1]
    assert "last-checkpoint/optimizer.pt" in first.files
    assert not [name for name in first.files if "training_args" in name]
    folder = snapshot_download("alice/run", revision=first.oid, local_dir=tmp_path / "down")
    again = tiny_run("bert", tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=f"{folder}/last-checkpoint")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


@LFS
def test_the_label_report_goes_along_when_asked_and_only_in_private(hub, tmp_path):
    tiny_run("bert", tmp_path / "run").push_to_hub()
    assert not hub.repositories["alice/run"].private
    trainer = tiny_run("bert", tmp_path / "run", hub_label_report=True)
    trainer.train()
    with pytest.raises(PushError, match="alice/run is public, and the label report"):
        trainer.push_to_hub()
    trainer.args.hub_model_id = "alice/other"
    trainer.push_to_hub()
    assert hub.repositories["alice/other"].private
    assert "clidmu/ledger.safetensors" in pushed(hub, "alice/other")
    assert not [name for name in pushed(hub) if "ledger" in name]


@LFS
def test_a_model_without_its_processor_is_refused_before_anything_is_sent(hub, tmp_path):
    with pytest.raises(PushError, match="processing_class"):
        tiny_run("bert", tmp_path / "run", processor=None, push_to_hub=True)
    with pytest.raises(PushError, match="processing_class"):
        tiny_run("vit", tmp_path / "run", processor=None).push_to_hub()
    image, text = tiny_run("vit", tmp_path / "a"), tiny_run("bert", tmp_path / "b")
    image.processing_class, text.processing_class = text.processing_class, image.processing_class
    for trainer, missing in ((image, "image model without its processor"), (text, "text model without its tokenizer")):
        with pytest.raises(PushError, match=missing):
            trainer.push_to_hub()
    assert "commit" not in hub.routes()


@LFS
def test_a_failed_push_is_logged_at_once_and_raised_when_the_model_is_safe(hub, tmp_path, caplog):
    trainer = tiny_run("bert", tmp_path / "run", push_to_hub=True, save_strategy="steps", save_steps=3, max_steps=6)
    hub.fail(403, "commit", times=float("inf"))
    with pytest.raises(PushError, match="training is complete and the model lies in .*run, but not everything"):
        trainer.train()
    assert "'Training in progress, step 3' was not pushed to alice/run" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(PushError, match="'Model save: step"):
        trainer.save_model()
    assert (tmp_path / "run" / "ledger.parquet").exists()
    hub.heal()
    assert trainer.push_to_hub().oid == hub.repositories["alice/run"].head.oid
    assert "model.safetensors" in pushed(hub)


@LFS
def test_a_bad_token_is_told_before_training(hub, tmp_path):
    with pytest.raises(PushError, match="hf auth login"):
        tiny_run("bert", tmp_path / "run", push_to_hub=True, hub_token="hf_wrong")


@LFS
def test_plain_arguments_hide_their_token_as_well(hub, tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), hub_token=hub.token, report_to="none", use_cpu=True)
    trainer = tiny_run("bert", tmp_path / "run", args=args)
    assert isinstance(trainer.args.hub_token, SecretToken)
    trainer.save_model()
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and hub.token.encode() in p.read_bytes()]


@LFS
def test_a_card_is_pushed_with_what_is_known(hub, tmp_path):
    trainer = tiny_run("bert", tmp_path / "run")
    trainer.train()
    trainer.push_to_hub(license="mit", dataset_tags="alice/data", dataset="Tiny films", tags="films")
    card = ModelCard.load("alice/run")
    assert (card.data.license, card.data.datasets, card.data.pipeline_tag) == (
        "mit",
        ["alice/data"],
        "text-classification",
    )
    assert {"hf_clidmu", "noisy-labels", "films"} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    step = trainer.snapshots.best.step
    (logged,) = [entry for entry in trainer.state.log_history if entry["step"] == step and "eval_accuracy" in entry]
    assert results == {"accuracy": logged["eval_accuracy"], "f1": logged["eval_macro_f1"]}
    assert all(np.isfinite(value) for value in results.values())
    assert json.loads(hub.repositories["alice/run"].head.read("clidmu/results.json"))["license"] == "mit"
    assert str(tmp_path) not in str(card)


def test_the_trainer_is_the_one_that_publishes():
    assert CLIDMUTrainer.push_to_hub.__module__ == "hf_clidmu.publishing"


@pytest.mark.parametrize("where", ["folder", "hub"])
@LFS
def test_a_run_is_taken_up_again_with_weighting_and_ledger(where, hub, tmp_path):
    first = tiny_run("bert", tmp_path / "run", hub_label_report=True)
    first.train()
    first.save_model()
    first.push_to_hub()
    source = str(tmp_path / "run") if where == "folder" else "alice/run"
    args = CLIDMUConfig(str(tmp_path / "next"), max_steps=3, report_to="none", use_cpu=True, meta_warmup_steps=0)
    again = CLIDMUTrainer.from_run(source, args, train_dataset=inputs("bert"))
    assert torch.equal(logits_of(again.model, "bert"), logits_of(first.model, "bert"))
    assert again.processing_class.get_vocab() == first.processing_class.get_vocab()
    for name, value in first.weighting.named_parameters():
        assert torch.equal(again.weighting.get_parameter(name), value)
    seen = int(first.ledger.state_dict()["times_seen"].sum())
    again.train()
    assert int(again.ledger.state_dict()["times_seen"].sum()) > seen
    with pytest.raises(ValueError, match="holds another weighting than weighting='context'"):
        CLIDMUTrainer.from_run(source, CLIDMUConfig(str(tmp_path / "x"), weighting="context", use_cpu=True))


@LFS
def test_tensorboard_gets_what_the_run_says_of_itself(hub, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = tiny_run("bert", tmp_path / "run", report_to="tensorboard", logging_steps=1)
    trainer.train()
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    reader = accumulator.EventAccumulator(str(events.parent))
    reader.Reload()
    tags = set(reader.Tags()["scalars"])
    assert {"train/meta_loss", "train/clid", "train/weight_mean", "train/weight_std", "eval/clid"} <= tags
    logged = [entry["eval_clid"] for entry in trainer.state.log_history if "eval_clid" in entry]
    assert [scalar.value for scalar in reader.Scalars("eval/clid")] == pytest.approx(logged)
    trainer.push_to_hub()
    assert not [name for name in pushed(hub) if "events" in name]


def read_wandb(folder):
    import wandb

    return set(dict(wandb.run.summary))


def read_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    names = {"eval_clid": "eval/clid", "eval_clid_alignment": "eval/clid_alignment"}
    return {names.get(name, f"train/{name}") for name in run.data.metrics}


def read_trackio(folder):
    import sqlite3

    import trackio

    trackio.finish()
    (database,) = (folder / "trackio").rglob("*.db")
    rows = sqlite3.connect(database).execute("select metrics from metrics").fetchall()
    return {name for (row,) in rows for name in json.loads(row)}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_trackers_get_the_same(name, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is optional: pip install {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    tiny_run("bert", tmp_path / "run", report_to=name, logging_steps=1).train()
    seen = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}[name](tmp_path)
    assert {"train/meta_loss", "train/clid", "train/weight_mean", "train/weight_std", "eval/clid"} <= seen
