"""The head alone: in some steps of a run nothing below it moves, in the others everything trains.

At the beginning the head learns first. A new last layer above a pretrained encoder sends it gradients that say nothing
yet. On wrong labels that is worse than a waste: the features that CLID judges by are bent before there is anything to
judge. So the head is trained on features as they were, and the encoder follows (LP-FT: Kumar et al., "Fine-Tuning can
Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022). Later, features may rest that would
memorise wrong labels next.

This room knows parameters, modules and schedules; the trainer tells it which of them lie below the head.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerCallback

from hf_clidmu.precompute import frozen_modules
from hf_clidmu.sharding import spread


class HeadFirst(TrainerCallback):
    """Holds everything below the head still in the first steps of a run, and in others that the trainer names.

    What lies below is frozen only while a step is computed: whatever evaluates, saves or counts parameters between
    steps sees the model as it will be trained.

    Attributes:
        steps: optimiser steps of the head alone, at the beginning; 0 changes nothing.
        still: modules at rest in this step, which must be in evaluation mode: a dropout mask or a running statistic
            that changes is not a feature that stays.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.still: list[nn.Module] = []
        self._model: nn.Module | None = None
        self._below: set[str] = set()
        self._held: list[nn.Parameter] = []
        self._rests: Callable[[int], bool] = _never

    @staticmethod
    def applies(model: nn.Module, below: Sequence[str]) -> bool:
        """Whether the model has trainable parameters below the head, and others: a default must not be an error."""
        waiting, trained = _trained_below(model, below)
        return 0 < len(waiting) < trained

    def bind(
        self, model: nn.Module, below: Sequence[str], steps: int, rests: Callable[[int], bool] | None = None
    ) -> None:
        """Say what will be trained.

        Args:
            model: the bare classifier.
            below: names of the parameters that wait.
            steps: how many optimiser steps they wait.
            rests: whether they rest in an optimiser step after these; never, if not given.

        Raises:
            ValueError: when nothing that trains lies below the head, or nothing else trains.
        """
        self.release()
        waiting, trained = _trained_below(model, below)
        if steps and not 0 < len(waiting) < trained:
            raise ValueError(
                f"head_steps={steps} trains the head first, but of {trained} trainable parameters "
                f"{len(waiting)} lie below it; set head_steps=0"
            )
        # By name: an engine that spreads parameters over processes puts others in their places.
        self._model, self._below, self.steps = model, set(below), steps
        self._rests = rests or _never

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if self._held or not (state.global_step < self.steps or self._rests(state.global_step)):
            return
        assert self._model is not None
        spread(self._model)  # an evaluation may have left whole parameters, which are not those that train
        self._held, _ = _trained_below(self._model, self._below)
        for parameter in self._held:
            parameter.requires_grad_(False)
        self.still = frozen_modules(self._model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.release()

    def release(self) -> None:
        """Let go of what a step held."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        for module in self.still:
            module.train()
        self._held, self.still = [], []

    def schedule(
        self, optimizer: torch.optim.Optimizer, after: LRScheduler, head: Sequence[nn.Parameter], learning_rate: float
    ) -> LambdaLR:
        """The schedule of the whole run: the head's rate falls linearly to zero in its own steps, then `after` begins.

        Args:
            optimizer: what is scheduled; the head has groups of its own in it.
            after: the schedule of the steps that follow, of the same optimiser.
            head: the parameters that train first.
            learning_rate: theirs in their own steps.

        Raises:
            ValueError: for a schedule that is no function of the step.
        """
        if not isinstance(after, LambdaLR):
            raise ValueError(
                f"head_steps needs a schedule that is a function of the step, not {type(after).__name__}; choose "
                "another lr_scheduler_type, or set head_steps=0"
            )
        first = {id(parameter) for parameter in head}
        factors = [
            _factor(
                self.steps,
                learning_rate / float(base) if base and any(id(p) in first for p in group["params"]) else 0.0,
                then,
            )
            for group, base, then in zip(optimizer.param_groups, after.base_lrs, after.lr_lambdas, strict=True)
        ]
        return LambdaLR(optimizer, factors)


def _never(step: int) -> bool:
    return False


def _trained_below(model: nn.Module, below: Iterable[str]) -> tuple[list[nn.Parameter], int]:
    """The trainable parameters among the named ones, and how many there are in all."""
    names = set(below)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [parameter for name, parameter in trained.items() if name in names], len(trained)


def _factor(steps: int, start: float, then: Any) -> Any:
    def factor(step: int) -> float:
        return start * (1 - step / steps) if step < steps else then(step - steps)

    return factor
