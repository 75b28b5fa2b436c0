"""The head's own steps: what rests, what trains, at which rate, and that a run in them can be resumed."""

import pytest
import torch
from test_trainer import Samples, assert_bitwise_equal, losses, train
from tiny_models import tiny_classifier
from torch import nn
from transformers import TrainerCallback

from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.head_first import HeadFirst
from hf_clidmu.precompute import backbone_names
from hf_clidmu.snapshots import changing_state


class Watch(TrainerCallback):
    """Copies the parameters after every step."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states.append({name: value.detach().clone() for name, value in model.named_parameters()})


@pytest.mark.parametrize("weighting", ["none", "vri"])
@pytest.mark.parametrize("name", ["bert", "timm:test_resnet"])
def test_below_the_head_nothing_moves_before_its_time(name, weighting, tmp_path):
    watch = Watch()
    before = tiny_classifier(name)
    below = set(backbone_names(before, ClassifierTap(before)))
    buffers = {key: value.clone() for key, value in before.named_buffers()}
    train(
        name,
        tmp_path,
        model=before,
        weighting=weighting,
        head_steps=0.5,
        gradient_accumulation_steps=2,
        callbacks=[watch],
        eval_strategy="no",
        max_steps=3,
        num_train_epochs=1,
    )
    start = tiny_classifier(name)
    states = [dict(start.named_parameters()), *watch.states]
    for step, (old, new) in enumerate(zip(states[:-1], states[1:], strict=True)):
        moved = {key for key in old if not torch.equal(old[key], new[key])}
        if step < 1:  # half of three steps, rounded down
            assert moved and not moved & below
        else:
            assert moved & below
    assert {key for key, value in before.named_buffers() if not torch.equal(value, buffers[key])} or name == "bert"


def test_running_statistics_and_dropout_rest_with_the_encoder(tmp_path):
    model = tiny_classifier("timm:test_resnet")
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    train("timm:test_resnet", tmp_path, model=model, head_steps=6, eval_strategy="no")
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())

    features = []

    class Listen(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if not features:
                model.bert.register_forward_hook(lambda module, args, out: features.append(module.encoder.training))

    train("bert", tmp_path, head_steps=2, max_steps=4, eval_strategy="no", weighting="none", callbacks=[Listen()])
    assert features == [False, False, True, True]


def test_rates_are_the_heads_own_and_then_those_of_the_schedule(tmp_path):
    common = {"head_steps": 4, "max_steps": 8, "learning_rate": 1e-3, "eval_strategy": "no", "weighting": "none"}
    run = train("bert", tmp_path, head_learning_rate=1e-2, warmup_steps=0, **common)
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    # The rate that is logged was used in the step before.
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    groups = run.optimizer.param_groups
    head = {id(parameter) for parameter in run.model.classifier.parameters()}
    assert any(id(parameter) in head for parameter in groups[0]["params"])
    default = train("bert", tmp_path, **common)
    assert [e["learning_rate"] for e in default.state.log_history if "learning_rate" in e][0] == pytest.approx(1e-3)


def test_between_steps_the_model_is_whole(tmp_path):
    seen = []

    class Count(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            seen.append((len(changing_state(model)), all(p.requires_grad for p in model.parameters())))

    run = train("bert", tmp_path, head_steps=4, eval_strategy="steps", eval_steps=2, callbacks=[Count()])
    assert seen == [(len(run.model.state_dict()), True)] * 3
    assert len(run.snapshots.weights(run.snapshots.kept[0])) == len(run.model.state_dict())


def test_what_a_failing_step_held_is_let_go(tmp_path):
    model = tiny_classifier("bert")

    class Fail(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train("bert", tmp_path, model=model, head_steps=4, callbacks=[Fail()])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("stop", [2, 6])
def test_a_run_resumed_in_or_after_the_heads_steps_is_bitwise_the_same(stop, tmp_path):
    common = {"head_steps": 4, "max_steps": 8, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    whole = train("bert", tmp_path / "a", **common)
    model = tiny_classifier("bert")

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= stop

    first = train("bert", tmp_path / "b", model=model, callbacks=[Stop()], **common)
    assert first.state.global_step == stop
    second = type(first)(tiny_classifier("bert", seed=3), first.args, first.data_collator.collator, Samples("bert"))
    second.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{stop}"))
    assert_bitwise_equal(second.model, whole.model)
    assert losses(second)[-1] == losses(whole)[-1]


@pytest.mark.parametrize(
    ("loaded", "changes", "expected"),
    [
        (True, {}, 3),
        (True, {"head_steps": 0}, 0),
        (True, {"weighting": "none"}, 0),
        (True, {"freeze": "backbone"}, 0),
        (True, {"freeze": "embeddings"}, 0),
        (True, {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 6}, 0),
        (False, {}, 0),
        (False, {"head_steps": 0.35}, 2),
        (False, {"head_steps": 99}, 6),
    ],
)
def test_by_default_a_whole_pretrained_model_waits_half_of_the_steps(loaded, changes, expected, tmp_path):
    model = tiny_classifier("bert")
    model.config._name_or_path = "somewhere" if loaded else ""
    run = train("bert", tmp_path, model=model, **{"eval_strategy": "no", **changes})
    assert run._head_first.steps == expected


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trains nothing but the head: leave head_steps out"):
        train("bert", tmp_path, freeze="backbone", head_steps=2)
    with pytest.raises(ValueError, match="head_steps must not be negative, got -1"):
        train("bert", tmp_path, head_steps=-1)
    with pytest.raises(ValueError, match="not ReduceLROnPlateau; choose another lr_scheduler_type"):
        train("bert", tmp_path, head_steps=2, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch")
    with pytest.raises(ValueError, match="of 2 trainable parameters 0 lie below it; set head_steps=0"):
        HeadFirst().bind(nn.Linear(2, 2), [], 3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_on_pretrained_weights_train_by_default(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_classifier("bert")
    model.config._name_or_path = "somewhere"
    adapters = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    run = train("bert", tmp_path, model=peft.get_peft_model(model, adapters), eval_strategy="no")
    assert run.state.global_step == 6
