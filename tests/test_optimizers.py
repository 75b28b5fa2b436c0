"""Learning rates by part of the model."""

import pytest
import torch
from torch import nn

from hf_clidmu.optimizers import set_apart


def test_a_part_is_set_apart_and_keeps_its_weight_decay():
    layers = [nn.Linear(2, 2) for _ in range(3)]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5)
    set_apart(optimizer, [*layers[2].parameters(), nn.Parameter(torch.zeros(1))], 1e-3)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {id(layer.weight): (1e-3 if layer is layers[2] else 1e-5, 0.1) for layer in layers}
    expected |= {id(layer.bias): (1e-3 if layer is layers[2] else 1e-5, 0.0) for layer in layers}
    assert found == expected
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert scheduler.get_last_lr() == pytest.approx([5e-4, 5e-4, 5e-6, 5e-6])
