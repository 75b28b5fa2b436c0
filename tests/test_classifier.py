"""The tap on every architecture: features, logits, the last layer, and the tangents that rest on them."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from tiny_models import NUM_LABELS, TEXT, VISION, tiny_batch, tiny_classifier
from torch import nn
from torch.func import functional_call

from hf_clidmu.aside import private_buffers
from hf_clidmu.classifier import ClassifierTap, RandomState, find_classifier_module, forked_random_state
from hf_clidmu.lookahead import LookAhead, MetaBatch
from hf_clidmu.objectives import get_objective


ARCHITECTURES = TEXT + VISION
WITH_BATCH_STATISTICS = ("resnet", "timm:test_resnet", "timm:test_efficientnet")


def _loss_gradient(logits_BC, labels_B):
    logits_BC = logits_BC.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(logits_BC, labels_B), logits_BC)[0]


def _tangent(name, scope, tangent):
    """Logit tangent of one look-ahead on the model as a user has it: default attention, training mode, dropout."""
    model = tiny_classifier(name)
    inputs, labels_B = tiny_batch(name)
    meta = MetaBatch(tiny_batch(name, size=8, seed=3)[0], seed=5)
    tap = ClassifierTap(model)
    torch.manual_seed(11)
    output = tap.forward(model, inputs, remember_random_state=True)
    lookahead = LookAhead(tap, get_objective("clid"), scope, tangent)
    judgement = lookahead(model, inputs, output, _loss_gradient(output.logits_BC, labels_B), meta, step_size=0.1)
    return judgement.logit_tangent_BC, output, labels_B, model


def _eager(model):
    """The same model with attention that has a second derivative."""
    if hasattr(model, "timm_model"):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    else:
        model.set_attn_implementation("eager")
    return model


def _double_backward_tangent(name, step_size=0.1):
    """J u through the whole published look-ahead, by reverse mode twice on eager attention."""
    model = _eager(tiny_classifier(name))
    inputs, labels_B = tiny_batch(name)
    meta_inputs = tiny_batch(name, size=8, seed=3)[0]
    tap = ClassifierTap(model)
    parameters = dict(model.named_parameters())

    def logits(values, batch, state=None):
        with private_buffers(model):
            with tap.listening() as heard, nullcontext() if state is None else state.replayed():
                return tap.read(heard, functional_call(model, values, kwargs=batch).logits)

    torch.manual_seed(11)
    state = RandomState.now(torch.device("cpu"))
    logits_BC = logits(parameters, inputs, state).logits_BC
    gradient_BC = _loss_gradient(logits_BC, labels_B)
    free = {"allow_unused": True, "materialize_grads": True}
    steps = torch.autograd.grad(logits_BC, list(parameters.values()), gradient_BC, **free)
    ahead = {
        key: (value - step_size * step).detach().requires_grad_()
        for (key, value), step in zip(parameters.items(), steps, strict=True)
    }
    with forked_random_state(torch.device("cpu"), seed=5):
        # The look-ahead sends the meta batch through in two parts where samples do not depend on one another.
        rows = (slice(8),) if name in WITH_BATCH_STATISTICS else (slice(5), slice(5, 8))
        judged = [logits(ahead, {key: value[part] for key, value in meta_inputs.items()}) for part in rows]
    meta_features_MD, meta_logits_MC = (
        torch.cat([getattr(part, kind) for part in judged]) for kind in ("features_BD", "logits_BC")
    )
    meta_loss = get_objective("clid")(meta_features_MD, meta_logits_MC)
    directions = torch.autograd.grad(meta_loss, list(ahead.values()), **free)
    # Reverse mode is linear in its seed: differentiating it by the seed gives the forward derivative.
    logits_BC = logits(parameters, inputs, state).logits_BC
    seed_BC = torch.zeros_like(logits_BC, requires_grad=True)
    backward = torch.autograd.grad(logits_BC, list(parameters.values()), seed_BC, create_graph=True, **free)
    product = sum((b * u).sum() for b, u in zip(backward, directions, strict=True))
    return torch.autograd.grad(product, seed_BC)[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_times_last_layer_are_the_logits(name):
    model = tiny_classifier(name)
    tap = ClassifierTap(model)
    assert tap.num_labels == NUM_LABELS
    for training in (True, False):
        output = tap.forward(model.train(training), tiny_batch(name)[0])
        expected_BC = F.linear(output.features_BD, tap.weight_CD, tap.bias_C)
        torch.testing.assert_close(expected_BC, output.logits_BC, rtol=1e-5, atol=1e-6)
        assert output.features_BD.shape == (6, tap.feature_size)
        assert not output.features_BD.requires_grad
        assert output.logits_BC.requires_grad
        tap.check_linear(output)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tangent", ["finite_difference", "forward"])
def test_tangents_with_default_attention_equal_eager_double_backward(name, tangent):
    # Attention draws its dropout elsewhere in each implementation: compare where the masks are the same.
    expected_BC = _double_backward_tangent(name)
    actual_BC, output, labels_B, model = _tangent(name, "all", tangent)
    assert F.cosine_similarity(actual_BC.flatten(), expected_BC.flatten(), dim=0) > 0.999
    torch.testing.assert_close(actual_BC.norm(), expected_BC.norm(), rtol=2e-2, atol=0)
    # The graph of the real forward still holds after all those displacements.
    F.cross_entropy(output.logits_BC, labels_B).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_closed_form_equals_finite_difference_over_the_head(name):
    closed_BC = _tangent(name, "head", "closed_form")[0]
    difference_BC = _tangent(name, "head", "finite_difference")[0]
    assert F.cosine_similarity(closed_BC.flatten(), difference_BC.flatten(), dim=0) > 0.999


class TwoLayers(nn.Module):
    def __init__(self, last=None, scale=1.0):
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 8), last or nn.Linear(8, 3), scale

    def forward(self, x):
        return self.last(self.first(x).tanh()) * self.scale


def test_plain_module_without_config_uses_its_last_layer():
    tap = ClassifierTap(TwoLayers())
    assert (tap.head_name, tap.num_labels, tap.feature_size) == ("last", 3, 8)


def test_explicit_name_wins_and_a_wrong_one_lists_layers():
    model = TwoLayers()
    assert find_classifier_module(model, "first")[0] == "first"
    with pytest.raises(ValueError, match="classifier_module='middle'.*first, last"):
        find_classifier_module(model, "middle")


def test_hidden_size_equal_to_number_of_labels_is_not_ambiguous():
    model = tiny_classifier("bert", num_labels=16)
    assert ClassifierTap(model).head_name == "classifier"


def test_ambiguous_and_missing_heads_list_candidates():
    model = nn.ModuleDict({"left": nn.Linear(4, 3), "right": nn.Linear(4, 3)})
    model.config = type("Config", (), {"num_labels": 3})()
    with pytest.raises(ValueError, match="several could be meant.*left, right.*classifier_module"):
        find_classifier_module(model)
    model.config.num_labels = 7
    with pytest.raises(ValueError, match="none was found.*left, right"):
        find_classifier_module(model)


def test_regression_and_multi_label_models_are_refused():
    with pytest.raises(ValueError, match="num_labels=1 is a regression model"):
        ClassifierTap(tiny_classifier("bert", num_labels=1))
    model = tiny_classifier("bert")
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="multi_label_classification"):
        ClassifierTap(model)


def test_logits_changed_after_the_last_layer_are_refused_for_the_head_scope():
    model = TwoLayers(scale=3.0)
    tap = ClassifierTap(model)
    with pytest.raises(ValueError, match="not the output of its last layer 'last'.*scope='all'"):
        tap.check_linear(tap.forward(model, {"x": torch.randn(5, 4)}))


def test_half_precision_outputs_are_read_in_float32():
    model = TwoLayers().bfloat16()
    output = ClassifierTap(model).forward(model, {"x": torch.randn(5, 4, dtype=torch.bfloat16)})
    assert output.logits_BC.dtype == output.features_BD.dtype == torch.float32


def test_a_forward_that_misses_the_last_layer_names_the_argument():
    model = TwoLayers()
    tap = ClassifierTap(model)
    with pytest.raises(ValueError, match="did not pass through 'last'.*classifier_module"):
        tap.read([], torch.zeros(2, 3))


def test_random_state_replays_masks_and_leaves_the_present_state():
    state = RandomState.now(torch.device("cpu"))
    first = torch.rand(3)
    after = torch.get_rng_state()
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)
