"""Free weights against learning to reweight (arXiv 1803.09050) by automatic differentiation.

Shape suffixes: B training batch, M meta batch, C classes, D features.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.divergence import clid
from hf_clidmu.weighting import FreeWeighting, WeightingBatch


STEP_SIZE = 0.7


def learn(weighting: FreeWeighting, batch: WeightingBatch, tangent_BC: Tensor) -> WeightingBatch:
    return weighting.learn(batch, weighting.loss_gradient(batch), tangent_BC, STEP_SIZE)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearCase:
    """A linear head with its two batches."""

    def __init__(self, samples: int = 12, classes: int = 3):
        self.features_BD, self.meta_MD = normal(0, samples, 5), normal(1, 9, 5)
        self.labels_B, self.meta_labels_M = torch.arange(samples) % classes, torch.arange(9) % classes
        self.theta = [normal(2, classes, 5).requires_grad_(), normal(3, classes).requires_grad_()]

    def judge(self, theta: list[Tensor], objective: str) -> Tensor:
        logits_MC = F.linear(self.meta_MD, *theta)
        return clid(self.meta_MD, logits_MC) if objective == "clid" else F.cross_entropy(logits_MC, self.meta_labels_M)

    def batch(self) -> WeightingBatch:
        return WeightingBatch(F.linear(self.features_BD, *self.theta), self.features_BD, self.labels_B)

    def tangent(self, weighting: FreeWeighting, objective: str) -> Tensor:
        gradients = torch.autograd.grad(weighting.inner_loss(self.batch()), self.theta)
        ahead = [(t - STEP_SIZE * g).detach().requires_grad_() for t, g in zip(self.theta, gradients, strict=True)]
        return F.linear(self.features_BD, *torch.autograd.grad(self.judge(ahead, objective), ahead))

    def losses(self, q: float) -> Tensor:
        """(1 - p_y^q) / q of each sample; cross-entropy at q = 0."""
        given_B = F.linear(self.features_BD, *self.theta).softmax(1)[torch.arange(len(self.labels_B)), self.labels_B]
        return (1 - given_B**q) / q if q else -given_B.log()

    def learning_to_reweight(self, objective: str, q: float) -> Tensor:
        """max(-dM/d eps_i, 0) at uniform eps, through the unrolled step; scaled to sum one."""
        epsilon_B = torch.full((len(self.labels_B),), 1 / len(self.labels_B), dtype=torch.float64, requires_grad=True)
        gradients = torch.autograd.grad((epsilon_B * self.losses(q)).sum(), self.theta, create_graph=True)
        ahead = [t - STEP_SIZE * g for t, g in zip(self.theta, gradients, strict=True)]
        (gradient_B,) = torch.autograd.grad(self.judge(ahead, objective), epsilon_B)
        weight_B = (-gradient_B).clamp(min=0)
        return weight_B / weight_B.sum()


@pytest.mark.parametrize("q", [0.0, 0.4])
@pytest.mark.parametrize("objective", ["cross_entropy", "clid"])
def test_weights_equal_learning_to_reweight(objective, q):
    case, weighting = LinearCase(), FreeWeighting()
    weighting.loss_q = q
    batch = learn(weighting, case.batch(), case.tangent(weighting, objective))
    want_B = case.learning_to_reweight(objective, q)
    assert 0 < int((want_B == 0).sum()) < len(want_B)  # some are cut, some are not
    torch.testing.assert_close(weighting.normalised_weights(batch), want_B, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(weighting.weights(batch), 12 * want_B, rtol=1e-10, atol=1e-14)
    loss_B = case.losses(q)
    torch.testing.assert_close(weighting.real_loss(batch)[0], (want_B * loss_B).sum(), rtol=1e-10, atol=0)
    (gradient_CD,) = torch.autograd.grad(weighting.real_loss(batch)[0], case.theta[:1], retain_graph=True)
    (want_CD,) = torch.autograd.grad((want_B * loss_B).sum(), case.theta[:1])
    torch.testing.assert_close(gradient_CD, want_CD, rtol=1e-9, atol=1e-14)


def test_alignment_is_minus_the_change_of_the_objective():
    """Numerically: one more unit of weight on a sample moves M by -step size * alignment."""
    case, weighting = LinearCase(), FreeWeighting()
    alignment_B = weighting.alignment(case.batch(), case.tangent(weighting, "cross_entropy"))
    for i in (0, 5):
        values = []
        for sign in (1, -1):
            epsilon_B = torch.full((12,), 1 / 12, dtype=torch.float64)
            epsilon_B[i] += sign * 1e-5
            loss_B = F.cross_entropy(case.batch().logits_BC, case.labels_B, reduction="none")
            gradients = torch.autograd.grad((epsilon_B * loss_B).sum(), case.theta)
            ahead = [(t - STEP_SIZE * g).detach() for t, g in zip(case.theta, gradients, strict=True)]
            values.append(float(case.judge(ahead, "cross_entropy")))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(-STEP_SIZE * float(alignment_B[i]), rel=1e-6)


def test_a_batch_without_a_meta_step_has_uniform_weights():
    batch, weighting = LinearCase().batch(), FreeWeighting()
    assert torch.equal(weighting.weights(batch), torch.ones(12, dtype=torch.float64))
    want = F.cross_entropy(batch.logits_BC, batch.labels_B)
    torch.testing.assert_close(weighting.inner_loss(batch), want, rtol=1e-14, atol=0)


def test_when_no_sample_helps_there_is_no_loss_and_no_nan():
    case, weighting = LinearCase(), FreeWeighting()
    batch = case.batch()
    against_BC = F.one_hot(batch.labels_B, 3).double()  # following the objective raises each given label's logit
    assert bool((weighting.alignment(batch, against_BC) < 0).all())
    batch = learn(weighting, batch, against_BC)
    assert bool((weighting.weights(batch) == 0).all())
    loss = weighting.real_loss(batch)[0]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(bool((t.grad == 0).all()) for t in case.theta)


def test_nothing_is_kept_from_one_batch_to_the_next():
    case, weighting = LinearCase(), FreeWeighting()
    weighting.configure_optimizer("adam", 0.1, 0.0)
    given = case.batch()
    learned = learn(weighting, given, normal(9, 12, 3))
    assert given.weight_B is None and not learned.weight_B.requires_grad
    assert not list(weighting.parameters()) and not weighting.state_dict()
    assert torch.equal(weighting.weights(given), torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize(("samples", "classes"), [(1, 3), (4, 1), (1, 1)])
def test_one_sample_or_one_class(samples, classes):
    case, weighting = LinearCase(samples, classes), FreeWeighting()
    case.meta_labels_M.zero_()
    batch = learn(weighting, case.batch(), case.tangent(weighting, "cross_entropy"))
    weight_B = weighting.weights(batch)
    assert bool(((weight_B >= 0) & weight_B.isfinite()).all()) and bool(weighting.real_loss(batch)[0].isfinite())
    if classes == 1:  # a certain prediction: no sample can help
        assert bool((weight_B == 0).all())


def test_tiny_tangents_do_not_vanish_in_the_scale():
    case, weighting = LinearCase(), FreeWeighting()
    tangent_BC = case.tangent(weighting, "cross_entropy")
    batch = replace(case.batch(), logits_BC=case.batch().logits_BC.float())
    plain, tiny = (learn(weighting, batch, (scale * tangent_BC).float()).weight_B for scale in (1.0, 2.0**-60))
    plain_B, tiny_B = (weighting.weights(replace(batch, weight_B=weight_B)) for weight_B in (plain, tiny))
    torch.testing.assert_close(tiny_B, plain_B)
