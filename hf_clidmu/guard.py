"""Numerics that defend themselves: what is not finite moves nothing, and a weighting that broke is left out.

Everything is decided on the device: whether a step is skipped is a flag there, and so is the count of bad steps in a
row. The host looks at them when it logs or saves, never in between, so guarding never waits for the device.

Shape suffixes: B samples of the training batch, C classes.
"""

import logging
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.processes import Processes
from hf_clidmu.weighting import WeightingBatch


logger = logging.getLogger(__name__)

#: One sample that holds more than this share of a batch's weight has taken all of it.
_ALL_OF_IT = 0.999
#: In smaller batches a single weight is an everyday event: clipped at zero, half of them are.
_MINIMUM_BATCH = 4


class Guard:
    """Watches the meta step and the weights of one run.

    A meta step with a meta loss, logit tangent or hypergradient that is not finite is skipped: the weighting and its
    optimiser stay what they were. A loss that is not finite is replaced by cross-entropy for that batch. Weights that
    collapsed (all zero, or one sample takes all in a batch of at least 4) are counted with them. After `patience` such
    steps in a row the rest of the run trains with cross-entropy.

    Args:
        patience: bad steps in a row before the weighting is left out.
        device: of the training.
        processes: those that train together; all decide alike. None stands for one.
    """

    def __init__(self, patience: int, device: torch.device | str = "cpu", processes: Processes | None = None):
        self.patience = patience
        self.processes = processes or Processes()
        self.is_broken = False
        self._bad_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._holds = torch.ones((), dtype=torch.bool, device=device)  # until the weighting is left out
        self._meta_is_usable: Tensor | None = None
        self._loss_is_usable: Tensor | None = None
        self._chosen: Tensor | None = None

    def screen(
        self, meta_loss: Tensor, logit_tangent_BC: Tensor, optimizer: torch.optim.Optimizer | None
    ) -> Callable[[list[Tensor]], list[Tensor]]:
        """Judge a look-ahead, and return what averages the hypergradient over processes and judges that as well.

        The weighting's optimiser takes no step where something was not finite; an optimiser that is not fused cannot
        be told, and gets gradients of zero.
        """
        finite = _is_finite(meta_loss, logit_tangent_BC) & self._holds
        self._meta_is_usable = usable_so_far = self.processes.everywhere(finite)

        def averaged(gradients: list[Tensor]) -> list[Tensor]:
            gradients = self.processes.average(gradients)
            usable = usable_so_far
            if gradients:
                usable = usable & _is_finite(torch.stack(torch._foreach_norm(gradients)))
            self._meta_is_usable = usable
            if optimizer is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                fused: Any = optimizer
                fused.found_inf, fused.grad_scale = (~usable).float(), None
                return gradients
            return [torch.where(usable, gradient, torch.zeros_like(gradient)) for gradient in gradients]

        return averaged

    def loss(
        self, batch: WeightingBatch, weighted: Callable[[WeightingBatch], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss of a batch, or its cross-entropy where the weighted one is of no use; and the weights.

        Args:
            batch: the training batch, its logits attached to the graph of the model.
            weighted: the loss of a batch, differentiable in its logits, and how much each label counts, (B,).

        Returns:
            The loss that was chosen, attached to the logits alone, so that what is not finite in the other cannot
            reach the model; and the weights as `weighted` gave them (see [`used`]).
        """
        logits_BC = batch.logits_BC
        with torch.enable_grad(), torch.autocast(device_type=logits_BC.device.type, enabled=False):
            at_BC = logits_BC.detach().requires_grad_()
            loss, weight_B = weighted(batch.with_logits(at_BC))
            (gradient_BC,) = torch.autograd.grad(loss, at_BC)
            plain = F.cross_entropy(at_BC, batch.labels_B)
            (plain_BC,) = torch.autograd.grad(plain, at_BC)
        self._loss_is_usable = self.processes.everywhere(_is_finite(loss.detach(), gradient_BC))
        self._chosen = chosen = self._loss_is_usable & self._holds
        value = torch.where(chosen, loss.detach(), plain.detach())
        return _Attached.apply(logits_BC, value, torch.where(chosen, gradient_BC, plain_BC)), weight_B

    def used(self, weight_B: Tensor) -> Tensor:
        """The weights that the loss really had: all one where cross-entropy took its place."""
        if self.is_broken:
            return torch.ones_like(weight_B)
        if self._chosen is None:
            return weight_B
        return torch.where(self._chosen, weight_B, torch.ones_like(weight_B))

    def count(self, weight_B: Tensor) -> None:
        """Close a step: was it a bad one?

        Args:
            weight_B: how much each label counted, of all processes.
        """
        total = weight_B.sum()
        good = total > torch.finfo(weight_B.dtype).tiny
        if len(weight_B) >= _MINIMUM_BATCH:
            good = good & (weight_B.max() <= _ALL_OF_IT * total)
        if self._loss_is_usable is not None:
            good = good & self._loss_is_usable
        if self._meta_is_usable is not None:
            self._skipped += ~self._meta_is_usable & self._holds
            good = good & self._meta_is_usable
            self._bad_in_a_row = torch.where(good, torch.zeros_like(self._bad_in_a_row), self._bad_in_a_row + 1)
        else:  # a step without a meta step is no sign that the meta step works again
            self._bad_in_a_row = self._bad_in_a_row + ~good
        self._holds = self._holds & (self._bad_in_a_row < self.patience)
        self._meta_is_usable = self._loss_is_usable = self._chosen = None

    def look(self, step: int) -> int:
        """How many meta steps were skipped since the last call; this waits for the device.

        Warns, once, when the weighting had to be left out.
        """
        skipped = int(self._skipped)
        self._skipped.zero_()
        if not self.is_broken and not bool(self._holds):
            self.is_broken = True
            logger.warning(
                "The weighting is left out, and every label counts the same from here on (seen at step %d): for %d "
                "steps in a row its meta step was not finite, or its weights were all zero, or one sample took them "
                "all. The model trains with plain cross-entropy now. Try a smaller meta_learning_rate or lookahead_lr, "
                "another weighting, or a larger batch; meta_patience sets how many steps are waited.",
                step,
                self.patience,
            )
        return skipped

    def state_dict(self) -> dict[str, Tensor]:
        """The counts as tensors, for a checkpoint."""
        numbers = [self._bad_in_a_row, self._skipped, (~self._holds).long()]
        return {"counts": torch.stack([number.cpu() for number in numbers])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the counts of a checkpoint.

        Raises:
            ValueError: when they are no counts.
        """
        counts = state.get("counts")
        if counts is None or counts.shape != (3,) or counts.dtype != torch.int64 or bool((counts < 0).any()):
            raise ValueError("the saved counts of skipped steps are no three whole numbers")
        self._bad_in_a_row.fill_(counts[0])
        self._skipped.fill_(counts[1])
        self._holds.fill_(counts[2] == 0)


def _is_finite(*parts: Tensor) -> Tensor:
    """Whether all numbers of all parts are finite, (): their sum is not where any of them is not.

    `torch.isfinite` takes four kernels a tensor; this is done several times in every step.
    """
    total = reduce(torch.add, (part.sum() if part.ndim else part for part in parts))
    return total - total == 0


class _Attached(torch.autograd.Function):
    """A value whose gradient in the logits was computed before."""

    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, value: Tensor, gradient_BC: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BC)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BC,) = ctx.saved_tensors
        return gradient * gradient_BC, None, None
