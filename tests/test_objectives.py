"""Objectives: values, labels, and the registry.

Shape suffixes: M samples of the meta batch, C classes, D features.
"""

import pytest
import torch
import torch.nn.functional as F

from hf_clidmu import objectives
from hf_clidmu.divergence import clid
from hf_clidmu.objectives import available_objectives, get_objective, register_objective


class Unreadable:
    """Labels that nobody may look at."""

    def __getattribute__(self, name):
        raise AssertionError(f"labels were read ({name})")


@pytest.fixture
def meta():
    generator = torch.Generator().manual_seed(0)
    features_MD = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    logits_MC = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return features_MD, logits_MC, torch.arange(9) % 4


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(objectives, "_BUILDERS", dict(objectives._BUILDERS))


def test_clid_passes_its_options_on(meta):
    features_MD, logits_MC, _ = meta
    logits_MC.requires_grad_()
    for temperature in (0.1, 0.5):
        for detach_normaliser in (True, False):
            got = get_objective("clid", temperature, detach_normaliser)(features_MD, logits_MC)
            want = clid(features_MD, logits_MC, temperature, detach_normaliser)
            assert torch.equal(got, want)
            assert torch.equal(*(torch.autograd.grad(value, logits_MC)[0] for value in (got, want)))
    assert torch.equal(get_objective("clid")(features_MD, logits_MC), clid(features_MD, logits_MC, 0.5, True))


def test_clid_never_reads_labels(meta):
    features_MD, logits_MC, _ = meta
    objective = get_objective("clid")
    assert not objective.needs_labels
    assert torch.equal(objective(features_MD, logits_MC, Unreadable()), objective(features_MD, logits_MC))


def test_cross_entropy_is_the_mean_over_samples(meta):
    features_MD, logits_MC, labels_M = meta
    value = get_objective("cross_entropy")(features_MD, logits_MC, labels_M)
    by_hand = -sum(logits_MC[i].log_softmax(0)[labels_M[i]] for i in range(9)) / 9
    torch.testing.assert_close(value, by_hand, rtol=1e-12, atol=0)


def test_mae_is_one_less_the_probability_of_the_label(meta):
    features_MD, logits_MC, labels_M = meta
    value = get_objective("mae")(features_MD, logits_MC, labels_M)
    by_hand = sum(1 - logits_MC[i].softmax(0)[labels_M[i]] for i in range(9)) / 9
    torch.testing.assert_close(value, by_hand, rtol=1e-12, atol=0)
    one_hot_MC = F.one_hot(labels_M, 4).double()
    absolute_error = (logits_MC.softmax(1) - one_hot_MC).abs().sum(1).mean() / 2
    torch.testing.assert_close(value, absolute_error, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["clid", "cross_entropy", "mae"])
def test_differentiable_in_the_logits_alone(meta, name):
    features_MD, logits_MC, labels_M = meta
    features_MD.requires_grad_()
    logits_MC.requires_grad_()
    value = get_objective(name)(features_MD, logits_MC, labels_M)
    gradient_MC, gradient_MD = torch.autograd.grad(value, (logits_MC, features_MD), allow_unused=True)
    assert value.ndim == 0 and bool(gradient_MC.isfinite().all()) and float(gradient_MC.abs().max()) > 0
    assert gradient_MD is None


@pytest.mark.parametrize("name", ["cross_entropy", "mae"])
def test_missing_labels_are_an_error_that_says_what_to_do(meta, name):
    objective = get_objective(name)
    assert objective.needs_labels
    with pytest.raises(ValueError, match=f"'{name}' compares predictions with labels.*objective='clid'"):
        objective(*meta[:2])


def test_unknown_name_lists_the_known_ones():
    assert available_objectives() == ["clid", "cross_entropy", "mae"]
    with pytest.raises(ValueError, match="unknown objective 'clud'; known: clid, cross_entropy, mae"):
        get_objective("clud")


def test_user_registers_an_objective_of_their_own(own_registry, meta):
    @register_objective("entropy")
    def entropy(temperature, **_):
        return lambda features_MD, logits_MC, labels_M: (temperature * torch.special.entr(logits_MC.softmax(1))).sum()

    assert "entropy" in available_objectives()
    objective = get_objective("entropy", temperature=2.0)
    assert objective.name == "entropy" and not objective.needs_labels
    features_MD, logits_MC, _ = meta
    want = 2 * torch.distributions.Categorical(logits=logits_MC).entropy().sum()
    torch.testing.assert_close(objective(features_MD, logits_MC, Unreadable()), want)


def test_user_objective_with_labels_gets_them(own_registry, meta):
    register_objective("spy", needs_labels=True)(lambda **_: lambda features_MD, logits_MC, labels_M: labels_M)
    features_MD, logits_MC, labels_M = meta
    assert get_objective("spy")(features_MD, logits_MC, labels_M) is labels_M
    with pytest.raises(ValueError, match="'spy'"):
        get_objective("spy")(features_MD, logits_MC)


def test_a_taken_name_is_an_error(own_registry):
    with pytest.raises(ValueError, match="'mae' is already registered"):
        register_objective("mae")(lambda **_: None)
    assert get_objective("mae").needs_labels


def test_the_registry_was_cleaned_up():
    assert available_objectives() == ["clid", "cross_entropy", "mae"]
