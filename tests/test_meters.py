"""Means between two logs."""

import math

import pytest
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


def test_values_that_are_not_finite_are_left_out():
    meters = Meters()
    for value in (1.0, math.nan, 3.0, math.inf):
        meters.add("a", torch.tensor(value))
    meters.add("b", torch.tensor(math.nan))
    taken = meters.take()
    assert taken["a"] == 2.0 and math.isnan(taken["b"])


def test_a_run_that_never_logs_does_not_keep_every_value(monkeypatch):
    monkeypatch.setattr("hf_clidmu.meters._KEPT", 4)
    meters = Meters()
    for value in range(10):
        meters.add("a", torch.tensor(float(value)))
        assert len(meters.state_dict().get("values of a", ())) < 4
    assert meters.take() == {"a": 4.5}


def test_the_state_goes_on_to_the_same_bits():
    values = torch.rand(11, generator=torch.Generator().manual_seed(0))
    whole, first, second = Meters(), Meters(), Meters()
    for value in values:
        whole.add("a", value)
    for value in values[:5]:
        first.add("a", value)
    second.load_state_dict(first.state_dict())
    for value in values[5:]:
        second.add("a", value)
    assert second.take() == whole.take()


def test_a_state_of_older_versions_and_one_that_is_none():
    meters = Meters()
    meters.load_state_dict({"a": torch.tensor([6.0, 2.0])})
    meters.add("a", torch.tensor(9.0))
    assert meters.take() == {"a": 5.0}
    with pytest.raises(ValueError, match="'a' is .* where a sum and a count belong"):
        meters.load_state_dict({"a": torch.tensor([1, 2])})
