"""The look-ahead against the oracles, against double backward, and against its promise to change nothing.

Shape suffixes: B training batch, M meta batch, C classes, D features.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from hf_clidmu.aside import private_buffers, without_side_effects
from hf_clidmu.classifier import ClassifierOutput, ClassifierTap
from hf_clidmu.lookahead import Judgement, LookAhead, MetaBatch, _apart
from hf_clidmu.objectives import get_objective
from hf_clidmu.sharding import Wholes
from hf_clidmu.weighting import VRI, Weighting, WeightingBatch, WNet


STEP_SIZE = 0.3
CLASSES = 4


def relative_error(got: Tensor | list[Tensor], want: Tensor | list[Tensor]) -> float:
    """Of one tensor, or of a list of tensors taken as one vector."""
    got, want = (
        torch.cat([tensor.detach().flatten() for tensor in ([side] if isinstance(side, Tensor) else side)])
        for side in (got, want)
    )
    return float((got - want).norm() / want.norm())


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- models ----------------------------------------------------------------------------------------------------------


class TanhNet(nn.Module):
    """The oracle's network."""

    def __init__(self, inputs: int = 12, hidden: int = 20, classes: int = 5):
        super().__init__()
        self.l1, self.l2, self.linear = (
            nn.Linear(inputs, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.l2(torch.tanh(self.l1(x)))))


class Fragile(nn.Module):
    """Passes its input on; raises on one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.raises_on = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.raises_on:
            raise ArithmeticError(f"call {self.calls}")
        return x


class Net(nn.Module):
    """Batch normalisation, dropout, and a head with or without bias, or as a 1x1 convolution."""

    def __init__(self, head: str = "linear", dropout: float = 0.0, tied: bool = False, checkpointed: bool = False):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        if tied:
            self.second.weight = self.first.weight
        self.norm, self.dropout, self.fragile = nn.BatchNorm1d(6), nn.Dropout(dropout), Fragile()
        self.checkpointed = checkpointed
        self.classifier = {
            "linear": lambda: nn.Linear(6, CLASSES),
            "no_bias": lambda: nn.Linear(6, CLASSES, bias=False),
            "conv": lambda: nn.Conv2d(6, CLASSES, 1),
        }[head]()

    def body(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.tanh(self.norm(self.first(x))))
        return self.dropout(torch.tanh(self.fragile(self.second(x))))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        if isinstance(self.classifier, nn.Conv2d):
            return {"logits": self.classifier(x[:, :, None, None]).flatten(1)}
        return {"logits": self.classifier(x)}


class Attention(nn.Module):
    """One layer of PyTorch's fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.classifier = nn.Linear(6, 18), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.classifier(torch.tanh(mixed.mean(dim=1)))


def build(**options: Any) -> Net:
    torch.manual_seed(0)
    net = Net(**options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


class Case:
    """A model, a weighting, both batches; one look-ahead on them in any mode."""

    def __init__(self, model: nn.Module, weighting: Weighting | None = None, objective: str = "clid"):
        torch.manual_seed(1)
        self.model, self.tap, self.objective = model, ClassifierTap(model), get_objective(objective)
        self.weighting = WNet(8).double() if weighting is None else weighting
        shape = (5, 6) if isinstance(model, Attention) else (6,)
        self.inputs, self.meta_inputs = {"x": normal(5, 10, *shape)}, {"x": normal(6, 14, *shape)}
        self.labels_B, self.labels_M = torch.arange(10) % CLASSES, torch.arange(14) % CLASSES
        self.noise_BC, self.seed = normal(7, 10, CLASSES), 123

    def meta(self, **changes: Any) -> MetaBatch:
        return MetaBatch(**{"inputs": self.meta_inputs, "labels_M": self.labels_M, "seed": self.seed} | changes)

    def forward(self) -> tuple[ClassifierOutput, WeightingBatch]:
        output = self.tap.forward(self.model, self.inputs, remember_random_state=True)
        return output, WeightingBatch(output.logits_BC, output.features_BD, self.labels_B, noise_BC=self.noise_BC)

    def look(
        self,
        scope: str,
        tangent: str,
        meta: MetaBatch | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        step_size: float = STEP_SIZE,
        **options: Any,
    ) -> tuple[Judgement, list[Tensor]]:
        """The judgement and the hypergradient."""
        lookahead = LookAhead(self.tap, self.objective, scope, tangent, **options)
        output, batch = self.forward()
        gradient_BC, meta = self.weighting.loss_gradient(batch), self.meta() if meta is None else meta
        judgement = lookahead(self.model, self.inputs, output, gradient_BC.detach(), meta, step_size, optimizer)
        return judgement, self.weighting.hypergradient(batch, gradient_BC, judgement.logit_tangent_BC, step_size)

    def double_backward(
        self,
        names: Callable[[str], bool] = lambda name: True,
        meta: MetaBatch | None = None,
        diagonal: Mapping[str, Tensor] | None = None,
        lookahead: bool = True,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Meta loss, logit tangent and hypergradient by differentiating twice; shares nothing with the look-ahead.

        Without activation checkpointing, whose second forward would not see the parameters of `functional_call`.

        The tangent is read off as well: `d/dg <d<z(theta), g>/dtheta, Du>` is `J_theta z(theta) Du`.
        """
        meta = self.meta() if meta is None else meta
        parameters = dict(self.model.named_parameters())
        theta = {
            name: p.detach().clone().requires_grad_()
            for name, p in parameters.items()
            if p.requires_grad and names(name)
        }
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        heard: list[Tensor] = []

        def run(values: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            with sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
                logits = functional_call(self.model, {**buffers, **values}, kwargs=dict(inputs))
            logits = logits["logits"] if isinstance(logits, dict) else logits
            return logits, heard[-1].detach().flatten(1)

        handle = self.tap.head.register_forward_hook(lambda _, args, output: heard.append(args[0]))
        try:
            logits_BC, features_BD = run(theta, self.inputs)
            with torch.random.fork_rng(devices=[]):
                batch = WeightingBatch(logits_BC, features_BD, self.labels_B, noise_BC=self.noise_BC)
                gradients = torch.autograd.grad(
                    self.weighting.inner_loss(batch), list(theta.values()), create_graph=True, materialize_grads=True
                )
                scale = dict.fromkeys(theta, 1.0) if diagonal is None else diagonal
                ahead = {
                    name: t - (STEP_SIZE if lookahead else 0.0) * scale[name] * g
                    for (name, t), g in zip(theta.items(), gradients, strict=True)
                }
                if meta.inputs is None:  # the running batch, its features constant
                    weight_CD = ahead[self.tap.head_name + ".weight"].flatten(1)
                    meta_logits_MC = F.linear(features_BD, weight_CD, ahead.get(self.tap.head_name + ".bias"))
                    meta_features_MD = features_BD
                else:
                    torch.manual_seed(meta.seed)
                    meta_logits_MC, meta_features_MD = run(ahead, meta.inputs)
                if meta.judge_features_MD is not None:
                    meta_features_MD = meta.judge_features_MD
                meta_loss = self.objective(meta_features_MD, meta_logits_MC, meta.labels_M)
                phi = list(self.weighting.parameters())
                hypergradient = (
                    list(torch.autograd.grad(meta_loss, phi, retain_graph=True))
                    if lookahead
                    else [p.detach() for p in phi]
                )
                directions = torch.autograd.grad(
                    meta_loss, list(ahead.values()), retain_graph=True, materialize_grads=True
                )
            anything_BC = torch.ones_like(logits_BC, requires_grad=True)
            pulled = torch.autograd.grad(
                logits_BC, list(theta.values()), anything_BC, create_graph=True, materialize_grads=True
            )
            moved = sum((g * scale[name] * u).sum() for name, g, u in zip(theta, pulled, directions, strict=True))
            (tangent_BC,) = torch.autograd.grad(moved, anything_BC)
        finally:
            handle.remove()
        return meta_loss.detach(), tangent_BC, hypergradient


def in_head(name: str) -> bool:
    return name.startswith("classifier.")


def agree(got: tuple[Judgement, list[Tensor]], want: tuple[Tensor, Tensor, list[Tensor]], tolerance: float) -> None:
    judgement, hypergradient = got
    meta_loss, tangent_BC, want_hypergradient = want
    assert not judgement.meta_loss.requires_grad and not judgement.logit_tangent_BC.requires_grad
    assert float(torch.cat([g.flatten() for g in want_hypergradient]).norm()) > 1e-7  # there is something to compare
    assert relative_error(judgement.meta_loss, meta_loss) <= 1e-9
    assert relative_error(judgement.logit_tangent_BC, tangent_BC) <= tolerance
    assert relative_error(hypergradient, want_hypergradient) <= tolerance


# --- (a), (b): the oracles of the reference implementation -----------------------------------------------------------

ORACLES = [f"{weighting}_{objective}" for weighting in ("wnet", "vri") for objective in ("clid", "ce", "mae")]
PHI_NAMES = {
    "wnet": {"linear1": "hidden", "linear2": "output"},
    "vri": {
        "linear1": "trunk.0",
        "linear2": "trunk.2",
        "linear3": "trunk.4",
        "linear_mean": "mean",
        "linear_var": "log_variance",
        "cls_emb": "label_embedding",
    },
}


class OracleStep:
    """One meta step of the reference, rebuilt from its arrays."""

    def __init__(self, arrays: dict[str, Tensor], name: str):
        self.arrays, self.kind = arrays, name.split("_")[0]
        objective = {"clid": "clid", "ce": "cross_entropy", "mae": "mae"}[name.split("_")[1]]
        self.model = TanhNet().double()
        self.model.load_state_dict(self.section("theta"))
        if self.kind == "wnet":
            self.weighting: Weighting = WNet().double()
        else:
            self.weighting = VRI(5, 20, embedding_size=64, hidden_sizes=(48, 32, 32)).double()
        self.weighting.load_state_dict(self.phi("phi"))
        self.tap = ClassifierTap(self.model)
        assert self.tap.head_name == "linear"
        self.objective = get_objective(objective, float(arrays["tau"]))
        self.lr, self.meta_lr = float(arrays["lr"]), float(arrays["meta_lr"])
        self.inputs = {"x": arrays["x_BD"]}

    def section(self, name: str) -> dict[str, Tensor]:
        return {key.split("/")[1]: value for key, value in self.arrays.items() if key.startswith(name + "/")}

    def phi(self, name: str) -> dict[str, Tensor]:
        renamed = {}
        for key, value in self.section(name).items():
            layer, kind = key.rsplit(".", 1)
            renamed[f"{PHI_NAMES[self.kind][layer]}.{kind}"] = value
        return renamed

    def in_order(self, name: str) -> list[Tensor]:
        section = self.phi(name)
        return [section[key] for key, _ in self.weighting.named_parameters()]

    def run(self, tangent: str) -> tuple[ClassifierOutput, WeightingBatch, Judgement, list[Tensor]]:
        lookahead = LookAhead(self.tap, self.objective, "all", tangent)
        output = self.tap.forward(self.model, self.inputs, remember_random_state=True)
        noise_BC = self.arrays.get("eps_posterior_BC")
        batch = WeightingBatch(output.logits_BC, output.features_BD, self.arrays["labels_B"], noise_BC=noise_BC)
        meta = MetaBatch({"x": self.arrays["meta_x_MD"]}, self.arrays["meta_labels_M"])
        gradient_BC = self.weighting.loss_gradient(batch)
        judgement = lookahead(self.model, self.inputs, output, gradient_BC.detach(), meta, self.lr)
        tangent_BC = judgement.logit_tangent_BC
        return output, batch, judgement, self.weighting.hypergradient(batch, gradient_BC, tangent_BC, self.lr)


@pytest.mark.parametrize("name", ORACLES)
def test_meta_step_equals_the_oracle(oracle, name):
    step = OracleStep(arrays := oracle(name), name)
    output, batch, judgement, hypergradient = step.run("forward")
    errors = {}

    if step.kind == "wnet":
        errors["weights_before"] = relative_error(step.weighting.weights(batch) / 16, arrays["weights_before_B"])
        kl = 0.0
    else:
        mean_BC, log_variance_BC = step.weighting.posterior(batch)
        prior_mean_BC, prior_log_variance_BC = step.weighting.prior(batch)
        errors["posterior_mean"] = relative_error(mean_BC, arrays["posterior_mean_BC"])
        # The arrays called "logvar" hold what the reference passes on under that name: the standard deviation.
        deviation_BC, prior_deviation_BC = (log_variance_BC / 2).exp(), (prior_log_variance_BC / 2).exp()
        errors["posterior_logvar"] = relative_error(deviation_BC, arrays["posterior_logvar_BC"])
        errors["prior_mean"] = relative_error(prior_mean_BC, arrays["prior_mean_BC"])
        errors["prior_logvar"] = relative_error(prior_deviation_BC, arrays["prior_logvar_BC"])
        errors["rectifier"] = relative_error(step.weighting.rectifier(batch), arrays["rectifier_BC"])
        kl_BC = (
            (prior_deviation_BC - deviation_BC)
            - 0.5
            + (  # the reference's own, which is no part of our inner loss
                (2 * deviation_BC).exp() + (mean_BC - prior_mean_BC) ** 2
            )
            / (2 * (2 * prior_deviation_BC).exp())
        )
        errors["kl"] = relative_error(kl_BC.mean(), arrays["kl"])
        kl = arrays["kl_weight"] * arrays["kl"]
    errors["inner_loss"] = relative_error(step.weighting.inner_loss(batch), arrays["inner_loss"] - kl)
    errors["meta_loss"] = relative_error(judgement.meta_loss, arrays["meta_loss"])
    for (key, _), got, want in zip(
        step.weighting.named_parameters(), hypergradient, step.in_order("hypergradient"), strict=True
    ):
        errors[f"hypergradient {key}"] = relative_error(got, want)

    step.weighting.configure_optimizer("sgd", step.meta_lr, 0.0)
    gradient_BC = step.weighting.loss_gradient(batch)
    batch = step.weighting.learn(batch, gradient_BC, judgement.logit_tangent_BC, step.lr)
    errors["phi_after"] = relative_error(list(step.weighting.parameters()), step.in_order("phi_after"))
    moved = [p - before for p, before in zip(step.weighting.parameters(), step.in_order("phi"), strict=True)]
    want = [p - before for p, before in zip(step.in_order("phi_after"), step.in_order("phi"), strict=True)]
    assert relative_error(moved, want) <= 1e-6  # a difference of nearly equal numbers
    if step.kind == "wnet":
        errors["weights_after"] = relative_error(step.weighting.weights(batch) / 16, arrays["weights_after_B"])
    else:
        batch = WeightingBatch(output.logits_BC, output.features_BD, batch.labels_B, noise_BC=arrays["eps_update_BC"])
        errors["rectifier_after"] = relative_error(step.weighting.rectifier(batch), arrays["rectifier_after_BC"])
    loss, _ = step.weighting.real_loss(batch)
    loss.backward()
    errors["update_loss"] = relative_error(loss, arrays["update_loss"])
    for key, value in step.section("update_gradient").items():
        errors[f"update_gradient {key}"] = relative_error(step.model.get_parameter(key).grad, value)
    assert max(errors.values()) <= 1e-9, errors
    assert len(errors) == {"wnet": 6 + 4 + 6, "vri": 11 + 11 + 6}[step.kind]


@pytest.mark.parametrize("name", ORACLES)
def test_finite_difference_comes_close_to_the_oracle(oracle, name):
    step = OracleStep(arrays := oracle(name), name)
    _, _, judgement, hypergradient = step.run("finite_difference")
    assert relative_error(judgement.meta_loss, arrays["meta_loss"]) <= 1e-9
    assert relative_error(hypergradient, step.in_order("hypergradient")) <= 1e-5


# --- double backward, written here -----------------------------------------------------------------------------------


def vri() -> Weighting:
    torch.manual_seed(2)
    return VRI(CLASSES, 6, embedding_size=3, hidden_sizes=(5, 5, 5)).double()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": build,
    "no_bias": lambda: build(head="no_bias"),
    "conv": lambda: build(head="conv"),
    "tied": lambda: build(tied=True),
    "checkpointed": lambda: build(checkpointed=True),
    "attention": lambda: (torch.manual_seed(0), Attention().double())[1],
}


@pytest.mark.parametrize("weighting", [None, vri], ids=["wnet", "vri"])
@pytest.mark.parametrize("objective", ["clid", "cross_entropy", "mae"])
@pytest.mark.parametrize("model", ["linear", "tied", "attention"])
def test_forward_mode_equals_double_backward(model, objective, weighting):
    case = Case(MODELS[model](), None if weighting is None else weighting(), objective)
    agree(case.look("all", "forward"), case.double_backward(), 1e-9)


@pytest.mark.parametrize("model", ["linear", "conv", "tied", "checkpointed", "attention"])
def test_finite_difference_comes_close_to_double_backward(model):
    case = Case(MODELS[model]())
    got = case.look("all", "finite_difference")
    case.model.checkpointed = False
    agree(got, case.double_backward(), 1e-5)


@pytest.mark.parametrize("weighting", [None, vri], ids=["wnet", "vri"])
@pytest.mark.parametrize("objective", ["clid", "cross_entropy"])
@pytest.mark.parametrize("source", ["subset", "batch"])
@pytest.mark.parametrize("head", ["linear", "no_bias", "conv"])
def test_closed_form_equals_double_backward_over_the_head(head, source, objective, weighting):
    case = Case(build(head=head), None if weighting is None else weighting(), objective)
    meta = case.meta() if source == "subset" else case.meta(inputs=None, labels_M=case.labels_B)
    agree(case.look("head", "closed_form", meta), case.double_backward(in_head, meta), 1e-9)


@pytest.mark.parametrize(
    ("tangent", "tolerance"), [("closed_form", 1e-9), ("forward", 1e-9), ("finite_difference", 1e-5)]
)
@pytest.mark.parametrize("frozen", [["classifier.bias"], ["classifier.weight"]], ids=["bias", "weight"])
def test_a_half_frozen_head(tangent, tolerance, frozen):
    case = Case(build())
    for name in frozen:
        case.model.get_parameter(name).requires_grad_(False)
    agree(case.look("head", tangent), case.double_backward(in_head), tolerance)


@pytest.mark.parametrize(
    ("scope", "tangent", "tolerance"),
    [("head", "closed_form", 1e-9), ("all", "forward", 1e-9), ("all", "finite_difference", 1e-5)],
)
def test_given_judge_features_replace_the_own_ones(scope, tangent, tolerance):
    case = Case(build())
    meta = case.meta(judge_features_MD=normal(8, 14, 3))
    names = in_head if scope == "head" else lambda name: True
    got = case.look(scope, tangent, meta)
    agree(got, case.double_backward(names, meta), tolerance)
    assert not torch.equal(got[0].meta_loss, case.look(scope, tangent)[0].meta_loss)


@pytest.mark.parametrize(("scope", "tangent", "tolerance"), [("head", "closed_form", 1e-9), ("all", "forward", 1e-9)])
def test_without_lookahead_the_gradient_is_taken_at_theta(scope, tangent, tolerance):
    case = Case(build())
    names = in_head if scope == "head" else lambda name: True
    judgement, _ = case.look(scope, tangent, lookahead=False)
    meta_loss, tangent_BC, _ = case.double_backward(names, lookahead=False)
    assert relative_error(judgement.meta_loss, meta_loss) <= 1e-12
    assert relative_error(judgement.logit_tangent_BC, tangent_BC) <= tolerance
    with torch.no_grad(), without_side_effects(case.model, case.seed):
        output = case.tap.forward(case.model, case.meta_inputs)
    assert relative_error(judgement.meta_loss, case.objective(output.features_BD, output.logits_BC)) <= 1e-12
    assert relative_error(judgement.logit_tangent_BC, case.look(scope, tangent)[0].logit_tangent_BC) > 1e-3


@pytest.mark.parametrize(("tangent", "tolerance"), [("forward", 1e-12), ("finite_difference", 1e-12)])
def test_regular_expressions_as_scope(tangent, tolerance):
    case = Case(build())
    everything, same = (case.look(scope, tangent)[0].logit_tangent_BC for scope in ("all", "."))
    assert relative_error(same, everything) <= tolerance
    head, same = (case.look(scope, tangent)[0].logit_tangent_BC for scope in ("head", r"^classifier\."))
    assert relative_error(same, head) <= tolerance
    some = case.look(r"first|norm", tangent)
    agree(some, case.double_backward(lambda name: "first" in name or "norm" in name), 1e-5)


def test_tangents_agree_on_the_head():
    case = Case(build(dropout=0.4))
    state = torch.get_rng_state()
    tangents = []
    for tangent in ("closed_form", "forward", "finite_difference"):
        torch.set_rng_state(state)
        tangents.append(case.look("head", tangent)[0].logit_tangent_BC)
    assert relative_error(tangents[1], tangents[0]) <= 1e-9
    assert relative_error(tangents[2], tangents[0]) <= 1e-5


def test_averages_reach_gradient_and_direction():
    """Averaging that doubles everything is twice the step size and twice the tangent."""
    for scope, tangent in (("head", "closed_form"), ("all", "forward")):
        case, calls = Case(build()), []

        def double(tensors: list[Tensor], calls: list = calls) -> list[Tensor]:
            calls.append(len(tensors))
            return [2 * tensor for tensor in tensors]

        doubled, _ = case.look(scope, tangent, average=double)
        plain, _ = case.look(scope, tangent, step_size=2 * STEP_SIZE)
        assert relative_error(doubled.meta_loss, plain.meta_loss) <= 1e-12
        assert relative_error(doubled.logit_tangent_BC, 2 * plain.logit_tangent_BC) <= 1e-12
        assert calls == [len(LookAhead(case.tap, case.objective, scope).parameters(case.model))] * 2


def test_scope_all_leaves_frozen_parameters_where_they_are():
    case = Case(build())
    case.model.first.requires_grad_(False)
    case.model.norm.requires_grad_(False)
    names = set(LookAhead(case.tap, case.objective, "all").parameters(case.model))
    assert names == {"second.weight", "second.bias", "classifier.weight", "classifier.bias"}
    agree(case.look("all", "forward"), case.double_backward(), 1e-9)


# --- precision -------------------------------------------------------------------------------------------------------


def to_float32(case: Case) -> Case:
    case.model.float()
    case.weighting.float()
    case.inputs, case.meta_inputs, case.noise_BC = (
        {"x": case.inputs["x"].float()},
        {"x": case.meta_inputs["x"].float()},
        case.noise_BC.float(),
    )
    return case


@pytest.mark.parametrize(
    ("scope", "tangent", "tolerance"),
    [("head", "closed_form", 1e-4), ("all", "forward", 1e-4), ("all", "finite_difference", 1e-2)],
)
def test_single_precision(scope, tangent, tolerance):
    want, _ = Case(build()).look(scope, "closed_form" if scope == "head" else "forward")
    got, _ = to_float32(Case(build())).look(scope, tangent)
    assert got.logit_tangent_BC.dtype == torch.float32
    assert relative_error(got.logit_tangent_BC.double(), want.logit_tangent_BC) <= tolerance


@pytest.mark.parametrize(("scope", "tangent"), [("head", "closed_form"), ("all", "finite_difference")])
def test_under_autocast_it_points_the_same_way(scope, tangent):
    want, _ = Case(build()).look(scope, "closed_form" if scope == "head" else "forward")
    with torch.autocast("cpu", torch.bfloat16):
        got, hypergradient = to_float32(Case(build())).look(scope, tangent)
    assert got.logit_tangent_BC.dtype == got.meta_loss.dtype == torch.float32
    assert all(bool(g.isfinite().all()) for g in hypergradient)
    cosine = F.cosine_similarity(got.logit_tangent_BC.double().flatten(), want.logit_tangent_BC.flatten(), dim=0)
    assert float(cosine) > 0.98
    assert relative_error(got.meta_loss.double(), want.meta_loss) < 0.01


# Batch statistics (a model in training mode) get both sides unasked.
@pytest.mark.parametrize(("training", "central", "order"), [(False, False, 1), (False, True, 2), (True, False, 2)])
def test_radius_can_be_given(training, central, order):
    case = Case(build().train(training))
    exact = case.look("all", "forward")[0].logit_tangent_BC
    coarse, fine = (
        relative_error(case.look("all", "finite_difference", radius=r, central=central)[0].logit_tangent_BC, exact)
        for r in (1e-1, 1e-2)
    )
    assert coarse / fine == pytest.approx(10**order, rel=0.1)


def test_central_differences_do_without_the_logits_of_the_training_forward():
    case = Case(build())
    lookahead = LookAhead(case.tap, case.objective, "all", "finite_difference", central=True)
    output, batch = case.forward()
    elsewhere = replace(output, logits_BC=output.logits_BC + 1)  # as a compiled forward might compute them
    gradient_BC = case.weighting.loss_gradient(batch).detach()
    tangents = [
        lookahead(case.model, case.inputs, given, gradient_BC, case.meta(), STEP_SIZE).logit_tangent_BC
        for given in (output, elsewhere)
    ]
    assert torch.equal(*tangents)


@pytest.mark.parametrize(
    ("scope", "tangent"), [("head", "closed_form"), ("all", "forward"), ("all", "finite_difference")]
)
def test_an_objective_without_any_gradient_gives_a_tangent_of_zero(scope, tangent):
    case = Case(build())
    case.objective = get_objective("clid")
    object.__setattr__(case.objective, "function", lambda features_MD, logits_MC, labels_M: 0 * logits_MC.sum())
    judgement, hypergradient = case.look(scope, tangent)
    assert bool((judgement.logit_tangent_BC == 0).all()) and all(bool((g == 0).all()) for g in hypergradient)


@pytest.mark.parametrize(("samples", "forwards"), [(15, 2), (16, 1)])
def test_batch_statistics_of_few_samples_get_both_sides(samples, forwards):
    case = Case(build())
    case.inputs, case.labels_B = {"x": normal(5, samples, 6)}, torch.arange(samples) % CLASSES
    case.noise_BC = normal(7, samples, CLASSES)
    case.look("all", "finite_difference")
    assert case.model.fragile.calls == 2 + forwards  # the training forward, and that at theta+


# --- a meta batch in two parts ---------------------------------------------------------------------------------------


def in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_clidmu.lookahead.RECOMPUTED", 0.0)


@pytest.mark.parametrize("tangent", ["forward", "finite_difference"])
@pytest.mark.parametrize("options", [{}, {"average": lambda tensors: [2 * tensor for tensor in tensors]}])
def test_a_meta_batch_in_two_parts_is_the_whole(monkeypatch, tangent, options):
    case = Case(build(tied=True).eval())
    case.model.fragile.calls = 0
    halves = case.look("all", tangent, **options)
    calls = case.model.fragile.calls
    in_one_part(monkeypatch)
    case.model.fragile.calls = 0
    whole = case.look("all", tangent, **options)
    assert calls == case.model.fragile.calls + 2  # the second part passes twice, the first beside it
    assert relative_error(halves[0].meta_loss, whole[0].meta_loss) <= 1e-14
    assert relative_error(halves[0].logit_tangent_BC, whole[0].logit_tangent_BC) <= 1e-9
    assert relative_error(halves[1], whole[1]) <= 1e-9


def test_both_parts_have_gradients_under_autocast(monkeypatch):
    """Autocast keeps its half-precision copies of parameters, also those made where no graph is recorded."""
    tangents = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            judgement, _ = to_float32(Case(build().eval())).look("all", "finite_difference")
        tangents.append(judgement.logit_tangent_BC.flatten())
        in_one_part(monkeypatch)
    assert F.cosine_similarity(*tangents, dim=0) > 0.99
    assert float(tangents[0].norm() / tangents[1].norm()) == pytest.approx(1, abs=0.1)


def test_the_second_part_has_the_same_dropout_masks_twice():
    """Its gradient belongs to the logits that were judged."""
    case = Case(build(dropout=0.5))
    for module in (case.model, case.model.norm):
        module.train(module is case.model)
    masks: list[Tensor] = []
    case.model.dropout.register_forward_hook(lambda _, args, output: masks.append((output == 0).detach()))
    case.look("all", "finite_difference")
    training, first, second, again = masks[:2], masks[2:4], masks[4:6], masks[6:8]
    assert [len(mask) for mask in (training[0], first[0], second[0], again[0])] == [10, 9, 5, 5]
    assert all(torch.equal(one, other) for one, other in zip(second, again, strict=True))
    assert 0.2 < float(second[1].double().mean()) < 0.8


def test_inputs_of_different_lengths_stay_together():
    whole = {"pixels": torch.zeros(8, 2), "positions": torch.zeros(1, 2)}
    assert _apart(whole, 0.5) == (whole, None)
    assert _apart({"pixels": torch.zeros(2, 2)}, 3 / 8)[1] is None  # nothing to spare
    first, second = _apart({"pixels": torch.arange(8), "mask": torch.arange(8)}, 3 / 8)
    assert first["mask"].tolist() == [0, 1, 2, 3, 4] and second["pixels"].tolist() == [5, 6, 7]


def test_gradients_that_share_their_memory_are_not_added_twice():
    class Twice(nn.Module):
        """Two parameters that get one gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.zeros(3).double()), nn.Parameter(torch.zeros(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.one + self.other)

    model, x = Twice(), normal(1, 4, 3)
    parts = [(model(part), torch.ones_like(part)) for part in (x[:3], x[3:])]
    gradients = Wholes().gradients(list(model.parameters()), parts)
    assert all(relative_error(gradient, x.sum(dim=0)) <= 1e-12 for gradient in gradients)


# --- (d) it changes nothing ------------------------------------------------------------------------------------------

MODES = [
    ("head", "closed_form"),
    ("head", "forward"),
    ("head", "finite_difference"),
    ("all", "forward"),
    ("all", "finite_difference"),
]


@contextmanager
def nothing_changes(module: nn.Module) -> Iterator[None]:
    """Parameters, buffers, gradients, flags, hooks and the random state are the same, bit for bit, after the body."""

    def tensors() -> list[Tensor]:
        return [*module.parameters(), *module.buffers(), *(p.grad for p in module.parameters() if p.grad is not None)]

    def facts() -> list[Any]:
        return [
            [(id(t), t.data_ptr(), t.requires_grad, t._version) for t in tensors()],
            [id(p.grad) for p in module.parameters()],
            [(m.training, len(m._forward_hooks), list(m._parameters), list(m._buffers)) for m in module.modules()],
            torch.is_grad_enabled(),
        ]

    before, values, state = facts(), [t.detach().clone() for t in tensors()], torch.get_rng_state()
    try:
        yield
    finally:
        assert facts() == before
        assert all(torch.equal(t, value) for t, value in zip(tensors(), values, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


def fill_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(("scope", "tangent"), MODES)
def test_no_side_effects(scope, tangent, checkpointed, training):
    case = Case(build(dropout=0.5, checkpointed=checkpointed).train(training))
    fill_gradients(case.model)
    lookahead = LookAhead(case.tap, case.objective, scope, tangent)
    output, batch = case.forward()
    gradient_BC = case.weighting.loss_gradient(batch).detach()
    with nothing_changes(case.model):
        lookahead(case.model, case.inputs, output, gradient_BC, case.meta(), STEP_SIZE)


@pytest.mark.parametrize(
    ("scope", "tangent", "call"),
    [
        ("head", "closed_form", 2),
        ("all", "forward", 2),
        ("all", "forward", 3),
        ("all", "finite_difference", 2),
        ("all", "finite_difference", 3),
    ],
)
def test_no_side_effects_when_the_model_raises(scope, tangent, call):
    """Call 1 is the training forward, 2 the meta forward, 3 belongs to the tangent."""
    case = Case(build(dropout=0.5))
    fill_gradients(case.model)
    lookahead = LookAhead(case.tap, case.objective, scope, tangent)
    output, batch = case.forward()
    arguments = case.model, case.inputs, output, case.weighting.loss_gradient(batch).detach(), case.meta(), STEP_SIZE
    case.model.fragile.raises_on = call
    with nothing_changes(case.model), pytest.raises(ArithmeticError, match=f"call {call}"):
        lookahead(*arguments)
    assert case.model.fragile.calls == call
    again, fresh = lookahead(*arguments), LookAhead(case.tap, case.objective, scope, tangent)(*arguments)
    assert torch.equal(again.logit_tangent_BC, fresh.logit_tangent_BC) and torch.equal(again.meta_loss, fresh.meta_loss)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(("scope", "tangent"), MODES)
def test_the_real_backward_is_the_same_with_and_without(scope, tangent, checkpointed):
    plain = build(dropout=0.5, checkpointed=checkpointed)
    results = []
    for look in (False, True):
        case = Case(copy.deepcopy(plain))
        torch.manual_seed(11)
        output, batch = case.forward()
        if look:
            gradient_BC = case.weighting.loss_gradient(batch).detach()
            lookahead = LookAhead(case.tap, case.objective, scope, tangent)
            lookahead(case.model, case.inputs, output, gradient_BC, case.meta(), STEP_SIZE)
        case.weighting.real_loss(batch)[0].backward()
        results.append([*(p.grad for p in case.model.parameters()), *case.model.buffers(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- (e) dropout -----------------------------------------------------------------------------------------------------


def test_dropout_masks_are_those_of_the_real_forward():
    case = Case(build(dropout=0.5))
    state = torch.get_rng_state()
    forward = case.look("all", "forward")
    torch.set_rng_state(state)
    difference = case.look("all", "finite_difference")
    assert torch.equal(forward[0].meta_loss, difference[0].meta_loss)
    assert relative_error(difference[0].logit_tangent_BC, forward[0].logit_tangent_BC) <= 1e-5
    assert relative_error(difference[1], forward[1]) <= 1e-5
    torch.set_rng_state(state)
    agree(forward, case.double_backward(), 1e-9)
    other = case.look("all", "forward")  # other masks, another tangent
    assert relative_error(other[0].logit_tangent_BC, forward[0].logit_tangent_BC) > 0.05


@pytest.mark.parametrize(("scope", "tangent"), [("head", "closed_form"), ("all", "forward")])
def test_masks_of_the_meta_forward_follow_its_seed(scope, tangent):
    case = Case(build(dropout=0.5))
    state, losses = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        torch.set_rng_state(state)
        losses.append(case.look(scope, tangent, case.meta(seed=seed))[0].meta_loss)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


# --- (f) preconditioner and arguments --------------------------------------------------------------------------------


def adam_after(model: nn.Module, steps: int, kind: type = torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.99), eps=1e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(("scope", "tangent"), [("head", "closed_form"), ("all", "forward")])
@pytest.mark.parametrize("head", ["linear", "no_bias", "conv"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_preconditioner_is_the_optimisers_diagonal(scope, tangent, head, kind):
    case = Case(build(head=head))
    optimizer = adam_after(case.model, 3, kind)
    diagonal = {}
    for name, parameter in case.model.named_parameters():
        corrected = optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.99**3)
        diagonal[name] = 1 / (corrected.sqrt() + 1e-3)
    names = in_head if scope == "head" else lambda name: True
    want = case.double_backward(names, diagonal=diagonal)
    agree(case.look(scope, tangent, optimizer=optimizer, preconditioner="adam"), want, 1e-9)
    assert relative_error(case.look(scope, tangent)[0].logit_tangent_BC, want[1]) > 0.1


def test_adam_diagonal_is_what_a_step_of_the_optimiser_multiplies_with():
    """Without momentum, a step of Adam moves a parameter by lr * D * g."""
    case = Case(build())
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.1, betas=(0.0, 0.9), eps=1e-3)
    for _ in range(3):
        fill_gradients(case.model)
        before = [p.detach().clone() for p in case.model.parameters()]
        optimizer.step()
    lookahead = LookAhead(case.tap, case.objective, "all", "forward", preconditioner="adam")
    theta = list(case.model.parameters())
    diagonal = lookahead._diagonal(theta, [p.grad for p in theta], optimizer)
    for p, old, d in zip(theta, before, diagonal, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * d * p.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("scope", "tangent"), [("head", "closed_form"), ("all", "forward")])
def test_before_its_first_step_adam_normalises_the_gradient(scope, tangent):
    case = Case(build())
    optimizer = adam_after(case.model, 0)
    _, batch = case.forward()
    names = [name for name, _ in case.model.named_parameters() if scope == "all" or in_head(name)]
    gradients = torch.autograd.grad(
        case.weighting.inner_loss(batch), [case.model.get_parameter(name) for name in names], materialize_grads=True
    )
    diagonal = {name: 1 / (gradient.abs() + 1e-3) for name, gradient in zip(names, gradients, strict=True)}
    want = case.double_backward(in_head if scope == "head" else lambda name: True, diagonal=diagonal)
    agree(case.look(scope, tangent, optimizer=optimizer, preconditioner="adam"), want, 1e-9)


@pytest.mark.parametrize("steps", [0, 3])
def test_head_and_all_agree_where_only_the_head_is_trained(steps):
    case = Case(build())
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(in_head(name))
    options = {"optimizer": adam_after(case.model, steps), "preconditioner": "adam"}
    head, everything = case.look("head", "closed_form", **options), case.look("all", "forward", **options)
    assert relative_error(head[0].logit_tangent_BC, everything[0].logit_tangent_BC) <= 1e-9
    assert relative_error(head[1], everything[1]) <= 1e-9


def test_a_wrapped_optimiser_is_looked_through():
    class Wrapped:
        def __init__(self, optimizer: torch.optim.Optimizer):
            self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, {}

    case = Case(build())
    optimizer = adam_after(case.model, 2)
    bare, wrapped = (
        case.look("head", "closed_form", optimizer=o, preconditioner="adam")[0] for o in (optimizer, Wrapped(optimizer))
    )
    assert torch.equal(bare.logit_tangent_BC, wrapped.logit_tangent_BC)


def test_auto_picks_the_closed_form_for_the_head_alone():
    case = Case(build())
    head, everything = (LookAhead(case.tap, case.objective, scope) for scope in ("head", "all"))
    assert head.tangent == "closed_form" and not head.repeats_forward
    assert everything.tangent == "finite_difference" and everything.repeats_forward
    assert LookAhead(case.tap, case.objective).scope == "head"
    assert LookAhead(case.tap, case.objective, "all", "forward").repeats_forward


def test_unknown_names_list_the_known_ones():
    case = Case(build())
    with pytest.raises(
        ValueError, match="unknown tangent 'double'; known: auto, closed_form, finite_difference, forward"
    ):
        LookAhead(case.tap, case.objective, tangent="double")
    with pytest.raises(ValueError, match="unknown preconditioner 'kfac'; known: none, adam"):
        LookAhead(case.tap, case.objective, preconditioner="kfac")
    with pytest.raises(ValueError, match="closed_form.*scope='all'"):
        LookAhead(case.tap, case.objective, "all", "closed_form")


def test_scope_without_a_match():
    case = Case(build())
    with pytest.raises(ValueError, match="scope='lora_' matches none of the 8 trainable parameters.*classifier.bias"):
        case.look("lora_", "forward")
    case.model.requires_grad_(False)
    for scope in ("head", "all"):
        with pytest.raises(ValueError, match="all are frozen"):
            LookAhead(case.tap, case.objective, scope).parameters(case.model)


@pytest.mark.parametrize(("scope", "tangent"), [mode for mode in MODES if mode[1] != "closed_form"])
def test_the_running_batch_can_only_judge_in_closed_form(scope, tangent):
    case = Case(build())
    with nothing_changes_after_forward(case), pytest.raises(ValueError, match="meta_source='batch'.*closed_form"):
        case.look(scope, tangent, case.meta(inputs=None))


@contextmanager
def nothing_changes_after_forward(case: Case) -> Iterator[None]:
    """In evaluation mode, where the training forward itself changes nothing."""
    case.model.eval()
    with nothing_changes(case.model):
        yield


@pytest.mark.parametrize("tangent", ["forward", "finite_difference"])
def test_a_repeated_forward_needs_the_random_state(tangent):
    case = Case(build())
    output = case.tap.forward(case.model, case.inputs)
    lookahead = LookAhead(case.tap, case.objective, "all", tangent)
    with nothing_changes(case.model), pytest.raises(ValueError, match="remember_random_state=True"):
        lookahead(case.model, case.inputs, output, torch.ones_like(output.logits_BC), case.meta(), STEP_SIZE)


def test_adam_preconditioner_needs_an_optimiser_of_its_family():
    case = Case(build())
    for scope, tangent in (("head", "closed_form"), ("all", "forward")):
        with pytest.raises(ValueError, match="there is none"):
            case.look(scope, tangent, preconditioner="adam")
        sgd = torch.optim.SGD(case.model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="Adam's family"):
            case.look(scope, tangent, preconditioner="adam", optimizer=sgd)
        without_head = torch.optim.Adam(case.model.first.parameters())
        with pytest.raises(ValueError, match="Adam's family"):
            case.look(scope, tangent, preconditioner="adam", optimizer=without_head)


def test_missing_labels_of_the_meta_batch():
    case = Case(build(), objective="mae")
    for scope, tangent in (("head", "closed_form"), ("all", "forward")):
        with pytest.raises(ValueError, match="'mae'.*meta set has none"):
            case.look(scope, tangent, case.meta(labels_M=None))


def test_closed_form_refuses_a_model_that_changes_its_heads_output():
    class Scaled(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": 2 * super().forward(x)["logits"]}

    torch.manual_seed(0)
    case = Case(Scaled().double())
    with pytest.raises(ValueError, match="'classifier'.*scope='all'"):
        case.look("head", "closed_form")
    agree(case.look("all", "forward"), case.double_backward(), 1e-9)


# --- (g) displaced, private buffers ----------------------------------------------------------------------------------


def test_displaced_exchanges_values_and_gives_them_back():
    linear = nn.Linear(3, 2)
    weight, before, address = linear.weight, linear.weight.detach().clone(), linear.weight.data_ptr()
    ahead = torch.ones(2, 3)
    loss = linear(torch.ones(1, 3)).square().sum()
    with Wholes().displaced([weight], [ahead]):
        assert linear.weight is weight and torch.equal(linear.weight, ahead)
        (at_ahead,) = torch.autograd.grad(linear(torch.ones(1, 3)).square().sum(), weight)
    assert linear.weight is weight and weight.data_ptr() == address and torch.equal(weight, before)
    (recorded_before,) = torch.autograd.grad(loss, weight)
    (want,) = torch.autograd.grad(linear(torch.ones(1, 3)).square().sum(), weight)
    assert torch.equal(recorded_before, want) and not torch.equal(at_ahead, want)


def test_displaced_reaches_both_ends_of_a_tie():
    net = build(tied=True)
    values = torch.zeros(6, 6, dtype=torch.float64)
    before = net.first.weight.detach().clone()
    with pytest.raises(KeyError), Wholes().displaced([net.first.weight], [values]):
        assert bool((net.second.weight == 0).all()) and net.second.weight is net.first.weight
        raise KeyError
    assert net.second.weight is net.first.weight and torch.equal(net.second.weight, before)


def test_displaced_gives_back_when_a_value_does_not_fit():
    linear = nn.Linear(3, 2)
    before = [p.detach().clone() for p in linear.parameters()]
    with pytest.raises(ValueError), Wholes().displaced(list(linear.parameters()), [torch.ones(2, 3)]):
        raise AssertionError("there is one value too few")
    assert all(torch.equal(p, value) for p, value in zip(linear.parameters(), before, strict=True))


def test_displaced_keeps_the_dtype_and_forgets_half_precision_copies():
    linear = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        before = linear(x)  # autocast now holds a copy of the weight
        with Wholes().displaced([linear.weight], [torch.zeros(2, 3, dtype=torch.float64)]):
            assert linear.weight.dtype == torch.float32
            assert torch.equal(linear(x), linear.bias.bfloat16()[None])
        assert torch.equal(linear(x), before)


def test_private_buffers_move_and_come_back():
    norm = nn.BatchNorm1d(3)
    originals = dict(norm.named_buffers())
    before = {name: buffer.clone() for name, buffer in originals.items()}
    with pytest.raises(KeyError), private_buffers(norm):
        norm(torch.randn(8, 3))
        norm.num_batches_tracked = norm.num_batches_tracked + 5  # replaced, not written to
        assert int(norm.num_batches_tracked) == 6 and not torch.equal(norm.running_mean, before["running_mean"])
        raise KeyError
    assert all(
        norm.get_buffer(name) is originals[name] and torch.equal(originals[name], before[name]) for name in before
    )


def test_private_buffers_stay_tied_to_one_another():
    shared = nn.BatchNorm1d(3)
    twice = nn.Sequential(shared, shared)
    owners = nn.ModuleList([nn.Module(), nn.Module()])
    for owner in owners:
        owner.register_buffer("counts", shared.running_mean)
    owners.append(twice)
    with private_buffers(owners):
        twice(torch.randn(8, 3))
        assert int(shared.num_batches_tracked) == 2
        assert owners[0].counts is owners[1].counts is shared.running_mean
        assert bool((owners[0].counts != 0).any())
    assert int(shared.num_batches_tracked) == 0 and bool((shared.running_mean == 0).all())
    assert owners[0].counts is owners[1].counts is shared.running_mean


def test_without_side_effects_seeds_the_body_alone():
    net, state = build(dropout=0.5), torch.get_rng_state()
    x = normal(0, 8, 6)
    with nothing_changes(net):
        with without_side_effects(net, 4):
            one = net(x)["logits"]
        with without_side_effects(net, 4):
            assert torch.equal(net(x)["logits"], one)
        with without_side_effects(net, 5):
            assert not torch.equal(net(x)["logits"], one)
    assert torch.equal(torch.get_rng_state(), state)
