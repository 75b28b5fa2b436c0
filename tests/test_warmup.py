"""The warm-up ends after its steps, or when CLID has turned; a checkpoint takes it along."""

import pytest

from hf_clidmu.warmup import WarmUp


FALLING_THEN_RISING = [5.0, 4.0, 3.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]


def test_a_number_of_steps_is_that_number_whatever_clid_says():
    warmup = WarmUp(3)
    assert [warmup.is_over(step) for step in range(5)] == [False, False, False, True, True]
    assert not any(warmup.see(step, [clid]) for step, clid in enumerate(FALLING_THEN_RISING))
    assert WarmUp().is_over(0)


def test_it_ends_when_the_mean_of_three_has_found_no_new_minimum_four_times():
    warmup = WarmUp(None)
    ended = [warmup.see(10 * number, [clid]) for number, clid in enumerate(FALLING_THEN_RISING)]
    # Means of three: 4, 3, 2.5 (evaluation 4), 2.5, 3, 3.5, 4: the fourth after the minimum is that of evaluation 8.
    assert ended == [number == 8 for number in range(10)]
    assert not warmup.is_over(79)
    assert warmup.is_over(80)


@pytest.mark.parametrize(
    "readings",
    [
        [5.0 - 0.1 * number for number in range(40)],
        [4.0, 2.0, 4.0, 2.0, 4.0, 1.9, 3.9, 1.8, 3.8, 1.7, 3.7, 1.6, 3.6],  # up and down, and down on the whole
    ],
)
def test_it_goes_on_as_long_as_clid_falls(readings):
    warmup = WarmUp(None)
    assert not any(warmup.see(step, [clid]) for step, clid in enumerate(readings))
    assert not warmup.is_over(10**9)


def test_a_rise_that_few_samples_make_is_no_turn():
    lowest, level = [2.0] * 4, [2.2, 1.9, 2.2, 1.9]  # a mean difference of 0.05, its standard error 0.087
    warmup = WarmUp(None)
    assert not any(warmup.see(step, reading) for step, reading in enumerate([lowest] * 3 + [level] * 20))
    rising = [2.5, 2.2, 2.5, 2.2]
    assert any(warmup.see(step, rising) for step in range(23, 26))


def test_a_rise_by_a_small_share_of_the_fall_is_no_turn():
    fall, small, large = [[5.0], [3.0], [3.0], [3.0]], [[3.3]] * 20, [[3.5]] * 7  # of a fall by 2
    warmup = WarmUp(None, share=0.2)
    assert not any(warmup.see(step, reading) for step, reading in enumerate([*fall, *small]))
    assert any(warmup.see(step, reading) for step, reading in enumerate(large, 24))


@pytest.mark.parametrize("stop", [0, 2, 5, 8, 9, 10])
def test_a_resumed_warm_up_ends_where_it_would_have(stop):
    whole, first, second = WarmUp(None), WarmUp(None), WarmUp(None)
    for step, clid in enumerate(FALLING_THEN_RISING):
        whole.see(step, [clid])
    for step, clid in enumerate(FALLING_THEN_RISING[:stop]):
        first.see(step, [clid])
    second.load(first.state())
    for step, clid in enumerate(FALLING_THEN_RISING[stop:], stop):
        second.see(step, [clid])
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        {"readings": ["a"]},
        {"readings": [[1.0]], "steps": "x"},
        {"readings": [[1.0], [1.0, 2.0]], "steps": None},
    ],
)
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(ValueError, match=r"warm-up|steps|reading"):
        WarmUp(None).load(state)
    fixed = WarmUp(3)
    fixed.load(state)
    assert fixed.steps == 3
