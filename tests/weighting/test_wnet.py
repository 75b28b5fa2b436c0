"""WNet: the weight of a label as a function of its loss.

Shape suffixes: B training batch, C classes, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.weighting import WeightingBatch, WNet


def build() -> WNet:
    torch.manual_seed(0)
    return WNet().double()


def batch(samples: int = 7, classes: int = 4) -> WeightingBatch:
    generator = torch.Generator().manual_seed(1)
    return WeightingBatch(
        torch.randn(samples, classes, generator=generator, dtype=torch.float64),
        torch.randn(samples, 3, generator=generator, dtype=torch.float64),
        torch.randint(classes, (samples,), generator=generator),
    )


def by_hand(net: WNet, at: WeightingBatch) -> Tensor:
    """The published formula, one sample at a time."""
    weights = []
    for logits_C, label in zip(at.logits_BC.detach(), at.labels_B, strict=True):
        loss = -logits_C.log_softmax(0)[label]
        hidden = (net.hidden.weight[:, 0] * loss + net.hidden.bias).clamp(min=0)
        weights.append(1 / (1 + torch.exp(-(net.output.weight[0] @ hidden + net.output.bias[0]))))
    return torch.stack(weights)


def test_shape_is_the_published_one():
    shapes = {name: tuple(p.shape) for name, p in WNet().named_parameters()}
    assert shapes == {"hidden.weight": (100, 1), "hidden.bias": (100,), "output.weight": (1, 100), "output.bias": (1,)}


def test_weights_are_the_published_formula():
    net, at = build(), batch()
    torch.testing.assert_close(net.raw_weights(at), by_hand(net, at), rtol=1e-12, atol=0)
    normalised_B = by_hand(net, at) / by_hand(net, at).sum()
    torch.testing.assert_close(net.weights(at), 7 * normalised_B.detach(), rtol=1e-12, atol=0)
    loss_B = F.cross_entropy(at.logits_BC, at.labels_B, reduction="none")
    torch.testing.assert_close(net.inner_loss(at), (normalised_B * loss_B).sum(), rtol=1e-12, atol=0)


def test_weights_lie_in_their_range():
    net, at = build(), batch(50)
    raw_B, weight_B = net.raw_weights(at), net.weights(at)
    assert bool(((raw_B > 0) & (raw_B < 1)).all())
    assert bool((weight_B > 0).all()) and not weight_B.requires_grad
    torch.testing.assert_close(weight_B.mean(), torch.ones((), dtype=torch.float64))


def test_loss_gradient_is_probability_less_label_times_weight():
    net, at = build(), batch()
    weight_B1 = net.normalised_weights(at)[:, None].detach()
    want_BC = (at.logits_BC.softmax(1) - F.one_hot(at.labels_B, 4)) * weight_B1
    torch.testing.assert_close(net.loss_gradient(at), want_BC, rtol=1e-12, atol=1e-16)


def test_the_weight_has_no_gradient_in_the_logits():
    at = batch()
    at.logits_BC.requires_grad_()
    (gradient_BC,) = torch.autograd.grad(build().raw_weights(at).sum(), at.logits_BC, allow_unused=True)
    assert gradient_BC is None


def test_equal_losses_weigh_the_same():
    net = build()
    at = WeightingBatch(torch.eye(4, dtype=torch.float64), torch.zeros(4, 3), torch.arange(4))
    torch.testing.assert_close(net.weights(at), torch.ones(4, dtype=torch.float64))


def test_huge_losses_do_no_harm():
    net, at = build().float(), batch()
    at = WeightingBatch(1e4 * at.logits_BC.float(), at.features_BD.float(), at.labels_B)
    assert bool(net.inner_loss(at).isfinite()) and bool(net.weights(at).isfinite().all())
    gradients = net.hypergradient(at, net.loss_gradient(at), torch.ones_like(at.logits_BC), 0.1)
    assert all(bool(g.isfinite().all()) for g in gradients)
