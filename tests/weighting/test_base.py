"""What every weighting shares: the hypergradient against numeric differences, `learn`, the real loss, the registry.

The classifier here is a linear head, `z = h W^T + b`, so that the logit tangent is `h U_W^T + U_b` with U the
objective's gradient at the looked-ahead head: nothing of the look-ahead room takes part.

Shape suffixes: B training batch, M meta batch, C classes, D features.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu import weighting as registry
from hf_clidmu.divergence import clid
from hf_clidmu.weighting import (
    VRI,
    ContextNet,
    FreeWeighting,
    SampleWeighting,
    Weighting,
    WeightingBatch,
    WNet,
    available_weightings,
    get_weighting,
    register_weighting,
)


CLASSES, FEATURES, STEP_SIZE = 3, 4, 0.7

BUILDERS: dict[str, Callable[[], Weighting]] = {
    "wnet": lambda: WNet(hidden_size=5),
    "vri": lambda: VRI(CLASSES, FEATURES, embedding_size=3, hidden_sizes=(5, 4, 4)),
    "vri_kl": lambda: VRI(CLASSES, FEATURES, embedding_size=3, hidden_sizes=(5, 4, 4), kl_weight=0.3),
    "context": lambda: ContextNet(CLASSES, FEATURES, embedding_size=3, hidden_size=5),
}


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


def with_q(weighting: Weighting) -> Weighting:
    weighting.loss_q = 0.4
    return weighting


BUILDERS |= {f"{name}, q": lambda make=make: with_q(make()) for name, make in list(BUILDERS.items())}


def build(name: str) -> Weighting:
    torch.manual_seed(0)
    return BUILDERS[name]().double()


class Bilevel:
    """A linear head, a training batch, a meta batch, the objective at the looked-ahead head as a function of phi."""

    def __init__(self, objective: str = "cross_entropy", samples: int = 6, classes: int = CLASSES):
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.features_BD, self.meta_MD = normal(samples, FEATURES), normal(8, FEATURES)
        self.labels_B = torch.randint(classes, (samples,), generator=generator)
        self.meta_labels_M = torch.randint(classes, (8,), generator=generator)
        self.theta = [normal(classes, FEATURES), normal(classes)]
        self.noise_BC = normal(samples, classes)
        self.objective = objective

    def batch(self, theta: list[Tensor] | None = None) -> WeightingBatch:
        logits_BC = F.linear(self.features_BD, *(self.theta if theta is None else theta))
        return WeightingBatch(logits_BC, self.features_BD, self.labels_B, noise_BC=self.noise_BC)

    def ahead(self, weighting: Weighting) -> list[Tensor]:
        """theta+, from the inner loss alone."""
        theta = [tensor.clone().requires_grad_() for tensor in self.theta]
        gradients = torch.autograd.grad(weighting.inner_loss(self.batch(theta)), theta)
        return [tensor.detach() - STEP_SIZE * g for tensor, g in zip(theta, gradients, strict=True)]

    def judge(self, theta: list[Tensor]) -> Tensor:
        logits_MC = F.linear(self.meta_MD, *theta)
        if self.objective == "clid":
            # a stopped gradient has no numeric difference, so the normaliser's is let through here
            return clid(self.meta_MD, logits_MC, detach_normaliser=False)
        return F.cross_entropy(logits_MC, self.meta_labels_M)

    def outer(self, weighting: Weighting) -> float:
        """M(theta+(phi)) and the penalty."""
        penalty = weighting.outer_penalty(self.batch())
        return float(self.judge(self.ahead(weighting)).detach()) + (0.0 if penalty is None else float(penalty.detach()))

    def logit_tangent(self, weighting: Weighting) -> Tensor:
        ahead = [tensor.requires_grad_() for tensor in self.ahead(weighting)]
        return F.linear(self.features_BD, *torch.autograd.grad(self.judge(ahead), ahead))

    def any_tangent(self) -> Tensor:
        shape = len(self.labels_B), len(self.theta[1])
        return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@torch.no_grad()
def numeric_hypergradient(bilevel: Bilevel, weighting: Weighting, epsilon: float = 1e-5) -> list[Tensor]:
    """Central differences over every entry of phi."""
    gradients = []
    for parameter in weighting.parameters():
        flat, gradient = parameter.view(-1), torch.zeros_like(parameter).view(-1)
        for i in range(len(flat)):
            original, outer = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = original + sign * epsilon
                with torch.enable_grad():
                    outer.append(bilevel.outer(weighting))
            flat[i] = original
            gradient[i] = (outer[0] - outer[1]) / (2 * epsilon)
        gradients.append(gradient.view_as(parameter))
    return gradients


def hypergradient(weighting: Weighting, batch: WeightingBatch, tangent_BC: Tensor, size: float = STEP_SIZE):
    return weighting.hypergradient(batch, weighting.loss_gradient(batch), tangent_BC, size)


def learn(weighting: Weighting, batch: WeightingBatch, tangent_BC: Tensor, *average: Callable) -> WeightingBatch:
    return weighting.learn(batch, weighting.loss_gradient(batch), tangent_BC, STEP_SIZE, *average)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# --- the hypergradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["cross_entropy", "clid"])
@pytest.mark.parametrize("name", BUILDERS)
def test_hypergradient_equals_numeric_differences_of_the_bilevel_objective(name, objective):
    bilevel, weighting = Bilevel(objective), build(name)
    got = hypergradient(weighting, bilevel.batch(), bilevel.logit_tangent(weighting))
    want = numeric_hypergradient(bilevel, weighting)
    assert [g.shape for g in got] == [p.shape for p in weighting.parameters()]
    assert float(flat(want).norm()) > 1e-5
    assert relative_error(flat(got), flat(want)) <= 1e-6


def test_the_penalty_alone_has_its_own_gradient():
    bilevel, weighting = Bilevel(), build("vri_kl")
    still_BC = torch.zeros(6, CLASSES, dtype=torch.float64)
    got = hypergradient(weighting, bilevel.batch(), still_BC)
    penalty = weighting.outer_penalty(bilevel.batch())
    want = torch.autograd.grad(penalty, list(weighting.parameters()), materialize_grads=True)
    torch.testing.assert_close(got, list(want), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["wnet", "vri", "context"])
def test_hypergradient_is_linear_in_step_size_and_tangent(name):
    bilevel, weighting = Bilevel(), build(name)
    tangent_BC = bilevel.logit_tangent(weighting)
    once = flat(hypergradient(weighting, bilevel.batch(), tangent_BC))
    assert (
        relative_error(flat(hypergradient(weighting, bilevel.batch(), 3 * tangent_BC, 2 * STEP_SIZE)), 6 * once) < 1e-12
    )
    nothing = flat(hypergradient(weighting, bilevel.batch(), torch.zeros_like(tangent_BC)))
    assert bool((nothing == 0).all())


@pytest.mark.parametrize("name", BUILDERS)
def test_hypergradient_touches_neither_gradients_nor_the_classifier(name):
    bilevel, weighting = Bilevel(), build(name)
    theta = [tensor.clone().requires_grad_() for tensor in bilevel.theta]
    batch = bilevel.batch(theta)
    with torch.no_grad():  # as a trainer may call it
        hypergradient(weighting, batch, bilevel.any_tangent())
    assert all(p.grad is None for p in [*weighting.parameters(), *theta])
    batch.logits_BC.sum().backward()  # the graph is still there


@pytest.mark.parametrize("name", ["wnet", "vri", "context"])
def test_autocast_does_not_reach_the_hypergradient(name):
    bilevel, weighting = Bilevel(), build(name).float()
    batch = bilevel.batch()
    batch = replace(
        batch,
        logits_BC=batch.logits_BC.float(),
        features_BD=batch.features_BD.float(),
        noise_BC=batch.noise_BC.float(),
    )
    tangent_BC = bilevel.any_tangent().float()
    want, gradient_BC = hypergradient(weighting, batch, tangent_BC), weighting.loss_gradient(batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = hypergradient(weighting, batch, tangent_BC)
        assert torch.equal(weighting.loss_gradient(batch), gradient_BC)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# --- learn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_learn_is_one_step_of_sgd_on_the_hypergradient(name):
    bilevel, weighting = Bilevel(), build(name)
    weighting.configure_optimizer("sgd", 0.1, 0.0)
    batch, tangent_BC = bilevel.batch(), bilevel.logit_tangent(weighting)
    before = [p.detach().clone() for p in weighting.parameters()]
    gradients = hypergradient(weighting, batch, tangent_BC)
    assert learn(weighting, batch, tangent_BC) is batch
    want = [p - 0.1 * g for p, g in zip(before, gradients, strict=True)]
    torch.testing.assert_close([p.detach() for p in weighting.parameters()], want, rtol=1e-14, atol=1e-17)
    assert all(p.grad is None and p.requires_grad for p in weighting.parameters())


def test_learn_descends_the_bilevel_objective():
    for name in BUILDERS:
        bilevel, weighting = Bilevel(), build(name)
        weighting.configure_optimizer("sgd", 0.05, 0.0)
        before = bilevel.outer(weighting)
        for _ in range(3):
            learn(weighting, bilevel.batch(), bilevel.logit_tangent(weighting))
        assert bilevel.outer(weighting) < before


def test_learn_applies_the_average_over_processes():
    bilevel, seen = Bilevel(), []

    def average(tensors: list[Tensor]) -> list[Tensor]:
        seen.append([tensor.clone() for tensor in tensors])
        return [tensor / 4 for tensor in tensors]

    weighting = build("wnet")
    weighting.configure_optimizer("sgd", 0.1, 0.0)
    tangent_BC = bilevel.logit_tangent(weighting)
    before = [p.detach().clone() for p in weighting.parameters()]
    gradients = hypergradient(weighting, bilevel.batch(), tangent_BC)
    learn(weighting, bilevel.batch(), tangent_BC, average)
    assert len(seen) == 1 and all(torch.equal(a, b) for a, b in zip(seen[0], gradients, strict=True))
    want = [p - 0.1 * g / 4 for p, g in zip(before, gradients, strict=True)]
    torch.testing.assert_close([p.detach() for p in weighting.parameters()], want, rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_optimiser_by_name(name, kind):
    weighting = build("wnet")
    weighting.configure_optimizer(name, 0.25, 0.125)
    assert type(weighting.optimizer) is kind
    assert weighting.optimizer.defaults["lr"] == 0.25 and weighting.optimizer.defaults["weight_decay"] == 0.125
    assert sum(len(group["params"]) for group in weighting.optimizer.param_groups) == 4


def test_learning_errors():
    bilevel, weighting = Bilevel(), build("wnet")
    with pytest.raises(RuntimeError, match="configure_optimizer"):
        learn(weighting, bilevel.batch(), bilevel.any_tangent())
    with pytest.raises(ValueError, match="'adam' or 'sgd', got 'lion'"):
        weighting.configure_optimizer("lion", 0.1, 0.0)
    free = FreeWeighting()
    free.configure_optimizer("adam", 0.1, 0.0)
    assert free.optimizer is None


# --- the real loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_real_loss_equals_the_inner_loss_and_leaves_nothing_on_phi(name):
    bilevel, weighting = Bilevel(), build(name)
    theta = [tensor.clone().requires_grad_() for tensor in bilevel.theta]
    real, weight_B = weighting.real_loss(bilevel.batch(theta))
    assert torch.equal(real, weighting.inner_loss(bilevel.batch(theta)))
    assert torch.equal(weight_B, weighting.weights(bilevel.batch(theta))) and not weight_B.requires_grad
    real.backward()
    assert all(p.grad is None and p.requires_grad for p in weighting.parameters())
    want = torch.autograd.grad(weighting.inner_loss(bilevel.batch(theta)), theta)
    assert all(torch.equal(t.grad, g) for t, g in zip(theta, want, strict=True))


def test_real_loss_gives_phi_back_after_an_error():
    weighting, bilevel = build("vri"), Bilevel()
    with pytest.raises(IndexError):
        weighting.real_loss(replace(bilevel.batch(), labels_B=bilevel.labels_B + 100))
    assert all(p.requires_grad for p in weighting.parameters())


def test_a_frozen_part_of_the_weighting_stays_frozen():
    bilevel, weighting, whole = Bilevel(), build("vri"), build("vri")
    weighting.label_embedding.requires_grad_(False)
    weighting.configure_optimizer("adam", 0.1, 0.5)
    before = weighting.label_embedding.weight.clone()
    tangent_BC = bilevel.any_tangent()
    weighting.loss_gradient(bilevel.batch())
    assert not weighting.label_embedding.weight.requires_grad and weighting.mean.weight.requires_grad
    got = hypergradient(weighting, bilevel.batch(), tangent_BC)
    want = hypergradient(whole, bilevel.batch(), tangent_BC)
    names = [name for name, _ in whole.named_parameters()]
    want = [g for name, g in zip(names, want, strict=True) if name != "label_embedding.weight"]
    torch.testing.assert_close(got, want)
    learn(weighting, bilevel.batch(), tangent_BC)
    assert torch.equal(weighting.label_embedding.weight, before)
    assert not torch.equal(weighting.mean.weight, whole.mean.weight)


@pytest.mark.parametrize("name", BUILDERS)
def test_loss_gradient_is_the_inner_loss_by_its_logits(name):
    bilevel, weighting = Bilevel(), build(name)
    logits_BC = bilevel.batch().logits_BC.requires_grad_()
    (want_BC,) = torch.autograd.grad(weighting.inner_loss(bilevel.batch().with_logits(logits_BC)), logits_BC)
    theta = [tensor.clone().requires_grad_() for tensor in bilevel.theta]
    with torch.no_grad():
        got_BC = weighting.loss_gradient(bilevel.batch(theta))
    assert torch.equal(got_BC, want_BC)
    # Attached to phi, for the hypergradient, and not to the classifier.
    reached = torch.autograd.grad(got_BC.square().sum(), [*weighting.parameters(), *theta], allow_unused=True)
    assert all(gradient is not None for gradient in reached[:-2]) and reached[-2:] == (None, None)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("samples", "classes"), [(1, CLASSES), (5, 1), (1, 1)])
def test_one_sample_or_one_class(name, samples, classes):
    torch.manual_seed(0)
    weighting = {
        "wnet": lambda: WNet(3),
        "vri": lambda: VRI(classes, FEATURES, hidden_sizes=(4, 4, 4)),
        "vri_kl": lambda: VRI(classes, FEATURES, hidden_sizes=(4, 4, 4), kl_weight=1.0),
        "context": lambda: ContextNet(classes, FEATURES),
    }[name.removesuffix(", q")]().double()
    weighting.loss_q = build(name).loss_q
    weighting.configure_optimizer("adam", 0.1, 0.0)
    bilevel = Bilevel(samples=samples, classes=classes)
    batch = learn(weighting, bilevel.batch(), bilevel.any_tangent())
    assert bool(weighting.real_loss(batch)[0].isfinite())
    assert bool(weighting.loss_gradient(batch).isfinite().all())
    assert weighting.weights(batch).shape == (samples,) and bool(weighting.weights(batch).isfinite().all())
    assert all(bool(p.isfinite().all()) for p in weighting.parameters())


class Own(Weighting):
    """No more than what a weighting must have: a temperature of the loss."""

    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        return F.cross_entropy(self.sharpness * batch.logits_BC, batch.labels_B)

    def weights(self, batch: WeightingBatch) -> Tensor:  # attached to all there is
        return self.sharpness * batch.logits_BC.sum(dim=1)


def test_a_loss_and_weights_are_enough():
    bilevel, weighting = Bilevel(), Own()
    tangent_BC = bilevel.logit_tangent(weighting)
    want = numeric_hypergradient(bilevel, weighting)
    assert relative_error(flat(hypergradient(weighting, bilevel.batch(), tangent_BC)), flat(want)) <= 1e-6
    weighting.configure_optimizer("sgd", 0.1, 0.0)
    learn(weighting, bilevel.batch(), tangent_BC)
    loss, weight_B = weighting.real_loss(bilevel.batch([tensor.clone().requires_grad_() for tensor in bilevel.theta]))
    loss.backward()
    assert weighting.sharpness.grad is None and not weight_B.requires_grad


# --- one number per sample -------------------------------------------------------------------------------------------


class Given(SampleWeighting):
    """The weights that the batch carries."""

    def raw_weights(self, batch: WeightingBatch) -> Tensor:
        return batch.weight_B


def test_sample_weights_are_scaled_to_sum_one_in_the_loss_and_to_mean_one_in_the_record():
    bilevel = Bilevel()
    weight_B = torch.tensor([0.0, 1.0, 3.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    batch = replace(bilevel.batch(), weight_B=weight_B)
    loss_B = F.cross_entropy(batch.logits_BC, batch.labels_B, reduction="none")
    torch.testing.assert_close(Given().inner_loss(batch), (weight_B / 5 * loss_B).sum())
    torch.testing.assert_close(Given().weights(batch), weight_B / 5 * 6)
    # on any scale
    torch.testing.assert_close(Given().inner_loss(replace(batch, weight_B=1e-9 * weight_B)), Given().inner_loss(batch))


def test_a_batch_without_any_weight_has_no_loss():
    batch = replace(Bilevel().batch(), weight_B=torch.zeros(6, dtype=torch.float64))
    assert float(Given().inner_loss(batch)) == 0
    assert bool((Given().weights(batch) == 0).all())
    assert bool((Given().loss_gradient(batch) == 0).all())


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_registry_builds_by_name():
    assert available_weightings() == ["context", "elr", "free", "gce", "none", "sce", "vri", "wnet"]
    kinds = {"wnet": WNet, "vri": VRI, "context": ContextNet, "free": FreeWeighting}
    for name, kind in kinds.items():
        assert type(get_weighting(name, num_labels=3, feature_size=5)) is kind
    assert get_weighting("vri", 3, 5, kl_weight=0.25).kl_weight == 0.25
    assert get_weighting("vri", 3, 5).kl_weight == 0
    assert get_weighting("wnet", 3, 5, loss_q=0.25).loss_q == 0.25
    assert get_weighting("sce", 3, 5, loss_q=0.25).loss_q == 0  # a fixed rule has a loss of its own


def test_registry_errors_list_the_known_names():
    with pytest.raises(
        ValueError, match="unknown weighting 'wnot'; known: context, elr, free, gce, none, sce, vri, wnet"
    ):
        get_weighting("wnot", 3, 5)
    with pytest.raises(ValueError, match="'vri' is already registered"):
        register_weighting("vri")(lambda **_: WNet())
    with pytest.raises(ValueError, match="'none' is already registered"):
        register_weighting("none")(lambda **_: WNet())


def test_user_registers_a_weighting_of_their_own(own_registry):
    @register_weighting("mine")
    def mine(num_labels: int, feature_size: int, kl_weight: float) -> Weighting:
        return WNet(hidden_size=num_labels + feature_size)

    assert "mine" in available_weightings()
    assert get_weighting("mine", 3, 5).hidden.out_features == 8


def test_the_registry_was_cleaned_up():
    assert "mine" not in available_weightings()


def test_a_weighting_sees_the_batch_it_was_given():
    batch = Bilevel().batch()
    other = batch.with_logits(torch.zeros_like(batch.logits_BC))
    assert bool((other.logits_BC == 0).all()) and other.labels_B is batch.labels_B and other.noise_BC is batch.noise_BC
    with pytest.raises(AttributeError):
        batch.labels_B = None
    assert build("wnet").prepare(batch) is batch and build("wnet").outer_penalty(batch) is None
