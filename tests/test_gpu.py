"""On a GPU: the numbers of the CPU, mixed precision with its scaler, steps that never wait, a resume that repeats."""

import numpy as np
import pytest
import torch
from test_precision import assert_close, casting, classifier, look
from test_trainer import Samples, losses, settings, train
from tiny_models import tiny_classifier
from transformers import default_data_collator

from hf_clidmu.trainer import CLIDMUTrainer


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NAMES = ["timm:test_vit", "bert", "resnet"]
TANGENTS = [("head", "closed_form"), ("all", "forward"), ("all", "finite_difference")]
SHORT = {"use_cpu": False, "meta_size": 12, "meta_warmup_steps": 0, "eval_strategy": "no", "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def exact():
    """Products in float32, whatever the machine is set to."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("scope", "tangent"), TANGENTS)
@pytest.mark.parametrize("name", NAMES)
def test_tangents_and_gradients_are_those_of_the_cpu(name, scope, tangent):
    want = look(name, classifier(name), scope, tangent)
    assert_close(look(name, classifier(name), scope, tangent, device="cuda"), want, cosine=0.9999, length=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("name", ["timm:test_vit", "bert"])
def test_under_autocast_they_are_those_of_float32(name, scope, dtype):
    want = look(name, classifier(name), scope, "auto" if scope == "head" else "forward")
    model = casting(classifier(name), dtype, "cuda")
    assert_close(look(name, model, scope, autocast=dtype, device="cuda"), want)


@pytest.mark.parametrize(("scope", "tangent"), TANGENTS)
def test_a_run_is_that_of_the_cpu(scope, tangent, tmp_path):
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    common = {**SHORT, "scope": scope, "tangent": tangent, "weighting": "wnet", "max_steps": 6}  # it draws nothing
    want, got = (
        train("bert", tmp_path, model=tiny_classifier("bert", **model), **{**common, "use_cpu": use})
        for use in (True, False)
    )
    assert next(got.model.parameters()).is_cuda and next(got.weighting.parameters()).is_cuda
    np.testing.assert_allclose(losses(got), losses(want), rtol=1e-3)
    assert all(entry["meta_skipped"] == 0 for entry in got.state.log_history if "meta_skipped" in entry)
    counts = [run.ledger.table()["times_seen"].to_pylist() for run in (got, want)]
    assert counts[0] == counts[1]


class SmallScale(CLIDMUTrainer):
    """With a scaler that overflows in no step of a tiny network, so that no step is left out."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=64.0)


@pytest.mark.parametrize(("scope", "tangent"), [("head", "auto"), ("all", "auto"), ("all", "finite_difference")])
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_run_in_mixed_precision_follows_the_one_in_float32(half, scope, tangent, tmp_path):
    common = {**SHORT, "scope": scope, "tangent": tangent, "max_steps": 6}
    want = train("bert", tmp_path, SmallScale, **common)
    got = train("bert", tmp_path, SmallScale, **{half: True}, **common)
    assert got.lookahead.autocast == {"bf16": torch.bfloat16, "fp16": torch.float16}[half]
    assert (got.accelerator.scaler is not None) == (half == "fp16")
    assert losses(got) != losses(want)
    np.testing.assert_allclose(losses(got), losses(want), rtol=2e-2)
    assert all(entry["meta_skipped"] == 0 for entry in got.state.log_history if "meta_skipped" in entry)
    for one, other in zip(got.weighting.parameters(), want.weighting.parameters(), strict=True):
        assert torch.isfinite(one).all() and one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=6 * 2 * got.config.meta_learning_rate)


class NeverWaits(CLIDMUTrainer):
    """Any wait for the GPU in a step is an error, from the second step on: the first builds what is kept.

    But in the model itself: transformers looks at the values of attention masks.
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.mode = "default"
        model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        model.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode(self.mode))

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = {name: value.to(self.args.device) for name, value in inputs.items()}  # a plain Trainer waits here, too
        self.mode = "error" if self.state.global_step else "default"
        torch.cuda.set_sync_debug_mode(self.mode)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.mode = "default"
            torch.cuda.set_sync_debug_mode(self.mode)


STEPS = {
    "default": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "running batch": {"meta_source": "batch"},
    "forward": {"scope": "all", "tangent": "forward"},
    "finite differences": {"scope": "all", "tangent": "finite_difference"},
    "finite differences, fp16": {"scope": "all", "tangent": "finite_difference", "fp16": True},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "adam's diagonal": {"preconditioner": "adam"},
    "pretrained features judge": {"objective_features": "pretrained"},
    "worker processes": {"dataloader_num_workers": 1},
    **{name: {"weighting": name} for name in ("wnet", "free", "context", "gce", "elr", "none")},
}


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("name", ["timm:test_resnet", "bert"])
def test_no_step_waits_for_the_gpu(name, case, tmp_path):
    run = train(name, tmp_path, NeverWaits, **{**SHORT, "max_steps": 4, **STEPS[case]})
    assert np.isfinite(losses(run)).all()


@pytest.mark.parametrize("changes", [{}, {"scope": "all", "bf16": True}, {"fp16": True}], ids=["head", "bf16", "fp16"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(changes, tmp_path):
    common = {**SHORT, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, **changes}
    whole = train("bert", tmp_path, **common)
    args = settings(tmp_path, **common)
    resumed = CLIDMUTrainer(tiny_classifier("bert", seed=5), args, default_data_collator, Samples("bert"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(
        (*resumed.model.parameters(), *resumed.weighting.parameters()),
        (*whole.model.parameters(), *whole.weighting.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_clid_and_the_selection_are_those_of_the_cpu(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": Samples("bert", 12, seed=7)}
    run = train("bert", tmp_path, snapshot_top_k=1, **{**SHORT, "max_steps": 6, "judge_size": 16, **changes})
    values = [entry["eval_clid"] for entry in run.state.log_history if "eval_clid" in entry]
    assert len(values) >= 3 and np.isfinite(values).all()
    there = run.judge.read(run.model, run.args.device).clid
    here = run.judge.read(run.model.cpu(), torch.device("cpu")).clid
    assert there == pytest.approx(here, rel=1e-4)
