"""A spread model is read, moved, differentiated and kept like a whole one. Here in a group of one process, where every
parameter is a share; `distributed/test_fsdp2.py` has two."""

import copy

import pytest
import torch
import torch.distributed as dist
from tiny_models import tiny_batch, tiny_classifier
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.head_first import HeadFirst
from hf_clidmu.lookahead import LookAhead, MetaBatch
from hf_clidmu.objectives import get_objective
from hf_clidmu.precompute import backbone_names
from hf_clidmu.sharding import Shares, is_spread, share, spread, spread_like, whole
from hf_clidmu.snapshots import changing_state, load_changing_state


@pytest.fixture(scope="module", autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def models():
    """A classifier, and the same one spread: each block by itself, the rest with the outermost module."""
    one = tiny_classifier("bert").double()
    for module in one.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    two = copy.deepcopy(one)
    for layer in two.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(two)
    return one, two


def judged(model, scope, optimizer, shares=None, **options):
    """A look-ahead in the middle of a step that has accumulated gradients already."""
    tap = ClassifierTap(model)
    inputs, labels_B = tiny_batch("bert", size=6, seed=1)
    torch.nn.functional.cross_entropy(tap.forward(model, inputs).logits_BC, labels_B).backward()
    lookahead = LookAhead(tap, get_objective("clid"), scope, shares=shares, **options)
    output = tap.forward(model, inputs, remember_random_state=lookahead.repeats_forward)
    gradient_BC = torch.softmax(output.logits_BC.detach(), dim=1) / 6
    meta = MetaBatch(tiny_batch("bert", size=8, seed=2)[0], seed=3)
    found = lookahead(model, inputs, output, gradient_BC, meta, 0.3, optimizer)
    (output.logits_BC**2).sum().backward()  # the real backward goes through the same graph
    spread(model)
    state = {name: whole(value.detach()) for name, value in model.state_dict().items()}
    return found, state, [whole(parameter.grad) for parameter in model.parameters()]


@pytest.mark.parametrize("preconditioner", ["none", "adam"])
@pytest.mark.parametrize("scope", ["head", "all", "layer.1"])
def test_a_lookahead_on_shares_is_that_on_wholes(scope, preconditioner):
    one, two = models()
    shares = Shares(two)
    results = []
    for model, held in ((one, None), (two, shares)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-2, foreach=False)
        ClassifierTap(model).forward(model, tiny_batch("bert", seed=5)[0]).logits_BC.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = {name: whole(value.detach()).clone() for name, value in model.state_dict().items()}
        results.append(judged(model, scope, optimizer, held, preconditioner=preconditioner))
        assert all(torch.equal(value, before[name]) for name, value in results[-1][1].items())
    (expected, _, gradients), (found, _, spread_gradients) = results
    torch.testing.assert_close(found.meta_loss, expected.meta_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.logit_tangent_BC, expected.logit_tangent_BC, rtol=1e-9, atol=1e-12)
    assert float(expected.logit_tangent_BC.norm()) > 1e-6
    for got, want in zip(spread_gradients, gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


def test_what_is_displaced_is_what_the_next_forward_sees_and_comes_back():
    one, two = models()
    shares = Shares(two)
    theta = list(shares.named.values())
    inputs, _ = tiny_batch("bert")
    before = two(**inputs).logits.detach()  # leaves the outermost parameters whole
    assert not isinstance(two.classifier.weight, DTensor)
    zeros = [torch.zeros_like(value) for value in shares.values(theta)]
    with torch.no_grad(), shares.displaced(theta, zeros):
        assert torch.equal(two(**inputs).logits, torch.zeros_like(before))
    assert isinstance(two.classifier.weight, DTensor)
    assert torch.equal(two(**inputs).logits, before)
    with pytest.raises(ArithmeticError), shares.displaced(theta, zeros):
        raise ArithmeticError
    assert torch.equal(two(**inputs).logits, before)
    directions = [torch.full_like(value, 2.0) for value in shares.values(theta)]
    assert float(shares.length(theta, directions)) == pytest.approx(2 * sum(p.numel() for p in one.parameters()) ** 0.5)


def test_snapshots_of_a_spread_model_are_whole_and_fit_both():
    one, two = models()
    assert is_spread(two) and not is_spread(one)
    for model in (one, two):
        model.bert.pooler.dense.weight.requires_grad_(False)
    two(**tiny_batch("bert")[0])
    state = changing_state(two)
    assert "bert.pooler.dense.weight" not in state and len(state) == len(one.state_dict()) - 1
    assert all(
        type(value) is torch.Tensor and torch.equal(value, one.state_dict()[name]) for name, value in state.items()
    )
    assert changing_state(two, keeps=False) == {}
    moved = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    for model in (one, two):
        load_changing_state(model, moved)
        assert all(torch.equal(value, moved[name]) for name, value in changing_state(model).items() if name in moved)
    with pytest.raises(ValueError, match="the snapshot does not fit the model: missing"):
        load_changing_state(two, {})
    assert spread_like(state["classifier.bias"], one.classifier.bias) is state["classifier.bias"]
    assert share(one.classifier.bias) is one.classifier.bias


def test_the_head_trains_first_on_shares_as_well():
    _, two = models()
    first = HeadFirst()
    first.bind(two, backbone_names(two, ClassifierTap(two)), 2)
    inputs, labels_B = tiny_batch("bert")

    class Begun:
        global_step = 0

    for step in range(3):
        Begun.global_step = step
        two(**inputs)  # as an evaluation does
        first.on_step_begin(None, Begun, None)
        two(**inputs, labels=labels_B).loss.backward()
        trained = {name for name, parameter in two.named_parameters() if parameter.grad is not None}
        first.on_step_end(None, Begun, None)
        two.zero_grad()
        below = {name for name in dict(two.named_parameters()) if name.startswith("bert.") and "pooler" not in name}
        assert trained and bool(trained & below) == (step == 2)
        assert all(parameter.requires_grad for parameter in two.parameters())
