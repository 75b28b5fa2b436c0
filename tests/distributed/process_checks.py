"""What is checked inside every process of a group; each function gets the processes and asserts."""

import torch
from accelerate import Accelerator

from hf_clidmu.divergence import clid
from hf_clidmu.guard import Guard
from hf_clidmu.processes import Processes
from hf_clidmu.weighting import WeightingBatch, get_weighting


def run(name: str) -> None:
    globals()[name](Processes(Accelerator(cpu=True)))


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def averages_are_means_whatever_the_dtype(processes):
    rank, count = processes.index, processes.count
    given = [torch.full((2, 3), float(rank)), torch.tensor(2.0 * rank, dtype=torch.float64), torch.ones(0), rows(1, 4)]
    found = processes.average(given)
    mean = (count - 1) / 2
    assert torch.equal(found[0], torch.full((2, 3), mean)) and found[0].dtype == torch.float32
    assert found[1] == 2 * mean and found[1].dtype == torch.float64 and found[1].shape == ()
    assert found[2].shape == (0,) and torch.allclose(found[3], given[3])
    assert torch.equal(given[0], torch.full((2, 3), float(rank)))  # what was given stays


def rows_are_gathered_in_the_order_of_the_processes(processes):
    found = processes.gather(torch.arange(3) + 10 * processes.index)
    assert found.tolist() == [0, 1, 2, 10, 11, 12]
    assert processes.own(found).tolist() == (torch.arange(3) + 10 * processes.index).tolist()


def the_mean_of_gradients_is_that_of_the_objective_over_all_rows(processes):
    features_MD, logits_MC = rows(2, 8, 5), rows(3, 8, 4)
    weight_CC = rows(4, 4, 4)
    whole = weight_CC.clone().requires_grad_()
    expected = clid(features_MD, logits_MC @ whole)
    (expected_CC,) = torch.autograd.grad(expected, whole)
    own = weight_CC.clone().requires_grad_()
    gather = processes.gather_with_gradient
    value = clid(gather(processes.own(features_MD)), gather(processes.own(logits_MC) @ own))
    assert torch.equal(value, expected)
    (mean_CC,) = processes.average(list(torch.autograd.grad(value, own)))
    torch.testing.assert_close(mean_CC, expected_CC, rtol=1e-12, atol=1e-14)


def a_total_flows_back_to_all_twice(processes):
    # sum_r w_r^3 / (sum w)^2 over all processes, and the gradient of its gradient.
    own = torch.tensor(2.0 + processes.index, dtype=torch.float64, requires_grad=True)
    value = own**3 / processes.total(own) ** 2
    (gradient,) = torch.autograd.grad(value, own, create_graph=True)
    (second,) = torch.autograd.grad(gradient, own)
    whole = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    expected = (whole**3).sum() / whole.sum() ** 2
    (first_R,) = torch.autograd.grad(expected, whole, create_graph=True)
    (second_R,) = torch.autograd.grad(first_R.sum(), whole)
    torch.testing.assert_close(gradient, first_R[processes.index])
    torch.testing.assert_close(second, second_R[processes.index])


def a_flag_holds_only_where_it_holds_everywhere(processes):
    assert bool(processes.everywhere(torch.tensor(True)))
    assert not bool(processes.everywhere(torch.tensor(processes.index == 0)))


def an_error_of_the_first_is_one_everywhere(processes):
    def fails():
        raise ValueError(f"seen by process {processes.index}")

    try:
        processes.from_first(fails)
    except ValueError as error:
        assert str(error) == "seen by process 0"
    else:
        raise AssertionError("no error")
    assert processes.share(("a", processes.index)) == ("a", 0)
    assert processes.first_of(None if processes.index == 0 else "full") == "full"
    assert processes.first_of(None) is None


def a_weighting_that_differs_is_named(processes):
    state = {"weight": torch.zeros(3)}
    processes.check_identical("the weighting", state)
    state["weight"][1] = 1e-45 * processes.index  # one bit
    try:
        processes.check_identical("the weighting", state)
    except RuntimeError as error:
        assert str(error).startswith("the weighting differs between processes: process 1 from process 0. ")
    else:
        raise AssertionError("no error")


def what_one_process_finds_all_skip(processes):
    weighting = get_weighting("wnet", 3, 4)
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    weighting.processes = processes
    weighting.configure_optimizer("adam", 0.1, 0.0)
    guard = Guard(2, processes=processes)
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    batch = WeightingBatch(rows(5, 4, 3).float().requires_grad_(), rows(6, 4, 4).float(), torch.tensor([0, 1, 2, 0]))
    tangent_BC = rows(7, 4, 3).float() if processes.index == 0 else torch.full((4, 3), torch.nan)
    for step in range(3):
        average = guard.screen(torch.tensor(1.0), tangent_BC, weighting.optimizer)
        weighting.learn(batch, weighting.loss_gradient(batch), tangent_BC, 0.1, average)
        loss, weight_B = guard.loss(batch, weighting.real_loss)
        assert torch.isfinite(loss)
        guard.count(processes.gather(weight_B))
        assert guard.look(step) == (1 if step < 2 else 0)
        assert guard.is_broken == (step >= 1)
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())
