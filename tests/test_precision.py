"""Mixed precision, weights in half precision, compilation and activation checkpointing: the meta step stays right.

Shape suffixes: B training batch, M meta batch, C classes.
"""

from dataclasses import fields
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from test_trainer import losses, train
from tiny_models import NUM_LABELS, tiny_batch, tiny_classifier
from transformers import TrainerCallback, TrainingArguments

from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.lookahead import LookAhead, MetaBatch
from hf_clidmu.objectives import Objective, get_objective
from hf_clidmu.trainer import CLIDMUTrainer
from hf_clidmu.weighting import VRI, WeightingBatch


BF16, FP16 = torch.bfloat16, torch.float16
NAMES = ["timm:test_vit", "bert"]
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def classifier(name):
    """As wide as it takes for rounding errors to average out."""
    return tiny_classifier(name, **(WIDE if name == "bert" else {})).eval()


def casting(model, dtype, device="cpu"):
    """A model whose forward casts to a dtype inside of itself, as accelerate prepares it."""
    model.forward = MethodType(torch.autocast(device, dtype)(model.forward.__func__), model)
    model.forward = MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
    return model


def on(device, values):
    return {name: value.to(device) for name, value in values.items()}


def look(name, model, scope, tangent="auto", objective=None, device="cpu", **options):
    """The logit tangent and the weighting's gradient of one look-ahead, each as one vector."""
    tap = ClassifierTap(model.to(device))
    torch.manual_seed(0)
    weighting = VRI(tap.num_labels, tap.feature_size).to(device)
    lookahead = LookAhead(tap, objective or get_objective("clid", detach_normaliser=False), scope, tangent, **options)
    inputs, labels_B = tiny_batch(name, 16, seed=1)
    inputs, (meta, _) = on(device, inputs), tiny_batch(name, 16, seed=2)
    output = tap.forward(model, inputs, remember_random_state=True)
    noise_BC = torch.randn(16, NUM_LABELS, generator=torch.Generator().manual_seed(3)).to(device)
    batch = WeightingBatch(output.logits_BC, output.features_BD, labels_B.to(device), noise_BC=noise_BC)
    gradient_BC = weighting.loss_gradient(batch)
    judged = lookahead(model, inputs, output, gradient_BC.detach(), MetaBatch(on(device, meta)), 0.1)
    found = weighting.hypergradient(batch, gradient_BC, judged.logit_tangent_BC, 0.1)
    assert output.logits_BC.dtype == judged.meta_loss.dtype == judged.logit_tangent_BC.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in found)
    return judged.logit_tangent_BC.flatten().cpu(), torch.cat([gradient.flatten() for gradient in found]).cpu()


def assert_close(got, want, cosine=0.99, length=0.05):
    for one, other in zip(got, want, strict=True):
        assert float(F.cosine_similarity(one, other, dim=0)) >= cosine
        assert float(one.norm() / other.norm()) == pytest.approx(1, abs=length)


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_tangents_and_gradients_are_those_of_float32(name, scope, dtype):
    want = look(name, classifier(name), scope, "auto" if scope == "head" else "forward")
    assert_close(look(name, casting(classifier(name), dtype), scope, autocast=dtype), want)


def test_batch_normalisation_at_rest_is_differentiated_forward_under_autocast():
    model = tiny_classifier("resnet").eval()
    want = look("resnet", model, "all", "forward")
    assert_close(look("resnet", casting(model, BF16), "all", autocast=BF16), want, length=0.15)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=["bf16", "fp16"])
def test_finite_differences_point_the_same_way_under_autocast(dtype):
    want = look("bert", classifier("bert"), "all", "forward")
    got = look("bert", casting(classifier("bert"), dtype), "all", "finite_difference", autocast=dtype)
    assert_close(got, want, length=0.25)  # coarse steps fall short of it


def test_beyond_the_head_half_precision_is_differentiated_forward():
    tap, clid = ClassifierTap(model := classifier("bert")), get_objective("clid")
    for dtype, tangent in ((None, "finite_difference"), (BF16, "forward"), (FP16, "forward")):
        lookahead = LookAhead(tap, clid, "all", autocast=dtype)
        lookahead.settle(model)
        assert lookahead.tangent == tangent


@pytest.mark.parametrize("tangent", ["finite_difference", "forward"])
def test_small_gradients_do_not_vanish_in_float16(tangent):
    clid, tiny = get_objective("clid"), 1e-6  # gradients of this size are zero in float16
    small = Objective("small", lambda *batch: tiny * clid.function(*batch), needs_labels=False)
    want = look("bert", classifier("bert"), "all", "forward", clid)
    got = look("bert", casting(classifier("bert"), FP16), "all", tangent, small, autocast=FP16)
    assert_close([one / tiny for one in got], want)


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_run_in_bf16_follows_the_one_in_float32(scope, tmp_path):
    common = {"scope": scope, "max_steps": 4, "eval_strategy": "no", "meta_size": 12, "learning_rate": 1e-3}
    want, got = (train("bert", tmp_path, bf16=bf16, **common) for bf16 in (False, True))
    assert got.lookahead.autocast == BF16 and want.lookahead.autocast is None
    assert losses(got) != losses(want)
    np.testing.assert_allclose(losses(got), losses(want), rtol=2e-2)
    values = [[entry["clid"] for entry in run.state.log_history if "clid" in entry] for run in (got, want)]
    np.testing.assert_allclose(*values, rtol=2e-2)
    for parameter in (*got.model.parameters(), *got.weighting.parameters()):
        assert parameter.dtype == torch.float32


def test_fp16_on_a_cpu_is_float32(tmp_path):
    # accelerate casts nothing there; a perturbation as large as half precision needs would only be coarse.
    common = {"scope": "all", "max_steps": 2, "eval_strategy": "no", "meta_size": 12}
    want, got = (train("bert", tmp_path, fp16=fp16, **common) for fp16 in (False, True))
    assert got.lookahead.autocast is None and losses(got) == losses(want)


class Scaler:
    """A gradient scaler as far as a backward needs one."""

    factor = 1024.0

    def __init__(self):
        self.calls = 0

    def scale(self, loss):
        self.calls += 1
        return self.factor * loss


class ScaledTrainer(CLIDMUTrainer):
    """With a scaler in its accelerator; keeps the gradients of the last step."""

    scaler = None

    def training_step(self, *args):
        self.accelerator.scaler = self.scaler
        loss = super().training_step(*args)
        self.gradients = [parameter.grad.clone() for parameter in self.model.parameters()]
        return loss


@pytest.mark.parametrize("scope", ["head", "all"])
def test_the_gradient_scaler_sees_the_real_backward_alone(scope, tmp_path, monkeypatch):
    common = {"scope": scope, "max_steps": 1, "gradient_accumulation_steps": 2, "eval_strategy": "no", "meta_size": 12}
    want = train("bert", tmp_path, ScaledTrainer, **common)
    monkeypatch.setattr(ScaledTrainer, "scaler", scaler := Scaler())
    got = train("bert", tmp_path, ScaledTrainer, **common)
    assert scaler.calls == 2  # micro-steps
    for scaled, plain in zip(got.gradients, want.gradients, strict=True):
        assert torch.equal(scaled, Scaler.factor * plain)
    for one, other in zip(got.weighting.parameters(), want.weighting.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- weights in half precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_in_bf16_give_the_tangents_of_float32(name, scope):
    rounded = classifier(name).to(BF16)
    want = look(name, classifier(name), scope, "auto" if scope == "head" else "forward")
    if name.startswith("timm"):  # images come as floats
        rounded.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {key: value.to(BF16) for key, value in kwargs.items()}),
            with_kwargs=True,
        )
    assert_close(look(name, rounded, scope), want)


def test_finite_differences_of_weights_in_half_precision_are_refused():
    model = classifier("bert").to(BF16)
    with pytest.raises(ValueError, match=r"less than torch.bfloat16 can tell apart.*tangent='forward'.*bf16=True"):
        look("bert", model, "all", "finite_difference")
    lookahead = LookAhead(ClassifierTap(model), get_objective("clid"), "all")
    assert "classifier.weight" in lookahead.settle(model) and lookahead.tangent == "forward"


def test_adapters_in_float32_above_weights_in_half_precision_move_by_what_those_can_tell_apart():
    model = classifier("bert").to(BF16)
    model.classifier.float()
    assert LookAhead(ClassifierTap(model), get_objective("clid"), "classifier")._precision(model) == BF16


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_model_loaded_in_bf16_trains(scope, tmp_path):
    model = tiny_classifier("bert").to(BF16)
    run = train("bert", tmp_path, model=model, scope=scope, max_steps=4, eval_steps=2, meta_size=12)
    assert np.isfinite(losses(run)).all()
    assert all(entry["meta_skipped"] == 0 for entry in run.state.log_history if "meta_skipped" in entry)
    assert all(parameter.dtype == torch.float32 for parameter in run.weighting.parameters())
    assert all(np.isfinite(entry["eval_clid"]) for entry in run.state.log_history if "eval_clid" in entry)


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Traces(TrainerCallback):
    """How many frames were compiled by the end of each step."""

    def __init__(self):
        self.frames = []

    def on_step_end(self, args, state, control, **kwargs):
        self.frames.append(sum(torch._dynamo.utils.counters["frames"].values()))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_forward_gives_the_same_run_and_is_compiled_once(backend, tmp_path):
    common = {"scope": "all", "max_steps": 4, "eval_strategy": "no", "meta_size": 12}
    want, traces = train("bert", tmp_path, **common), Traces()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got = train("bert", tmp_path, torch_compile_backend=backend, callbacks=[traces], **common)
    assert hasattr(got.model_wrapped, "_orig_mod") and not hasattr(got._module, "_orig_mod")
    assert traces.frames[0] > 0 and len(set(traces.frames)) == 1
    if backend == "aot_eager":  # inductor draws dropout masks of its own
        np.testing.assert_allclose(losses(got), losses(want), rtol=1e-5)
    else:
        np.testing.assert_allclose(losses(got), losses(want), rtol=0.2)


# ---- activation checkpointing ----------------------------------------------------------------------------------------

CHECKPOINTING = next(  # transformers 5.18 gave it another name
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(TrainingArguments)}
)


@pytest.mark.parametrize(
    ("name", "scope", "tangent"),
    [
        ("bert", "head", "auto"),
        ("bert", "all", "auto"),
        ("bert", "all", "forward"),
        ("timm:test_vit", "all", "forward"),
    ],
)
def test_activation_checkpointing_changes_no_update(name, scope, tangent, tmp_path):
    common = {"scope": scope, "tangent": tangent, "max_steps": 3, "eval_strategy": "no", "meta_size": 12}
    want, got = (train(name, tmp_path, **{CHECKPOINTING: use}, **common) for use in (False, True))
    flags = ("gradient_checkpointing", "grad_checkpointing")
    assert any(vars(part).get(flag) for part in got.model.modules() for flag in flags)  # and it is on after all
    np.testing.assert_allclose(losses(got), losses(want), rtol=1e-6)
    for one, other in zip(got.model.parameters(), want.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(got.weighting.parameters(), want.weighting.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_reentrant_checkpointing_is_refused_where_it_cannot_work(tmp_path):
    reentrant = {CHECKPOINTING: True, CHECKPOINTING + "_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="use_reentrant=True.*scope='head'"):
        train("bert", tmp_path, scope="all", **reentrant)
    run = train("bert", tmp_path, max_steps=2, eval_strategy="no", meta_size=12, **reentrant)
    assert np.isfinite(losses(run)).all()


def test_frozen_layers_and_checkpointing_go_together(tmp_path):
    run = train(
        "bert",
        tmp_path,
        freeze="bert.embeddings",
        scope="all",
        max_steps=2,
        eval_strategy="no",
        **{CHECKPOINTING: True},
    )
    assert np.isfinite(losses(run)).all()
