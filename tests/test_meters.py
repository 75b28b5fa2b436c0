"""Means between two logs."""

import torch

from hf_clidmu.meters import Meters


def test_means_since_the_last_call():
    meters = Meters()
    assert meters.take() == {}
    for value in (1.0, 2.0, 6.0):
        meters.add("a", torch.tensor(value, requires_grad=True))
    meters.add("b", torch.tensor(5.0))
    assert meters.take() == {"a": 3.0, "b": 5.0}
    assert meters.take() == {}
