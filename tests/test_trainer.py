"""The trainer: indistinguishable from Trainer without a weighting, and what it adds with one."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import NUM_LABELS, TEXT, VISION, tiny_batch, tiny_classifier
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainingArguments, default_data_collator

from hf_clidmu.batches import INDEX_COLUMN, IndexedDataset
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.judge import LEARNING_SHARE, Reading
from hf_clidmu.trainer import LEDGER_NAME, CLIDMUTrainer
from hf_clidmu.weighting import Weighting, available_weightings


class Samples(Dataset):
    """A tiny in-memory dataset that fits an architecture."""

    def __init__(self, name, size=40, seed=0, labels=True):
        self.inputs, self.labels_N = tiny_batch(name, size=size, seed=seed)
        self.has_labels = labels

    def __len__(self):
        return len(self.labels_N)

    def __getitem__(self, row):
        sample = {key: values[row] for key, values in self.inputs.items()}
        return {**sample, "labels": int(self.labels_N[row])} if self.has_labels else sample


def settings(tmp_path, config=CLIDMUConfig, **changes):
    values = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    return config(**{**values, **changes})


def train(name, tmp_path, trainer=CLIDMUTrainer, **changes):
    config = changes.pop("config", CLIDMUConfig)
    extra = {key: changes.pop(key) for key in ("eval_dataset", "meta_dataset", "callbacks") if key in changes}
    model = changes.pop("model", None) or tiny_classifier(name)
    train_dataset = changes.pop("train_dataset", None) or Samples(name)
    run = trainer(
        model=model,
        args=settings(tmp_path, config, **changes),
        train_dataset=train_dataset,
        data_collator=default_data_collator,
        **extra,
    )
    run.train()
    return run


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def assert_bitwise_equal(model, other):
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


# ---- without a weighting: a Trainer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:test_resnet", "bert"])
@pytest.mark.parametrize("config", [TrainingArguments, CLIDMUConfig])
def test_without_weighting_training_is_bitwise_that_of_trainer(name, config, tmp_path):
    common = {"max_steps": 20, "gradient_accumulation_steps": 2, "eval_strategy": "no"}
    reference = train(name, tmp_path / "a", Trainer, config=TrainingArguments, **common)
    changes = {"weighting": "none"} if config is CLIDMUConfig else {}
    ours = train(name, tmp_path / "b", config=config, **common, **changes)
    assert losses(ours) == losses(reference)
    assert len(losses(ours)) == 20
    assert_bitwise_equal(ours.model, reference.model)
    if config is CLIDMUConfig:  # and it listened all the while
        assert sum(ours.ledger.table()["times_seen"].to_pylist()) == 160


@pytest.mark.parametrize("name", ["timm:test_resnet", "bert"])
def test_without_weighting_clid_is_measured_without_disturbing_the_run(name, tmp_path):
    common = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": Samples(name, 12, seed=7)}
    reference = train(name, tmp_path / "a", Trainer, config=TrainingArguments, **common)
    ours = train(name, tmp_path / "b", weighting="none", snapshot_top_k=1, **common)
    assert losses(ours) == losses(reference)
    evaluations = [entry for entry in ours.state.log_history if "eval_clid" in entry]
    assert len(evaluations) == 4
    assert all(np.isfinite(entry["eval_clid"]) and "eval_loss" in entry for entry in evaluations)


class Regression(nn.Module):
    """No config, tuple outputs, float labels: what transformers tests its own Trainer with."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels=None):
        y = self.layer(x[:, None])[:, 0]
        return (y,) if labels is None else (F.mse_loss(y, labels), y)


@pytest.mark.parametrize("config", [TrainingArguments, CLIDMUConfig])
def test_a_model_without_config_and_with_tuple_outputs_trains_as_in_trainer(config, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x_N = torch.randn(32, generator=generator)
    data = [{"x": x, "labels": 2 * x + 1} for x in x_N]
    models = []
    for trainer, kind in ((Trainer, TrainingArguments), (CLIDMUTrainer, config)):
        torch.manual_seed(0)
        changes = {"weighting": "none"} if kind is CLIDMUConfig else {}
        args = settings(tmp_path, kind, eval_strategy="no", max_steps=10, **changes)
        run = trainer(model=Regression(), args=args, train_dataset=data)
        run.train()
        models.append(run.model)
    assert_bitwise_equal(*models)


# ---- with a weighting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT + VISION)
@pytest.mark.parametrize("scope", ["head", "all"])
def test_whole_training_steps_with_default_attention(name, scope, tmp_path):
    run = train(name, tmp_path, scope=scope, max_steps=2, eval_strategy="no", meta_size=12)
    assert all(np.isfinite(losses(run)))
    expected = tiny_classifier(name)
    changed = [
        not torch.equal(value, before)
        for value, before in zip(run.model.parameters(), expected.parameters(), strict=True)
    ]
    assert sum(changed) > 0.8 * len(changed)
    logged = run.state.log_history[0]
    assert {"meta_loss", "clid", "weight_mean", "weight_std", "loss"} <= set(logged)
    assert logged["clid"] == logged["meta_loss"] > 0


@pytest.mark.parametrize("weighting", sorted(set(available_weightings()) - {"none"}))
@pytest.mark.parametrize("meta_source", ["subset", "batch"])
def test_every_weighting_learns_and_is_deterministic(weighting, meta_source, tmp_path):
    runs = [train("bert", tmp_path, weighting=weighting, meta_source=meta_source, eval_strategy="no") for _ in "ab"]
    assert losses(runs[0]) == losses(runs[1])
    assert_bitwise_equal(runs[0].model, runs[1].model)
    phi = list(runs[0].weighting.parameters())
    assert all(parameter.grad is None for parameter in phi)
    assert bool(phi) == (weighting in ("vri", "wnet", "context"))


class UniformWeighting(Weighting):
    """Cross-entropy as a weighting: what is left of the trainer then must be the Trainer's step."""

    def inner_loss(self, batch):
        return F.cross_entropy(batch.logits_BC, batch.labels_B)

    def weights(self, batch):
        return torch.ones_like(batch.logits_BC[:, 0])

    def learn(self, batch, loss_gradient_BC, logit_tangent_BC, step_size, average=None):
        assert logit_tangent_BC.shape == batch.logits_BC.shape
        return batch


@pytest.mark.parametrize("name", ["timm:test_resnet", "bert", "qwen2"])
@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_meta_step_leaves_no_trace_on_the_real_update(name, scope, tmp_path):
    # Dropout masks, running statistics, gradients and the order of the data: any change would show here.
    common = {"max_steps": 5, "gradient_accumulation_steps": 1, "eval_strategy": "no"}
    reference = train(name, tmp_path / "a", Trainer, config=TrainingArguments, **common)
    args = settings(tmp_path / "b", scope=scope, meta_size=12, **common)
    ours = CLIDMUTrainer(
        tiny_classifier(name), args, default_data_collator, Samples(name), weighting=UniformWeighting()
    )
    ours.train()
    np.testing.assert_allclose(losses(ours), losses(reference), rtol=1e-6)
    for value, expected in zip(ours.model.state_dict().values(), reference.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["timm:test_vit", "bert"])
def test_accumulation_scales_the_same_for_timm_and_text(name, tmp_path):
    # One batch of 8 against 8 batches of 1, without randomness: the same mean loss, the same update.
    model = tiny_classifier(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        model.load_state_dict(state)
        args = settings(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            lr_scheduler_type="constant",
            eval_strategy="no",
            max_grad_norm=0.0,
        )
        run = CLIDMUTrainer(model, args, default_data_collator, Samples(name), weighting=UniformWeighting())
        run.train()
        results.append(([p.detach().clone() for p in model.parameters()], losses(run)[0]))
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
    for one, eight in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(one, eight, rtol=1e-4, atol=1e-6)


def test_meta_every_and_warm_up_decide_when_phi_moves(tmp_path):
    class Watched(UniformWeighting):
        steps: list[int] = []

        def learn(self, batch, loss_gradient_BC, logit_tangent_BC, step_size, average=None):
            self.steps.append(run.state.global_step)
            return batch

    weighting = Watched()
    args = settings(tmp_path, max_steps=10, meta_every=3, meta_warmup_steps=0.2, eval_strategy="no")
    run = CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Samples("bert"), weighting=weighting)
    run.train()
    assert Watched.steps == [3, 6, 9]


def test_meta_dataset_without_labels_is_what_judges(tmp_path):
    seen = []

    class Unlabelled(Samples):
        def __getitem__(self, row):
            seen.append(row)
            return super().__getitem__(row)

    meta = Unlabelled("bert", size=9, seed=3, labels=False)
    run = train("bert", tmp_path, meta_source="dataset", meta_dataset=meta, meta_batch_size=5, eval_strategy="no")
    assert set(seen) == set(range(9))
    assert np.isfinite(losses(run)).all()


def test_meta_batches_carry_no_labels_unless_the_objective_reads_them(tmp_path):
    for objective, expected in (("clid", False), ("cross_entropy", True)):
        run = train("bert", tmp_path, objective=objective, max_steps=1, eval_strategy="no")
        batch = run._next_meta_batch(None)
        assert (batch.labels_M is not None) == expected
        assert not {"labels", "label", INDEX_COLUMN} & set(batch.inputs)


def test_columns_the_model_does_not_know_are_removed_and_ours_stay(tmp_path):
    class Commented(Samples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "comment": "no tensor"}

    seen = []

    def collate(samples):
        seen.extend(samples)
        return default_data_collator(samples)

    run = CLIDMUTrainer(tiny_classifier("bert"), settings(tmp_path), collate, Commented("bert"))
    batch = next(iter(run.get_eval_dataloader(IndexedDataset(Commented("bert")))))
    assert {frozenset(sample) for sample in seen} == {frozenset(["input_ids", "attention_mask", "labels"])}
    assert batch[INDEX_COLUMN].tolist() == list(range(len(batch[INDEX_COLUMN])))


# ---- selection -------------------------------------------------------------------------------------------------------


def test_the_final_model_is_the_one_with_the_lowest_clid(tmp_path):
    run = train("bert", tmp_path, max_steps=10, eval_steps=2, snapshot_top_k=2, learning_rate=5e-2)
    values = {e["step"]: e["eval_clid"] for e in run.state.log_history if "eval_clid" in e}
    assert sorted(values) == [2, 4, 6, 8, 10]
    best = min(values, key=values.get)
    assert run.snapshots.best.step == best
    assert run.evaluate()["eval_clid"] == pytest.approx(values[best], rel=1e-5)
    kept = sorted(path.name for path in (tmp_path / "snapshots").glob("*.safetensors"))
    assert kept == sorted(f"step-{step}.safetensors" for step in sorted(values, key=values.get)[:2])


def test_evaluation_changes_neither_model_nor_random_state(tmp_path):
    run = train("timm:test_resnet", tmp_path, max_steps=2, eval_steps=1)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in run.model.state_dict().items()}
    first, second = run.evaluate()["eval_clid"], run.evaluate()["eval_clid"]
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in run.model.state_dict().items())


@pytest.mark.parametrize("judge_features", ["own", "pretrained"])
@pytest.mark.parametrize("meta_source", ["subset", "batch"])
def test_judge_features_decide_whose_graph_is_compared(judge_features, meta_source, tmp_path):
    chosen = {"judge_features": judge_features, "objective_features": judge_features}
    run = train("bert", tmp_path, **chosen, meta_source=meta_source, max_steps=3, eval_steps=1)
    assert (run.judge.features_ND is not None) == (judge_features == "pretrained")
    assert (run._judge_table is not None) == (judge_features == "pretrained")
    if judge_features == "pretrained":
        # The mean token state of the model before training, row by row.
        model, data = tiny_classifier("bert").eval(), Samples("bert")
        inputs = {key: values[run.judge.rows] for key, values in data.inputs.items()}
        with torch.no_grad():
            state_NTD = model.bert(**inputs).last_hidden_state
        mask_NT1 = inputs["attention_mask"][..., None]
        expected_ND = (state_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)
        torch.testing.assert_close(run.judge.features_ND, expected_ND, rtol=1e-4, atol=1e-5)


def test_ensemble_predicts_the_mean_of_probabilities(tmp_path):
    test = Samples("bert", 10, seed=9)
    run = train("bert", tmp_path, max_steps=6, eval_steps=2, snapshot_mode="ensemble", snapshot_top_k=3)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    probability = np.exp(run.predict(test).predictions)
    assert_bitwise_equal(run.model, type("S", (), {"state_dict": lambda self: before})())
    members = []
    for snapshot in run.snapshots.kept:
        run.model.load_state_dict(run.snapshots.weights(snapshot), strict=False)
        with torch.no_grad():
            members.append(run.model.eval()(**test.inputs).logits.softmax(1).numpy())
    np.testing.assert_allclose(probability, np.mean(members, axis=0), atol=1e-5)
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("stop", [None, 4])
def test_soup_is_the_mean_of_the_states_that_are_level(stop, tmp_path):
    common = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    common |= {"selection_tolerance": 20.0, "snapshot_mode": "soup", "snapshot_top_k": 1}
    run = train("bert", tmp_path, trainer=Scripted, **common)
    if stop:
        run = Scripted(tiny_classifier("bert", seed=3), run.args, run.data_collator.collator, Samples("bert"))
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    steps = [snapshot.step for snapshot in run.snapshots.members]
    assert steps == [4, 5, 6]
    assert run.held_weights() == "mean of 3 states, steps 4 to 6: selected by CLID, which cannot tell them apart"
    states = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter, sum(state[name] for state in states) / 3)


# ---- frozen backbones ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT)
def test_a_cached_frozen_backbone_trains_like_one_that_runs(name, tmp_path):
    runs = [
        train(name, tmp_path / str(cache), freeze="backbone", cache_frozen=cache, max_steps=4, eval_steps=2)
        for cache in (False, True)
    ]
    assert (runs[0].backbone is None, runs[1].backbone is None) == (True, False)
    np.testing.assert_allclose(losses(runs[1]), losses(runs[0]), rtol=1e-4)
    untouched = tiny_classifier(name)
    trained = 0
    for (key, value), before, other in zip(
        runs[1].model.named_parameters(), untouched.parameters(), runs[0].model.parameters(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)
        assert torch.equal(value, before) or value.requires_grad, key
        trained += value.requires_grad
    assert 1 <= trained <= 6
    # Nothing of the shortcut stays on the model: a copy of it is a model of its own, and raw inputs work.
    assert not any("forward" in vars(module) for module in runs[1].backbone.blocks)
    assert runs[1].evaluate()["eval_clid"] == pytest.approx(runs[0].evaluate()["eval_clid"], rel=1e-4)
    inputs, _ = tiny_batch(name)
    with torch.no_grad():
        copied, other = (model.eval()(**inputs).logits for model in (copy.deepcopy(runs[1].model), runs[0].model))
    torch.testing.assert_close(copied, other, rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_keeps_its_running_statistics(tmp_path):
    run = train("timm:test_resnet", tmp_path, freeze="backbone", max_steps=3, eval_strategy="no")
    assert_bitwise_equal_buffers(run.model, tiny_classifier("timm:test_resnet"))


def assert_bitwise_equal_buffers(model, other):
    for (name, value), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(("freeze", "message"), [("nothing_like_it", "matches no parameter"), (".", "every parameter")])
def test_freeze_that_leaves_nothing_to_do_is_an_error(freeze, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CLIDMUTrainer(tiny_classifier("bert"), settings(tmp_path, freeze=freeze), train_dataset=Samples("bert"))


# ---- the warm-up of a network with random weights --------------------------------------------------------------------


CLID_THAT_TURNS = [5.0, 4.0, 3.0, 2.0, 3.0, 3.3, 3.8, 4.3, 4.8, 6.0]


class Turning(CLIDMUTrainer):
    """Its judge says what a list says, evaluation by evaluation."""

    def _judged(self):
        super()._judged()
        self.reading = Reading((CLID_THAT_TURNS[self.state.global_step - 1],) * 10, 9.0)
        return {"eval_clid": self.reading.clid, "eval_clid_alignment": 9.0}

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        self.after = {**getattr(self, "after", {}), self.state.global_step: copy.deepcopy(self.model.state_dict())}
        return metrics


def turning(tmp_path, **changes):
    args = settings(tmp_path, max_steps=10, eval_steps=1, snapshot_top_k=1, **changes)
    name = "timm:test_resnet"
    sets = {"train_dataset": Samples(name), "eval_dataset": Samples(name, 200, seed=7)}
    return Turning(tiny_classifier(name), args, default_data_collator, **sets)


def test_without_pretrained_features_cross_entropy_goes_on_until_clid_turns_and_back_to_the_best_state(tmp_path):
    run = turning(tmp_path)
    run.train()
    learned = [entry["step"] for entry in run.state.log_history if "meta_loss" in entry]
    assert learned == [10]  # the fourth mean after the lowest, which is that of evaluations 3 to 5
    for name, value in run.after[9].items():
        assert torch.equal(value, run.after[4][name]), name
    assert not torch.equal(run.after[8]["timm_model.fc.weight"], run.after[4]["timm_model.fc.weight"])


# Three chunks of the judge set, six evaluations. The fourth is lowest; the fifth lies above it by half a standard error
# of the difference, the sixth by four.
READINGS = [(5.0, 5.0, 5.0), (4.0, 4.2, 4.1), (3.5, 3.4, 3.6), (3.0, 3.0, 3.0), (3.2, 2.9, 3.0), (3.4, 3.6, 3.5)]


class Scripted(CLIDMUTrainer):
    """Its judge says what a list says."""

    def _judged(self):
        super()._judged()
        self.reading = Reading(READINGS[self.state.global_step - 1], 9.0)
        return {"eval_clid": self.reading.clid, "eval_clid_alignment": float(self.state.global_step)}


def test_where_clid_knows_nothing_of_the_classes_the_last_evaluation_is_selected(tmp_path, caplog):
    class Blind(Scripted):
        def _judged(self):
            metrics = super()._judged()
            self.reading = Reading(self.reading.clid_K, 9.0, 0.3)
            return metrics

    common = {"eval_strategy": "steps", "eval_steps": 1, "snapshot_top_k": 1, "selection_tolerance": 0.0}
    with caplog.at_level(logging.WARNING):
        run = train("bert", tmp_path, trainer=Blind, **common)
    assert run.snapshots.best.step == 6
    assert "30 % of the clustering" in caplog.text
    assert run.held_weights() == "step 6, the latest, for CLID knows nothing of these classes"
    assert run.card_facts("").clustering == 0.3


@pytest.mark.parametrize(("tolerance", "selected"), [(0.0, 4), (1.0, 5), (20.0, 6)])
@pytest.mark.parametrize("stop", [None, 4])
def test_the_latest_state_that_cannot_be_told_from_the_lowest_is_selected(tolerance, selected, stop, tmp_path):
    common = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    common |= {"selection_tolerance": tolerance, "snapshot_top_k": 1}
    run = train("bert", tmp_path, trainer=Scripted, **common)
    if stop:
        run = Scripted(tiny_classifier("bert", seed=3), run.args, run.data_collator.collator, Samples("bert"))
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert run.snapshots.best.step == selected
    assert run._alignment == selected
    saved = load_file(tmp_path / f"checkpoint-{selected}" / "model.safetensors")
    assert torch.equal(run.model.classifier.weight, saved["classifier.weight"])


@pytest.mark.parametrize("holds", [True, False])
def test_after_the_turn_features_stay_what_they_were(holds, tmp_path):
    run = turning(tmp_path, hold_features=holds)
    run.train()
    moved = {name for name, value in run.after[10].items() if not torch.equal(value, run.after[9][name])}
    head = {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert moved == head if holds else moved > head | {"timm_model.bn1.running_mean", "timm_model.conv1.0.weight"}
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_a_run_resumed_before_or_after_the_turn_is_the_same_run(tmp_path):
    common = {"save_strategy": "steps", "save_steps": 1}
    whole = turning(tmp_path, **common)
    whole.train()
    for step in (3, 9):
        resumed = turning(tmp_path, **common)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_bitwise_equal(resumed.model, whole.model)
        assert_bitwise_equal(resumed.weighting, whole.weighting)


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, 200),
        ({"judge_features": "pretrained"}, 40),
        ({"judge_source": "train"}, 40),
        ({"eval_dataset": Samples("bert", 199, seed=7)}, 40),
        ({"eval_dataset": None}, 40),
        ({"judge_features": "pretrained", "judge_source": "eval"}, 200),
    ],
)
def test_features_that_train_along_judge_samples_that_do_not(changes, source, tmp_path):
    given = {"eval_dataset": Samples("bert", 200, seed=7), "max_steps": 10, "eval_steps": 1, **changes}
    run = train("bert", tmp_path, **given)
    assert sorted(run.judge.rows) == list(range(source))
    assert (len(run._warmup.readings) > 0) == (source == 200 and not changes)
    assert run._levels.share == (LEARNING_SHARE if source == 200 and not changes else 0)
    assert run._warmup.steps == 1 or run._warmup.readings


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(scope, tmp_path):
    common = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "eval_steps": 2, "scope": scope}
    common |= {"judge_features": "pretrained", "objective_features": "pretrained", "gradient_accumulation_steps": 2}
    whole = train("bert", tmp_path / "whole", **common)
    args = settings(tmp_path / "whole", **common)
    resumed = CLIDMUTrainer(tiny_classifier("bert", seed=5), args, default_data_collator, Samples("bert"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(resumed) == losses(whole)
    assert_bitwise_equal(resumed.model, whole.model)
    assert_bitwise_equal(resumed.weighting, whole.weighting)
    assert resumed.ledger.table().equals(whole.ledger.table())
    assert resumed.snapshots.history == whole.snapshots.history


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    train("bert", tmp_path, Trainer, config=TrainingArguments, **common)
    run = CLIDMUTrainer(tiny_classifier("bert"), settings(tmp_path, **common), default_data_collator, Samples("bert"))
    with pytest.raises(ValueError, match="not written by CLIDMUTrainer"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_no_pickle_of_ours_and_the_ledger_beside_the_model(tmp_path):
    run = train("bert", tmp_path, max_steps=2, save_strategy="steps", save_steps=2, eval_steps=2)
    folder = tmp_path / "checkpoint-2" / "clidmu"
    parts = ["guard", "ledger", "since_log", "snapshots/step-2", "weighting", "weighting_optimizer"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == sorted(["manifest.json", "state.json", *(f"{part}.safetensors" for part in parts)])
    assert json.loads((tmp_path / "checkpoint-2" / "clidmu" / "state.json").read_text())["meta_steps"] == 2
    run.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / LEDGER_NAME).is_file()


# ---- bad input -------------------------------------------------------------------------------------------------------


class Changed(Samples):
    """Samples with something wrong in row 7."""

    def __init__(self, change, **kwargs):
        super().__init__("bert", **kwargs)
        self.change = change

    def __getitem__(self, row):
        return self.change(super().__getitem__(row)) if row == 7 else super().__getitem__(row)


def _without_labels(name):
    return Samples(name, labels=False)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: _without_labels("bert"), "no column 'labels', only .*input_ids"),
        (lambda: Changed(lambda s: {**s, "labels": NUM_LABELS}), f"row 7: label {NUM_LABELS} is outside 0..4"),
        (lambda: Changed(lambda s: {**s, "labels": -1}), "row 7: label -1 is outside"),
        (lambda: [{**s, "labels": [0.0, 1.0]} for s in Samples("bert")], "multi-label and soft targets"),
        (lambda: [{**s, "labels": 1.0} for s in Samples("bert")], "labels must be integers"),
        (lambda: Samples("bert", size=0), "empty|num_samples=0|positive"),
    ],
)
def test_bad_labels_are_named_by_column_and_row(dataset, message, tmp_path):
    args = settings(tmp_path, num_train_epochs=1, max_steps=-1, eval_strategy="no")
    with pytest.raises(ValueError, match=message):
        CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, dataset()).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": "best"}, "unknown weighting 'best'; known: context, elr, free, gce, none, sce, vri, wnet"),
        ({"objective": "f1"}, "unknown objective 'f1'; known: clid, cross_entropy, mae"),
        ({"tangent": "reverse"}, "unknown tangent"),
        ({"preconditioner": "kfac"}, "unknown preconditioner"),
        ({"meta_source": "web"}, "unknown meta_source"),
        ({"judge_features": "best"}, "unknown judge_features"),
        ({"snapshot_mode": "all"}, "unknown snapshot_mode"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"meta_every": 0}, "meta_every must be positive"),
        ({"meta_size": -3}, "meta_size must be positive"),
        ({"tangent": "closed_form", "scope": "all"}, "closed_form"),
        ({"meta_source": "batch", "scope": "all"}, "needs scope='head'"),
        ({"kl_weight": 0.1, "weighting": "wnet"}, "kl_weight"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_size": 41}, "meta_size=41 is larger than the dataset, which has 40 rows"),
        ({"scope": "no_such_layer"}, "scope='no_such_layer' matches none"),
        ({"meta_source": "dataset"}, "needs a meta_dataset"),
        ({"judge_source": "eval"}, "judge_source='eval' needs one eval_dataset"),
    ],
)
def test_bad_settings_that_only_a_run_can_know(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("bert", tmp_path, **changes)


def test_a_batch_of_one_trains(tmp_path):
    run = train("bert", tmp_path, per_device_train_batch_size=1, max_steps=3, eval_steps=1)
    assert np.isfinite(losses(run)).all()


def test_several_gpus_without_a_launcher_are_refused(tmp_path, monkeypatch):
    args = settings(tmp_path)
    monkeypatch.setattr(type(args), "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="accelerate launch"):
        CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Samples("bert"))


def test_a_weighting_needs_a_config(tmp_path):
    args = settings(tmp_path, TrainingArguments)
    with pytest.raises(ValueError, match="CLIDMUConfig"):
        CLIDMUTrainer(tiny_classifier("bert"), args, train_dataset=Samples("bert"), weighting=UniformWeighting())


# ---- streams ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("meta_source", ["batch", "dataset"])
def test_a_stream_trains_and_the_evaluation_set_judges(meta_source, tmp_path):
    samples = Samples("bert")
    run = train(
        "bert",
        tmp_path,
        train_dataset=Stream([samples[row] for row in range(40)]),
        eval_dataset=Samples("bert", seed=1),
        meta_dataset=Samples("bert", seed=2, labels=False) if meta_source == "dataset" else None,
        meta_source=meta_source,
        judge_source="eval",
        eval_steps=3,
    )
    assert run.ledger is None and run._meta_steps == 6
    assert [snapshot.step for snapshot in run.snapshots.history] == [3, 6]


def test_a_stream_has_no_rows_to_draw_from(tmp_path):
    with pytest.raises(ValueError, match="no rows to draw meta batches from"):
        CLIDMUTrainer(tiny_classifier("bert"), settings(tmp_path), default_data_collator, Stream([]))


# ---- baselines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["gce", "sce", "elr"])
def test_a_fixed_loss_takes_no_meta_step_and_no_warmup(weighting, tmp_path):
    run = train("bert", tmp_path, weighting=weighting, meta_warmup_steps=3)
    assert run._meta_steps == 0
    logged = [entry for entry in run.state.log_history if "weight_mean" in entry]
    assert len(logged) == 6 and not any("meta_loss" in entry for entry in logged)


def test_the_metric_that_was_named_selects(tmp_path):
    def compute_metrics(prediction):
        scores.append(len(scores))
        return {"accuracy": {1: 0.5, 2: 0.9, 3: 0.1}.get(len(scores), 0.0)}

    scores = []
    run = CLIDMUTrainer(
        model=tiny_classifier("bert"),
        args=settings(tmp_path, max_steps=3, eval_steps=1, metric_for_best_model="accuracy", greater_is_better=True),
        train_dataset=Samples("bert"),
        eval_dataset=Samples("bert", seed=1),
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
    )
    run.train()
    assert [snapshot.step for snapshot in run.snapshots.ranked()] == [2, 1, 3]
    assert run.snapshots.best.score == -0.9


# ---- a judge that knows nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("informative", [True, False])
def test_a_selection_that_chance_could_have_made_is_said(informative, tmp_path, caplog, monkeypatch):
    class Told:
        def __init__(self, *args, **kwargs):
            self.features_ND = None

        def read(self, model, device):
            return Reading((4.0, 4.0), 12.0 if informative else 1.2)

    monkeypatch.setattr("hf_clidmu.trainer.Judge", Told)
    with caplog.at_level(logging.WARNING):
        run = train("bert", tmp_path, max_steps=3, eval_steps=1)
    assert ("not to be trusted" in caplog.text) == (not informative)
    assert [entry["eval_clid_alignment"] for entry in run.state.log_history if "eval_clid" in entry]


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["head", "all"])
def test_adapters_train_and_merge_into_a_plain_model(scope, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_classifier("bert"), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    )
    run = train("bert", tmp_path, model=model, scope=scope, meta_warmup_steps=0)
    scoped = list(run.lookahead.parameters(model).values())
    names = [name for name, parameter in model.named_parameters() if any(parameter is other for other in scoped)]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ([name for name in trained if "classifier" in name] if scope == "head" else trained)
    assert "lora_A" in trained[0]
    assert {"meta_loss", "clid"} <= set(run.state.log_history[0])
    inputs, _ = tiny_batch("bert")
    with torch.no_grad():
        expected_BC = run.model.eval()(**inputs).logits
        merged = run.model.merge_and_unload()
        torch.testing.assert_close(merged.eval()(**inputs).logits, expected_BC, rtol=1e-4, atol=1e-5)


# ---- learning rates --------------------------------------------------------------------------------------------------


def test_what_lies_above_the_encoder_learns_at_its_own_rate(tmp_path):
    before = tiny_classifier("bert").state_dict()
    run = train("bert", tmp_path, learning_rate=1e-12, head_learning_rate=1e-2, weighting="none")
    moved = {name: not torch.allclose(before[name], value, atol=1e-6) for name, value in run.model.state_dict().items()}
    assert all(moved[name] == ("pooler" in name or "classifier" in name) for name in moved)
