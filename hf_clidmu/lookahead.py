"""The look-ahead: one virtual step of the classifier, its judgement, and what that means for the training logits.

`theta+ = theta - eta D grad L` is judged by an objective M on the meta batch; with `u = grad M(theta+)` the *logit
tangent* `zdot = J_theta z(theta) D u` on the training batch is all that a weighting needs to learn. This room knows
modules and objectives, not weightings: the inner loss reaches it as `dL/dz`.

Live parameters, gradients, buffers and the random state of the real step are never changed: a displaced parameter is
another tensor in the same place, and the original comes back whatever happens.

Shape suffixes: B training batch, M meta batch, C classes, D features.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_clidmu.aside import even_duals, private_buffers, without_checkpointing, without_side_effects
from hf_clidmu.classifier import ClassifierOutput, ClassifierTap, model_logits
from hf_clidmu.objectives import Objective
from hf_clidmu.sharding import Average, Parts, Shares, Wholes, share, whole


TANGENTS = ("auto", "closed_form", "finite_difference", "forward")
PRECONDITIONERS = ("none", "adam")
# Length of the perturbation in parameter space: the smaller, the smaller the share of curvature and of kinks (ReLU) in
# the difference, until rounding takes over. Measured against forward mode; in bf16 a radius of 1e-3 is noise.
PERTURBATION_RADIUS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
# Batch statistics of fewer samples than this curve the logits: one side is not enough. Cosine on one side, in the
# worst of 40 cases: 0.9988 with six samples, 0.9996 from 16 on.
FEWEST_ON_ONE_SIDE = 16
# Of the meta samples, those whose activations are computed again when their backward comes, for two sets of activations
# (the training batch's and this one) are what a look-ahead over everything takes most memory for. The first part's
# gradients are there by then: the second must be smaller.
RECOMPUTED = 3 / 8
_HALF = (torch.bfloat16, torch.float16)
# Length of a logit gradient that goes backward through float16, which ends at 6e-8 and 6e4: in the middle between both.
_LENGTH_IN_FLOAT16 = 256.0
_TINY = 1e-30


@dataclass(frozen=True)
class MetaBatch:
    """The samples that judge a look-ahead.

    Attributes:
        inputs: keyword arguments of the model's forward, without labels; None means the running training batch.
        labels_M: labels, for objectives that read them.
        judge_features_MD: features for the objective instead of the model's own (those of the pretrained model).
        seed: of the dropout masks of the meta forward.
    """

    inputs: Mapping[str, Tensor] | None
    labels_M: Tensor | None = None
    judge_features_MD: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Judgement:
    """What came of one look-ahead.

    Attributes:
        meta_loss: the objective at theta+, a detached scalar.
        logit_tangent_BC: `J_theta z(theta) D u`, detached.
    """

    meta_loss: Tensor
    logit_tangent_BC: Tensor


@dataclass
class LookAhead:
    """Looks one step ahead and reports the logit tangent.

    Args:
        tap: reads features and logits of the model.
        objective: judges theta+ on the meta batch.
        scope: `head` moves the last layer alone, `all` every trainable parameter, anything else is a regular
            expression searched in parameter names.
        tangent: `closed_form` (head only, exact), `forward` (forward-mode differentiation, exact; attention runs in
            its mathematical form), `finite_difference` (one more forward, or two; works everywhere but for parameters
            in half precision). `auto` picks `closed_form` for the head; otherwise `finite_difference`, and `forward`
            for a model that computes in half precision, where differences are coarse.
        lookahead: False takes the objective's gradient at theta itself.
        preconditioner: D. `none` is the identity (published), `adam` the main optimiser's diagonal.
        radius: length of the finite difference's perturbation; None chooses by precision.
        autocast: what the model's own forward casts to inside, as accelerate makes it do; None where it does not.
        central: take differences on both sides. Half precision and batch statistics of few samples need it, and get
            it unasked; a training forward that was not computed as the module itself computes (compiled) needs it,
            too: its logits are not those at theta.
        average: averages a list of tensors over processes; None for a single process.
        gather: rows of all processes, with gradient, for an objective over the meta samples of all of them; None lets
            each process judge its own.
        shares: the parameters of a model that is spread over processes; None where each process has all of them.

    Raises:
        ValueError: for names that are not known, or `closed_form` outside the head.
    """

    tap: ClassifierTap
    objective: Objective
    scope: str = "head"
    tangent: str = "auto"
    lookahead: bool = True
    preconditioner: str = "none"
    radius: float | None = None
    autocast: torch.dtype | None = None
    central: bool = False
    average: Average | None = None
    gather: Callable[[Tensor], Tensor] | None = None
    shares: Shares | None = None
    _checked_linear: bool = field(default=False, init=False)
    _chooses_tangent: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.tangent not in TANGENTS:
            raise ValueError(f"unknown tangent '{self.tangent}'; known: {', '.join(TANGENTS)}")
        if self.preconditioner not in PRECONDITIONERS:
            raise ValueError(f"unknown preconditioner '{self.preconditioner}'; known: {', '.join(PRECONDITIONERS)}")
        self._chooses_tangent = self.tangent == "auto" and self.scope != "head"
        if self.tangent == "auto":
            self.tangent = "closed_form" if self.scope == "head" else "finite_difference"
        if self.tangent == "closed_form" and self.scope != "head":
            raise ValueError(f"tangent='closed_form' exists for scope='head' only, not for scope='{self.scope}'")

    @property
    def repeats_forward(self) -> bool:
        """Whether the tangent repeats the training forward, so that its random state must be remembered."""
        return self.tangent != "closed_form"

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the look-ahead moves, by name.

        Raises:
            ValueError: when the scope matches no trainable parameter.
        """
        named = module.named_parameters() if self.shares is None else self.shares.named.items()
        trainable = {name: parameter for name, parameter in named if parameter.requires_grad}
        if self.scope == "head":
            head = {id(parameter) for parameter in self._head_parameters() if parameter is not None}
            chosen = {name: parameter for name, parameter in trainable.items() if id(parameter) in head}
        elif self.scope == "all":
            chosen = trainable
        else:
            chosen = {name: parameter for name, parameter in trainable.items() if re.search(self.scope, name)}
        if not chosen:
            raise ValueError(
                f"scope='{self.scope}' matches none of the {len(trainable)} trainable parameters; use 'head', 'all' or "
                f"a regular expression over names like {', '.join(list(trainable)[-3:]) or '(all are frozen)'}"
            )
        return chosen

    def settle(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Find out whether this look-ahead can work on a model, and choose the tangent if asked to.

        Returns:
            The parameters that it moves, by name.

        Raises:
            ValueError: when the scope matches no trainable parameter, or finite differences would vanish in the
                rounding of parameters in half precision.
        """
        parameters = self.parameters(module)
        if self._chooses_tangent:  # shares of parameters are no dual numbers
            coarse = self._precision(module) in _HALF and self.shares is None
            self.tangent = "forward" if coarse else "finite_difference"
        half = [name for name, parameter in parameters.items() if parameter.dtype in _HALF]
        if half and self.tangent == "finite_difference":
            raise ValueError(
                f"tangent='finite_difference' moves parameters by less than {parameters[half[0]].dtype} can tell apart "
                f"({half[0]}, {len(half)} in all); use tangent='forward', or load the model with dtype=torch.float32 "
                "and train with bf16=True, which computes as fast"
            )
        return parameters

    def __call__(
        self,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        output: ClassifierOutput,
        loss_gradient_BC: Tensor,
        meta: MetaBatch,
        step_size: float,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Judgement:
        """One look-ahead.

        Args:
            module: the bare model (never a DDP wrapper).
            inputs: the training batch, without labels.
            output: its forward, with the graph and, if [`repeats_forward`], the random state.
            loss_gradient_BC: `dL/dz` of the inner loss, detached.
            meta: the batch that judges.
            step_size: eta.
            optimizer: the main optimiser, read by `preconditioner='adam'`.

        Returns:
            The objective's value at theta+ and the logit tangent on the training batch.
        """
        if self.tangent == "closed_form":
            return self._head_in_closed_form(module, output, loss_gradient_BC, meta, step_size, optimizer)

        parameters = self.settle(module)
        theta = list(parameters.values())
        held = self.shares or Wholes(self.average)
        precision = self._precision(module)
        with private_buffers(module):  # activation checkpointing runs the forward again here
            # The real backward goes through the same graph.
            whole_batch = [(output.logits_BC, loss_gradient_BC)]
            gradients = self._pulled_back(held, theta, whole_batch, loss_gradient_BC, precision, keep_graph=True)
        diagonal = self._diagonal(theta, gradients, optimizer)
        step = step_size if self.lookahead else 0.0
        ahead = _moved(held.values(theta), _scaled(diagonal, gradients), -step)
        del gradients  # as large as the model, and the meta forward needs room
        meta_loss, directions = self._judge(module, held, theta, ahead, meta, precision)
        del ahead
        directions = _scaled(diagonal, directions)
        if self.tangent == "forward":
            length = _length(directions) if precision in _HALF else None
            tangent_BC = self._forward_mode(
                module, inputs, output, dict(zip(parameters, directions, strict=True)), length
            )
        else:
            tangent_BC = self._finite_difference(module, held, inputs, output, theta, directions, precision)
        return Judgement(meta_loss, tangent_BC)

    def _head_in_closed_form(
        self,
        module: nn.Module,
        output: ClassifierOutput,
        loss_gradient_BC: Tensor,
        meta: MetaBatch,
        step_size: float,
        optimizer: torch.optim.Optimizer | None,
    ) -> Judgement:
        """The last layer alone: everything but the meta features is a handful of small matrix products."""
        if not self._checked_linear:
            self.tap.check_linear(output)
            self._checked_linear = True
        if meta.inputs is None:
            meta_features_MD = output.features_BD
        else:
            with torch.no_grad(), without_side_effects(module, meta.seed):
                meta_features_MD = self.tap.forward(module, meta.inputs).features_BD
        judge_MD = meta_features_MD if meta.judge_features_MD is None else meta.judge_features_MD

        with torch.enable_grad(), torch.autocast(device_type=output.logits_BC.device.type, enabled=False):
            features_BD, gradient_BC = output.features_BD, loss_gradient_BC.to(output.features_BD.dtype)
            weight, bias = self._head_parameters()
            weight_CD = whole(weight.detach()).flatten(1).to(features_BD.dtype)
            bias_C = None if bias is None else whole(bias.detach()).to(features_BD.dtype)
            moves_weight, moves_bias = weight.requires_grad, bias is not None and bias.requires_grad
            theta = [p for p in (weight, bias) if p is not None and p.requires_grad]
            here = [p for p, moves in ((weight_CD, moves_weight), (bias_C, moves_bias)) if p is not None and moves]
            gradients = [gradient_BC.T @ features_BD] if moves_weight else []
            gradients += [gradient_BC.sum(dim=0)] if moves_bias else []
            gradients = self._averaged(gradients)
            shaped = [g.reshape(p.shape) for g, p in zip(gradients, theta, strict=True)]
            diagonal = self._diagonal(theta, shaped, optimizer, whole)
            if diagonal is not None:
                diagonal = [d.reshape(g.shape) for d, g in zip(diagonal, gradients, strict=True)]
            step = step_size if self.lookahead else 0.0
            ahead = [tensor.requires_grad_() for tensor in _moved(here, _scaled(diagonal, gradients), -step)]
            weight_CD = ahead[0] if moves_weight else weight_CD
            bias_C = ahead[-1] if moves_bias else bias_C
            meta_logits_MC = F.linear(meta_features_MD, weight_CD, bias_C)
            meta_loss = self._objective(judge_MD, meta_logits_MC, meta.labels_M)
            directions = _scaled(diagonal, self._averaged(torch.autograd.grad(meta_loss, ahead)))
            tangent_BC = F.linear(
                features_BD,
                directions[0] if moves_weight else torch.zeros_like(weight_CD),
                directions[-1] if moves_bias else None,
            )
        return Judgement(meta_loss.detach(), tangent_BC)

    def _head_parameters(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight and bias of the last layer."""
        if self.shares is None:
            return self.tap.head.weight, self.tap.head.bias
        named, prefix = self.shares.named, self.tap.head_name
        return named[f"{prefix}.weight"], named.get(f"{prefix}.bias")

    def _objective(self, features_MD: Tensor, logits_MC: Tensor, labels_M: Tensor | None) -> Tensor:
        if self.gather is not None:
            features_MD, logits_MC = self.gather(features_MD), self.gather(logits_MC)
            labels_M = None if labels_M is None else self.gather(labels_M)
        return self.objective(features_MD, logits_MC, labels_M)

    def _judge(
        self,
        module: nn.Module,
        held: Wholes | Shares,
        theta: Sequence[nn.Parameter],
        ahead: Sequence[Tensor],
        meta: MetaBatch,
        precision: torch.dtype,
    ) -> tuple[Tensor, list[Tensor]]:
        """The objective at theta+ and its gradient there, averaged over processes."""
        if meta.inputs is None:
            raise ValueError(
                "meta_source='batch' judges the features of the running batch and needs scope='head' with "
                f"tangent='closed_form', not scope='{self.scope}' with tangent='{self.tangent}'"
            )
        whole_only = self.scope == "head" or _takes_batch_statistics(module)
        kept, again = _apart(meta.inputs, 0.0 if whole_only else RECOMPUTED)
        with held.displaced(theta, ahead), without_side_effects(module, meta.seed), torch.enable_grad():
            judged = [self.tap.forward(module, kept)]  # first: autocast keeps copies of parameters, with their graph
            if again is not None:
                with torch.no_grad():
                    judged.append(self.tap.forward(module, again, remember_random_state=True))
            logits_MC = torch.cat([part.logits_BC.detach() for part in judged]).requires_grad_()
            own_MD = torch.cat([part.features_BD for part in judged])
            features_MD = own_MD if meta.judge_features_MD is None else meta.judge_features_MD
            meta_loss = self._objective(features_MD, logits_MC, meta.labels_M)
            (gradient_MC,) = torch.autograd.grad(meta_loss, logits_MC)
            count = len(judged[0].logits_BC)

            def parts() -> Iterator[tuple[Tensor, Tensor]]:
                yield judged[0].logits_BC, gradient_MC[:count]
                if again is not None:
                    with self._repeating(module, judged[1]):
                        recomputed = self.tap.forward(module, again)
                    yield recomputed.logits_BC, gradient_MC[count:]

            # Inside the context: activation checkpointing runs the forward again here, and must find theta+.
            gradients = self._pulled_back(held, theta, parts(), gradient_MC, precision)
        return meta_loss.detach(), gradients

    def _finite_difference(
        self,
        module: nn.Module,
        held: Wholes | Shares,
        inputs: Mapping[str, Tensor],
        output: ClassifierOutput,
        theta: Sequence[nn.Parameter],
        directions: Sequence[Tensor],
        precision: torch.dtype,
    ) -> Tensor:
        """`(z(theta + eps Du) - z(theta)) / eps` with the dropout masks of the real forward, which told `z(theta)`.

        Central: `(z(theta + eps Du) - z(theta - eps Du)) / 2 eps`.
        """
        curved = len(output.logits_BC) < FEWEST_ON_ONE_SIDE and _takes_batch_statistics(module)
        central = self.central or curved or precision in _HALF
        radius = PERTURBATION_RADIUS.get(precision, 5e-2) if self.radius is None else self.radius
        epsilon = radius / held.length(theta, directions).clamp(min=_TINY)

        def logits_at(distance: Tensor) -> Tensor:
            there = _moved(held.values(theta), directions, distance)
            with torch.no_grad(), held.displaced(theta, there), self._repeating(module, output):
                return self.tap.forward(module, inputs).logits_BC

        ahead_BC = logits_at(epsilon)
        behind_BC = logits_at(-epsilon) if central else output.logits_BC.detach()
        return (ahead_BC - behind_BC) / ((2 if central else 1) * epsilon).to(ahead_BC.dtype)

    def _forward_mode(
        self,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        output: ClassifierOutput,
        directions: Mapping[str, Tensor],
        length: Tensor | None,
    ) -> Tensor:
        """`J_theta z(theta) Du` exactly, by dual numbers in place of the parameters.

        Given the length of Du, a direction of length one goes through the network: half precision has room for that.
        """
        state = dict(module.named_parameters())
        # Fused attention has no forward-mode derivative; its mathematical form has.
        with (
            torch.no_grad(),
            forward_ad.dual_level(),
            self._repeating(module, output),
            sdpa_kernel(SDPBackend.MATH),
            even_duals(module),
            without_checkpointing(module),
        ):
            units = directions if length is None else {name: u / length for name, u in directions.items()}
            dual = {
                name: forward_ad.make_dual(state[name].detach(), u.to(state[name].dtype)) for name, u in units.items()
            }
            try:
                logits_BC = model_logits(functional_call(module, dual, args=(), kwargs=dict(inputs)))
            except NotImplementedError as error:
                raise NotImplementedError(
                    "the model has an operation without a forward-mode derivative (see above): use "
                    "tangent='finite_difference', or scope='head', which needs none"
                ) from error
            tangent_BC = forward_ad.unpack_dual(logits_BC).tangent
            if tangent_BC is None:
                return torch.zeros_like(output.logits_BC)
            tangent_BC = tangent_BC.to(output.logits_BC.dtype)
            return tangent_BC if length is None else tangent_BC * length

    @contextmanager
    def _repeating(self, module: nn.Module, output: ClassifierOutput) -> Iterator[None]:
        if output.random_state is None:
            raise ValueError("this tangent repeats the training forward: read it with remember_random_state=True")
        with output.random_state.replayed(), private_buffers(module):
            yield

    def _precision(self, module: nn.Module) -> torch.dtype:
        """The coarsest type that the model computes in; TF32 is told as bfloat16, nearly as coarse and of its range."""
        parameters = list(module.parameters())
        found = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        device_type = parameters[0].device.type
        if self.autocast is not None:
            found.add(self.autocast)
        elif torch.is_autocast_enabled(device_type):
            found.add(torch.get_autocast_dtype(device_type))
        cudnn: Any = torch.backends.cudnn
        if device_type == "cuda" and "tf32" in (torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision):
            found.add(torch.bfloat16)
        return max(found, key=lambda dtype: torch.finfo(dtype).eps)

    def _pulled_back(
        self,
        held: Wholes | Shares,
        theta: Sequence[nn.Parameter],
        parts: Parts,
        gradient_BC: Tensor,
        precision: torch.dtype,
        keep_graph: bool = False,
    ) -> list[Tensor]:
        """What a gradient in the logits means for the parameters, `J_theta z^T g`, averaged over processes.

        The batch comes in parts, each its logits and the gradient in them; `gradient_BC` is that of all of them.

        In float16 small gradients vanish, and the scaler that prevents it belongs to the real backward: the gradient
        goes through the network at a length of its own, and comes out without it.
        """
        if precision != torch.float16:
            return held.gradients(theta, parts, keep_graph)
        (length,) = self._averaged([_length([gradient_BC])])  # one for all processes, whose gradients are averaged
        scale = _LENGTH_IN_FLOAT16 / length
        scaled = held.gradients(theta, ((logits_BC, part_BC * scale) for logits_BC, part_BC in parts), keep_graph)
        return [gradient.float() / scale for gradient in scaled]

    def _averaged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors) if self.average is None else self.average(list(tensors))

    def _diagonal(
        self,
        theta: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        optimizer: torch.optim.Optimizer | None,
        read: Callable[[Tensor], Tensor] = share,
    ) -> list[Tensor] | None:
        """D, one entry per parameter: what the main optimiser multiplies a gradient with, momentum aside.

        None is the identity. `read` gives of a moment what the gradient is of its parameter: all, or a share.
        """
        if self.preconditioner == "none":
            return None
        if optimizer is None:
            raise ValueError("preconditioner='adam' reads the main optimiser's second moments, but there is none")
        state = getattr(optimizer, "optimizer", optimizer).state  # accelerate wraps the optimiser
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        diagonal = []
        for parameter, gradient in zip(theta, gradients, strict=True):
            group = groups.get(id(parameter))
            if group is None or "betas" not in group:
                raise ValueError("preconditioner='adam' needs an optimiser of Adam's family; use preconditioner='none'")
            moments = state.get(parameter, {})
            if "exp_avg_sq" in moments:
                # Where the optimiser counts its steps on a GPU, the count stays there: reading it would wait.
                steps = torch.as_tensor(moments["step"], dtype=torch.float64)
                second = read(moments["exp_avg_sq"]) / (1 - group["betas"][1] ** steps)
            else:  # before the first step: Adam's own estimate after it would be this gradient's square
                second = gradient.detach() ** 2
            diagonal.append(1 / (second.to(gradient.dtype).sqrt() + group["eps"]))
        return diagonal


def _takes_batch_statistics(module: nn.Module) -> bool:
    """Whether samples are normalised by one another, so that a batch is more than its parts."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules())


def _apart(inputs: Mapping[str, Tensor], second: float) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """A batch in two parts, the second of this share; in one part where it is none, or where inputs have not one
    length."""
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in inputs.values()}
    size = int(second * min(lengths, default=0))
    if size == 0 or len(lengths) > 1:
        return inputs, None
    return {name: t[:-size] for name, t in inputs.items()}, {name: t[-size:] for name, t in inputs.items()}


def _length(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean length of all of them together, and not zero."""
    return torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors]).clamp(min=_TINY)


def _scaled(diagonal: Sequence[Tensor] | None, tensors: Sequence[Tensor]) -> list[Tensor]:
    """`D u`, parameter by parameter."""
    return list(tensors) if diagonal is None else [d * u for d, u in zip(diagonal, tensors, strict=True)]


def _moved(theta: Sequence[Tensor], directions: Sequence[Tensor], size: float | Tensor) -> list[Tensor]:
    """`theta + size * u`, parameter by parameter, for all of them in a few kernels."""
    with torch.no_grad():
        moved = torch._foreach_mul(list(directions), size)
        torch._foreach_add_(moved, list(theta))
    return list(moved)
