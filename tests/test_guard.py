"""What is not finite moves nothing, and a weighting that broke is left out: step by step, and in whole runs."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from test_trainer import Samples, losses, settings, train
from tiny_models import tiny_classifier
from transformers import default_data_collator

from hf_clidmu.guard import Guard
from hf_clidmu.trainer import CLIDMUTrainer
from hf_clidmu.weighting import SampleWeighting, WeightingBatch, WNet, get_weighting


def batch_of(size=6, num_labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_BC = torch.randn(size, num_labels, generator=generator, requires_grad=True)
    labels_B = torch.randint(num_labels, (size,), generator=generator)
    return WeightingBatch(logits_BC, torch.randn(size, 4, generator=generator), labels_B)


def weighting_of(name="wnet", optimizer="adam"):
    torch.manual_seed(0)
    weighting = get_weighting(name, 3, 4)
    weighting.configure_optimizer(optimizer, 0.05, 5e-4)
    return weighting


def meta_step(guard, weighting, batch, tangent_BC, meta_loss=1.0):
    batch = weighting.prepare(batch, torch.Generator().manual_seed(1))
    average = guard.screen(torch.tensor(meta_loss), tangent_BC, weighting.optimizer)
    return weighting.learn(batch, weighting.loss_gradient(batch), tangent_BC, 0.1, average)


def everything_of(weighting):
    state = copy.deepcopy(weighting.optimizer.state_dict()["state"])
    return {
        **weighting.state_dict(),
        **{f"{n}.{key}": value for n, slot in state.items() for key, value in slot.items()},
    }


@pytest.mark.parametrize("name", ["wnet", "vri", "context"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("spoilt", "value"), [("tangent", torch.nan), ("tangent", torch.inf), ("meta", torch.nan)])
def test_a_meta_step_that_is_not_finite_leaves_weighting_and_optimiser_as_they_were(name, optimizer, spoilt, value):
    guard, weighting, batch = Guard(10), weighting_of(name, optimizer), batch_of()
    tangent_BC = torch.ones(6, 3)
    meta_step(guard, weighting, batch, tangent_BC)
    before = {name: tensor.clone() for name, tensor in everything_of(weighting).items()}
    guard.count(torch.ones(6))
    bad_BC = tangent_BC.clone()
    if spoilt == "tangent":
        bad_BC[2, 1] = value
    meta_step(guard, weighting, batch, bad_BC, meta_loss=value if spoilt == "meta" else 1.0)
    guard.count(torch.ones(6))
    assert guard.look(7) == 1
    after = everything_of(weighting)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    meta_step(guard, weighting, batch, tangent_BC)  # and it goes on
    assert guard.look(8) == 0
    assert not all(torch.equal(value, before[name]) for name, value in everything_of(weighting).items())


def test_a_good_step_is_the_step_without_a_guard():
    steps = []
    for guarded in (True, False):
        weighting, batch, tangent_BC = weighting_of("vri"), batch_of(), torch.ones(6, 3)
        if guarded:
            meta_step(Guard(10), weighting, batch, tangent_BC)
        else:
            batch = weighting.prepare(batch, torch.Generator().manual_seed(1))
            weighting.learn(batch, weighting.loss_gradient(batch), tangent_BC, 0.1)
        steps.append(weighting.state_dict())
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())


def test_a_hypergradient_that_overflows_is_skipped_as_well(monkeypatch):
    guard, weighting = Guard(10), weighting_of()
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    gradients = [torch.zeros_like(parameter) for parameter in weighting.parameters()]
    gradients[1][3] = -torch.inf
    monkeypatch.setattr(weighting, "hypergradient", lambda *_: gradients)
    meta_step(guard, weighting, batch_of(), torch.ones(6, 3))
    guard.count(torch.ones(6))
    assert guard.look(0) == 1
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())


def test_an_optimiser_that_cannot_be_told_gets_gradients_of_zero():
    guard, weighting = Guard(10), weighting_of()
    weighting.optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    meta_step(guard, weighting, batch_of(), torch.full((6, 3), torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())


@pytest.mark.parametrize("name", ["vri", "wnet", "context", "gce", "sce"])
def test_the_guarded_loss_is_the_weighted_one_with_its_gradient(name):
    guard, weighting, batch = Guard(10), weighting_of(name), batch_of()
    batch = weighting.prepare(batch, torch.Generator().manual_seed(1))
    expected, weight_B = weighting.real_loss(batch)
    (expected_BC,) = torch.autograd.grad(expected, batch.logits_BC)
    found, found_B = guard.loss(batch, weighting.real_loss)
    (found_BC,) = torch.autograd.grad(found, batch.logits_BC)
    assert torch.equal(found, expected) and torch.equal(found_BC, expected_BC) and torch.equal(found_B, weight_B)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_becomes_cross_entropy_for_this_batch(value):
    guard, batch = Guard(10), batch_of()

    def spoilt(batch):
        weight_B = torch.ones(6)
        weight_B[1] = value
        return (weight_B * F.cross_entropy(batch.logits_BC, batch.labels_B, reduction="none")).mean(), weight_B

    loss, _ = guard.loss(batch, spoilt)
    expected = F.cross_entropy(batch.logits_BC, batch.labels_B)
    assert torch.equal(loss, expected)
    (found_BC,), (expected_BC,) = (torch.autograd.grad(one, batch.logits_BC) for one in (loss, expected))
    assert torch.equal(found_BC, expected_BC)
    assert guard.used(torch.full((6,), value)).tolist() == [1.0] * 6


BAD = {
    "all weights zero": lambda guard: guard.count(torch.zeros(6)),
    "one sample takes all": lambda guard: guard.count(torch.tensor([0.0, 6.0, 1e-4, 0.0, 0.0, 0.0])),
    "weights that are no numbers": lambda guard: guard.count(torch.full((6,), torch.nan)),
    "a meta step that is not finite": lambda guard: (
        guard.screen(torch.tensor(torch.nan), torch.ones(6, 3), None),
        guard.count(torch.ones(6)),
    ),
}


def good_step(guard):
    guard.screen(torch.tensor(1.0), torch.ones(6, 3), None)
    guard.count(torch.ones(6))


@pytest.mark.parametrize("bad", BAD)
def test_patience_counts_bad_steps_in_a_row(bad, caplog):
    guard = Guard(3)
    for round_ in range(5):  # two in a row, then a good one: patience is never lost
        BAD[bad](guard)
        BAD[bad](guard)
        good_step(guard)
        guard.look(round_)
    assert not guard.is_broken and not caplog.records
    for _ in range(3):
        BAD[bad](guard)
    with caplog.at_level(logging.WARNING):
        guard.look(42)
        guard.look(43)
    assert guard.is_broken and len(caplog.records) == 1  # said once
    assert "seen at step 42): for 3 steps in a row its meta step was not finite" in caplog.text
    loss, _ = guard.loss(batch_of(), lambda batch: (batch.logits_BC.sum() * 100, torch.ones(6)))
    assert torch.equal(loss, F.cross_entropy(batch_of().logits_BC, batch_of().labels_B))


def test_small_batches_and_steps_between_meta_steps_prove_nothing():
    guard = Guard(2)
    for _ in range(5):
        guard.count(torch.tensor([0.0, 2.0, 0.0]))  # one of three: an everyday event
    guard.look(0)
    assert not guard.is_broken
    BAD["a meta step that is not finite"](guard)
    guard.count(torch.ones(6))  # no meta step was due: no sign that it works again
    BAD["a meta step that is not finite"](guard)
    guard.look(1)
    assert guard.is_broken


def test_the_counts_continue_from_a_checkpoint():
    guard, other = Guard(3), Guard(3)
    BAD["a meta step that is not finite"](guard)
    BAD["a meta step that is not finite"](guard)
    other.load_state_dict(guard.state_dict())
    for one in (guard, other):
        BAD["a meta step that is not finite"](one)
        assert one.look(0) == 3 and one.is_broken
    with pytest.raises(ValueError, match="no three whole numbers"):
        other.load_state_dict({"counts": torch.tensor([1.0, 2.0, 3.0])})


# ---- whole runs ------------------------------------------------------------------------------------------------------


class Spoilt(WNet):
    """A weighting whose loss is not finite at some steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.step = steps, -1

    def prepare(self, batch, generator=None):
        return batch

    def raw_weights(self, batch):
        weight_B = super().raw_weights(batch)
        return weight_B * torch.nan if self.run.state.global_step in self.steps else weight_B


def spoilt_run(tmp_path, steps, **changes):
    torch.manual_seed(0)
    weighting = Spoilt(steps)
    args = settings(tmp_path, **{"max_steps": 12, "eval_strategy": "no", "meta_warmup_steps": 0, **changes})
    run = CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Samples("bert"), weighting=weighting)
    object.__setattr__(weighting, "run", run)
    run.train()
    return run


def test_a_run_survives_single_bad_steps_and_counts_them(tmp_path, caplog):
    run = spoilt_run(tmp_path, {2, 3, 7})
    logs = [entry for entry in run.state.log_history if "meta_skipped" in entry]
    assert [entry["meta_skipped"] for entry in logs] == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert all(value == value and abs(value) < 1e3 for value in losses(run))
    assert all(torch.isfinite(value).all() for value in run.model.parameters())
    assert all(torch.isfinite(value).all() for value in run.weighting.parameters())
    assert not run.guard.is_broken and "left out" not in caplog.text
    assert [entry["weight_mean"] for entry in logs][2] == 1.0  # what the loss really used


def test_a_run_whose_weighting_broke_ends_as_plain_cross_entropy(tmp_path, caplog):
    run = spoilt_run(tmp_path / "a", set(range(100)), meta_patience=4)
    assert run.guard.is_broken and run._meta_steps == 4  # no meta step is paid for after that
    assert "The weighting is left out" in caplog.text and "seen at step 4)" in caplog.text
    plain = train("bert", tmp_path / "b", max_steps=12, eval_strategy="no", weighting="none")
    torch.testing.assert_close(losses(run), losses(plain), rtol=1e-5, atol=0)
    for value, expected in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


class Nothing(SampleWeighting):
    """Weights that are all zero: the model would never move again."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def raw_weights(self, batch):
        return 0 * self.scale.expand(len(batch.labels_B))


def test_a_collapsed_weighting_is_left_out_whatever_the_logging_interval(tmp_path):
    runs = []
    for logging_steps in (1, 5):
        args = settings(
            tmp_path,
            max_steps=10,
            eval_strategy="no",
            meta_warmup_steps=0,
            meta_patience=3,
            logging_steps=logging_steps,
        )
        run = CLIDMUTrainer(tiny_classifier("bert"), args, default_data_collator, Samples("bert"), weighting=Nothing())
        run.train()
        assert run.guard.is_broken
        runs.append(run)
    assert losses(runs[0])[:3] == [0.0] * 3 and all(loss > 1 for loss in losses(runs[0])[3:])
    for value, expected in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("scope", ["head", "all"])
def test_two_runs_under_full_determinism_are_one(scope, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what full_determinism sets must not outlive the test
    for name in (
        "CUDA_LAUNCH_BLOCKING",
        "ASCEND_LAUNCH_BLOCKING",
        "HCCL_DETERMINISTIC",
        "FLASH_ATTENTION_DETERMINISTIC",
    ):
        monkeypatch.setenv(name, "1")
    try:
        runs = [
            train("bert", tmp_path, full_determinism=True, scope=scope, max_steps=4, eval_steps=2, model=model)
            for model in (tiny_classifier("bert"), tiny_classifier("bert"))
        ]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert losses(runs[0]) == losses(runs[1])
    for value, expected in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(value, expected)
