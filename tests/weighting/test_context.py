"""ContextNet: what it sees of a sample, and the margin.

Shape suffixes: B training batch, C classes, D features.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from hf_clidmu.weighting import ContextNet, WeightingBatch, label_margin


def build() -> ContextNet:
    torch.manual_seed(0)
    return ContextNet(num_labels=4, feature_size=6).double()


def batch(samples: int = 7) -> WeightingBatch:
    generator = torch.Generator().manual_seed(1)
    return WeightingBatch(
        torch.randn(samples, 4, generator=generator, dtype=torch.float64),
        torch.randn(samples, 6, generator=generator, dtype=torch.float64),
        torch.randint(4, (samples,), generator=generator),
    )


def test_weights_are_the_documented_formula():
    net, at = build(), batch()
    for i, weight in enumerate(net.raw_weights(at)):
        logits_C, label = at.logits_BC[i], int(at.labels_B[i])
        margin = logits_C[label] - max(logit for c, logit in enumerate(logits_C) if c != label)
        loss = -logits_C.log_softmax(0)[label]
        direction_D = at.features_BD[i] / at.features_BD[i].norm()
        context = torch.cat([direction_D, net.label_embedding.weight[label], torch.stack([loss, margin])])
        hidden = (net.hidden.weight @ context + net.hidden.bias).clamp(min=0)
        torch.testing.assert_close(weight, torch.sigmoid(net.output.weight[0] @ hidden + net.output.bias[0]))


def test_weights_lie_in_their_range():
    net, at = build(), batch(50)
    raw_B, weight_B = net.raw_weights(at), net.weights(at)
    assert bool(((raw_B > 0) & (raw_B < 1)).all()) and not weight_B.requires_grad
    torch.testing.assert_close(weight_B.mean(), torch.ones((), dtype=torch.float64))


def test_inputs_are_constants():
    net, at = build(), batch()
    at.logits_BC.requires_grad_()
    at.features_BD.requires_grad_()
    gradients = torch.autograd.grad(net.raw_weights(at).sum(), (at.logits_BC, at.features_BD), allow_unused=True)
    assert gradients == (None, None)
    weight_B1 = net.normalised_weights(at)[:, None].detach()
    want_BC = ((at.logits_BC.softmax(1) - F.one_hot(at.labels_B, 4)) * weight_B1).detach()
    torch.testing.assert_close(net.loss_gradient(at), want_BC, rtol=1e-12, atol=1e-16)


def test_the_same_loss_may_mean_different_things():
    net = build()
    logits_BC, labels_B = torch.eye(4, dtype=torch.float64), torch.arange(4)  # one loss, one margin
    same_BD = torch.ones(4, 6, dtype=torch.float64)
    by_class_B = net.raw_weights(WeightingBatch(logits_BC, same_BD, labels_B))
    assert float(by_class_B.detach().std()) > 1e-3
    at = WeightingBatch(logits_BC[[0, 0]], torch.stack([same_BD[0], -same_BD[0]]), labels_B[[0, 0]])
    one, other = net.raw_weights(at).tolist()
    assert abs(one - other) > 1e-3
    scaled = net.raw_weights(replace(at, features_BD=5 * at.features_BD))
    torch.testing.assert_close(scaled, net.raw_weights(at))  # their direction counts, not their length


def test_features_without_norm_or_of_another_precision():
    net, at = build(), batch()
    assert bool(net.raw_weights(replace(at, features_BD=torch.zeros(7, 6))).isfinite().all())
    assert net.float().raw_weights(replace(at, logits_BC=at.logits_BC.float())).dtype == torch.float32


def test_margin():
    logits_BC = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0], [-1.0, -2.0, -4.0]])
    assert label_margin(logits_BC, torch.tensor([0, 1, 0, 2])).tolist() == [1.0, -2.0, 0.0, -3.0]
    assert label_margin(torch.randn(3, 1), torch.zeros(3, dtype=torch.long)).tolist() == [0.0, 0.0, 0.0]
