"""The robust losses: their published formulas, by hand, in float64.

Shape suffixes: B samples of the batch, C classes.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.weighting import (
    EarlyLearning,
    GeneralizedCrossEntropy,
    SymmetricCrossEntropy,
    WeightingBatch,
    get_weighting,
)


def batch(samples: int = 7, classes: int = 4, scale: float = 1.0) -> WeightingBatch:
    generator = torch.Generator().manual_seed(1)
    return WeightingBatch(
        scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64),
        torch.randn(samples, 3, generator=generator, dtype=torch.float64),
        torch.randint(classes, (samples,), generator=generator),
        torch.arange(samples) + 2,
    )


def given_probability(at: WeightingBatch) -> Tensor:
    return at.logits_BC.softmax(1)[torch.arange(len(at.labels_B)), at.labels_B]


def gradient(loss, at: WeightingBatch) -> Tensor:
    logits_BC = at.logits_BC.clone().requires_grad_()
    return torch.autograd.grad(loss(at.with_logits(logits_BC)), logits_BC)[0]


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalized_cross_entropy(q):
    at = batch()
    p_B = given_probability(at)
    torch.testing.assert_close(GeneralizedCrossEntropy(q).inner_loss(at), ((1 - p_B**q) / q).mean(), rtol=1e-12, atol=0)


def test_its_ends_are_cross_entropy_and_the_absolute_error():
    at = batch()
    near = GeneralizedCrossEntropy(1e-8).inner_loss(at)
    torch.testing.assert_close(near, F.cross_entropy(at.logits_BC, at.labels_B), rtol=1e-6, atol=0)
    far = GeneralizedCrossEntropy(1.0).inner_loss(at)
    torch.testing.assert_close(far, 1 - given_probability(at).mean(), rtol=1e-12, atol=0)


def test_symmetric_cross_entropy():
    at = batch()
    cross_entropy = F.cross_entropy(at.logits_BC, at.labels_B)
    # -sum_c p_c log(y_c), where log(0) is -4: 4 times the probability of the other classes
    reverse = 4 * (1 - given_probability(at)).mean()
    found = SymmetricCrossEntropy(alpha=0.1, beta=1.0).inner_loss(at)
    torch.testing.assert_close(found, 0.1 * cross_entropy + reverse, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [GeneralizedCrossEntropy(), SymmetricCrossEntropy()])
def test_weights_are_the_gradient_relative_to_cross_entropy(loss):
    at = batch()
    plain_BC = gradient(lambda b: F.cross_entropy(b.logits_BC, b.labels_B), at)
    expected_BC = loss.weights(at)[:, None] * plain_BC
    torch.testing.assert_close(gradient(loss.inner_loss, at), expected_BC, rtol=1e-10, atol=1e-15)


def test_early_learning_follows_its_two_equations():
    loss = EarlyLearning(num_labels=4, strength=3.0, momentum=0.7).double()
    loss.bind(12)
    at = batch()
    p_BC = at.logits_BC.softmax(1)
    assert p_BC.min() > 1e-4  # so that the clamp says nothing here
    for times in (1, 2):
        assert loss.prepare(at) is at
        target_BC = (1 - 0.7**times) * p_BC
        torch.testing.assert_close(loss.target_NC[2:9], target_BC, rtol=1e-12, atol=0)
        expected = F.cross_entropy(at.logits_BC, at.labels_B) + 3 * (1 - (p_BC * target_BC).sum(1)).log().mean()
        torch.testing.assert_close(loss.inner_loss(at), expected, rtol=1e-12, atol=0)
    assert not loss.target_NC[:2].any() and not loss.target_NC[9:].any()  # samples that were not seen
    torch.testing.assert_close(loss.weights(at), target_BC[torch.arange(7), at.labels_B], rtol=1e-12, atol=0)


def test_its_memory_is_no_part_of_the_gradient_and_is_saved():
    loss = EarlyLearning(num_labels=4).double()
    loss.bind(12)
    at = batch().with_logits(batch().logits_BC.clone().requires_grad_())
    loss.prepare(at)
    assert not loss.target_NC.requires_grad
    assert torch.equal(loss.state_dict()["target_NC"], loss.target_NC)


@pytest.mark.parametrize("name", ["gce", "sce", "elr"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_there_is_nothing_to_learn_and_no_number_breaks_it(name, scale):
    loss = get_weighting(name, num_labels=4, feature_size=3).double()
    loss.bind(12)
    at = loss.prepare(batch(scale=scale))
    assert not loss.learns and not list(loss.parameters())
    assert math.isfinite(loss.inner_loss(at))
    assert loss.loss_gradient(at).isfinite().all()


def test_bad_settings_say_what_they_must_be():
    with pytest.raises(ValueError, match="q must be in"):
        GeneralizedCrossEntropy(0.0)
    with pytest.raises(ValueError, match="log_zero stands for"):
        SymmetricCrossEntropy(log_zero=0.0)
    with pytest.raises(ValueError, match="momentum must be in"):
        EarlyLearning(3, momentum=1.0)
    with pytest.raises(ValueError, match="cannot train on a stream"):
        EarlyLearning(3).bind(None)
    loss = EarlyLearning(4).double()
    loss.bind(12)
    with pytest.raises(ValueError, match="index of each sample"):
        loss.prepare(WeightingBatch(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
