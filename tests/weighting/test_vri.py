"""VRI: the rectifier, its randomness, its prior and KL.

Shape suffixes: B training batch, C classes, D features.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from hf_clidmu.weighting import VRI, WeightingBatch
from hf_clidmu.weighting.vri import INITIAL_MEAN


CLASSES, FEATURES = 4, 6


def build(kl_weight: float = 0.0) -> VRI:
    torch.manual_seed(0)
    return VRI(CLASSES, FEATURES, embedding_size=5, hidden_sizes=(8, 7, 6), kl_weight=kl_weight).double()


def batch(samples: int = 7, noise: bool = True) -> WeightingBatch:
    generator = torch.Generator().manual_seed(1)

    def normal(width: int):
        return torch.randn(samples, width, generator=generator, dtype=torch.float64)

    labels_B = torch.randint(CLASSES, (samples,), generator=generator)
    return WeightingBatch(normal(CLASSES), normal(FEATURES), labels_B, noise_BC=normal(CLASSES) if noise else None)


def test_shape_is_the_published_one():
    net = VRI(num_labels=10, feature_size=512)
    assert [layer.weight.shape for layer in net.trunk[::2]] == [(1024, 576), (512, 1024), (512, 512)]
    assert net.mean.weight.shape == net.log_variance.weight.shape == (10, 512)
    assert net.label_embedding.weight.shape == (10, 64)
    assert bool((net.mean.bias == INITIAL_MEAN).all()) and bool((net.log_variance.bias == 0).all())  # published: 0
    torch.testing.assert_close(net.mean.weight.std(), torch.tensor((2 / 522) ** 0.5), rtol=0.05, atol=0)  # Xavier


def test_rectifier_is_the_published_formula():
    net, at = build(), batch()
    mean_BC, log_variance_BC = net.posterior(at)
    for i in range(7):
        x = torch.cat([at.features_BD[i], net.label_embedding.weight[at.labels_B[i]]])
        for layer in net.trunk[::2]:
            x = torch.tanh(layer.weight @ x + layer.bias)
        torch.testing.assert_close(mean_BC[i], net.mean.weight @ x + net.mean.bias, rtol=1e-12, atol=1e-15)
        u = net.log_variance.weight @ x + net.log_variance.bias
        torch.testing.assert_close(log_variance_BC[i], u, rtol=1e-12, atol=1e-15)
    rectifier_BC = torch.sigmoid(mean_BC + torch.exp(log_variance_BC / 2) * at.noise_BC)
    torch.testing.assert_close(net.rectifier(at), rectifier_BC, rtol=1e-12, atol=0)
    want = F.cross_entropy(rectifier_BC * at.logits_BC, at.labels_B)
    torch.testing.assert_close(net.inner_loss(at), want, rtol=1e-12, atol=0)


def test_without_draws_the_rectifier_is_at_the_mean():
    net, at = build(), batch(noise=False)
    assert torch.equal(net.rectifier(at), net.posterior(at)[0].sigmoid())
    still = replace(at, noise_BC=torch.zeros_like(at.logits_BC))
    torch.testing.assert_close(net.rectifier(still), net.rectifier(at), rtol=1e-15, atol=0)


def test_randomness_comes_from_the_batch_alone():
    net, at = build(kl_weight=0.5), batch()
    tangent_BC = torch.ones_like(at.logits_BC)

    def outcomes():
        gradient_BC = net.loss_gradient(at)
        return net.inner_loss(at), gradient_BC, *net.hypergradient(at, gradient_BC, tangent_BC, 0.1), net.weights(at)

    before = torch.get_rng_state()
    first = outcomes()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = outcomes()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = replace(at, noise_BC=-at.noise_BC)
    assert not torch.equal(net.inner_loss(other), first[0])


def test_sampling_follows_the_generator():
    net, at = build(), batch(noise=False)
    before = torch.get_rng_state()
    one, two, other = (net.prepare(at, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.noise_BC, two.noise_BC) and not torch.equal(one.noise_BC, other.noise_BC)
    assert one.noise_BC.shape == (7, CLASSES) and one.noise_BC.dtype == torch.float64 and at.noise_BC is None
    assert not torch.equal(net.prepare(one, torch.Generator().manual_seed(6)).noise_BC, one.noise_BC)  # fresh ones


def test_draws_are_standard_normal():
    at = WeightingBatch(torch.zeros(5000, CLASSES), torch.zeros(5000, FEATURES), torch.zeros(5000, dtype=torch.long))
    noise_BC = build().prepare(at, torch.Generator().manual_seed(0)).noise_BC
    assert abs(float(noise_BC.mean())) < 0.03 and abs(float(noise_BC.std()) - 1) < 0.03


def test_weights_are_the_rectifier_of_the_given_label_at_the_mean():
    net, at = build(), batch()
    weight_B = net.weights(at)
    mean_BC, _ = net.posterior(at)
    want_B = torch.stack([mean_BC[i, at.labels_B[i]].sigmoid() for i in range(7)]).detach()
    torch.testing.assert_close(weight_B, want_B, rtol=1e-14, atol=0)
    assert bool(((weight_B > 0) & (weight_B < 1)).all()) and not weight_B.requires_grad


def test_a_meta_step_passes_the_network_twice():
    net, at, passes = build(), batch(), []
    net.configure_optimizer("adam", 0.1, 0.0)
    net.trunk.register_forward_hook(lambda *_: passes.append(1))
    net.learn(at, net.loss_gradient(at), torch.ones_like(at.logits_BC), 0.1)
    assert len(passes) == 1
    net.real_loss(at)
    assert len(passes) == 2


def test_what_is_precomputed_changes_nothing():
    net, at = build(), batch()
    ready = net.precompute(at)
    assert at.posterior is None and ready.posterior is not None
    assert torch.equal(net.inner_loss(ready), net.inner_loss(at))
    assert torch.equal(net.weights(ready), net.weights(at))


def test_features_get_no_gradient_and_logits_do():
    net, at = build(kl_weight=1.0), batch()
    at.features_BD.requires_grad_()
    at.logits_BC.requires_grad_()
    loss = net.inner_loss(at) + net.outer_penalty(at)
    gradient_BD, gradient_BC = torch.autograd.grad(loss, (at.features_BD, at.logits_BC), allow_unused=True)
    assert gradient_BD is None and float(gradient_BC.abs().max()) > 0


def test_kl_is_that_of_two_normals():
    net, at = build(kl_weight=0.25), batch()
    with torch.no_grad():  # far from one another
        net.log_variance.bias.normal_()
        net.mean.bias.normal_()
        net.label_embedding.weight.mul_(3)
    posterior, prior = (Normal(mean_BC, (u_BC / 2).exp()) for mean_BC, u_BC in (net.posterior(at), net.prior(at)))
    want = 0.25 * kl_divergence(posterior, prior).mean()
    assert float(want.detach()) > 1e-3
    torch.testing.assert_close(net.outer_penalty(at), want, rtol=1e-12, atol=0)


def test_kl_is_off_by_default_and_never_in_the_inner_loss():
    at = batch()
    assert build().outer_penalty(at) is None
    assert torch.equal(build(kl_weight=3.0).inner_loss(at), build().inner_loss(at))


def test_the_prior_sees_no_label():
    net, at = build(), batch()
    relabelled = replace(at, labels_B=(at.labels_B + 1) % CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(net.prior(at), net.prior(relabelled), strict=True))
    assert not torch.equal(net.posterior(at)[0], net.posterior(relabelled)[0])
    with torch.no_grad():
        net.label_embedding.weight.zero_()
    torch.testing.assert_close(net.posterior(at), net.prior(at))
    net.kl_weight = 1.0
    torch.testing.assert_close(net.outer_penalty(at), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_of_another_precision_are_welcome(dtype):
    net, at = build().to(torch.float32), batch()
    at = replace(at, logits_BC=at.logits_BC.float(), noise_BC=at.noise_BC.float(), features_BD=at.features_BD.to(dtype))
    assert net.inner_loss(at).dtype == torch.float32
    net.kl_weight = 1.0
    assert net.outer_penalty(at).dtype == torch.float32
