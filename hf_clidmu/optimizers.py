"""Param groups: a part of the model that learns at a rate of its own."""

from collections.abc import Iterable

import torch
from torch import nn


def set_apart(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
    """Give parameters of a fresh optimiser their own learning rate; all else about them stays as it was.

    To be called before a scheduler is made, which then scales both rates alike. Their groups come first: the rate that
    a Trainer logs is that of the first group.

    Args:
        optimizer: one that has not stepped yet.
        parameters: those to set apart; any that it does not hold are ignored.
        learning_rate: theirs.
    """
    apart = {id(parameter) for parameter in parameters}
    rest = list(optimizer.param_groups)
    for group in rest:
        moved = [parameter for parameter in group["params"] if id(parameter) in apart]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
    optimizer.param_groups[:] = [*optimizer.param_groups[len(rest) :], *(group for group in rest if group["params"])]
