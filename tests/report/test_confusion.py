"""Noise rates and transition matrices, from opinions that are as good as they say."""

import numpy as np
import pytest

from hf_clidmu.report.confusion import anchored_confusion, fit_confusion, resampled


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    return np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)


def drawn(transition_CC: np.ndarray, size: int = 4000, sure: float = 3.0, seed: int = 0):
    """Scores whose softmax (at `sure`) is the truth's probability, true classes, and given labels."""
    generator = np.random.default_rng(seed)
    score_NC = generator.normal(size=(size, len(transition_CC)))
    belief_NC = softmax(sure * score_NC)
    true_N = (belief_NC.cumsum(axis=1) < generator.random((size, 1))).sum(axis=1)
    given_N = (transition_CC[true_N].cumsum(axis=1) < generator.random((size, 1))).sum(axis=1)
    return score_NC, true_N, given_N


@pytest.mark.parametrize(
    "transition",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]],
        [[0.7, 0.3, 0.0], [0.0, 0.95, 0.05], [0.4, 0.0, 0.6]],
    ],
)
def test_the_matrix_and_the_rate_are_found(transition):
    transition_CC = np.array(transition)
    score_NC, true_N, given_N = drawn(transition_CC)
    fit = fit_confusion(score_NC, given_N)
    np.testing.assert_allclose(fit.transition_CC.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(fit.transition_CC, transition_CC, atol=0.06)
    assert abs(fit.wrong(given_N).mean() - (given_N != true_N).mean()) < 0.03
    assert abs(fit.belief_NC.max(axis=1).mean() - softmax(3.0 * score_NC).max(axis=1).mean()) < 0.05


def test_errors_of_the_opinion_are_not_taken_for_wrong_labels():
    score_NC, true_N, given_N = drawn(np.eye(3), sure=2.0)
    assert (score_NC.argmax(axis=1) != given_N).mean() > 0.2
    assert fit_confusion(score_NC, given_N).wrong(given_N).mean() < 0.03


def test_the_interval_covers_the_truth_and_narrows_with_more_samples():
    transition_CC = np.array([[0.7, 0.3], [0.1, 0.9]])
    widths = []
    for size in (500, 4000):
        score_NC, true_N, given_N = drawn(transition_CC, size)
        fit = fit_confusion(score_NC, given_N)
        rate, (low_CC, high_CC) = resampled(fit, given_N, resamples=30, seed=0)
        assert rate.low <= rate.value <= rate.high
        assert rate.low - 0.02 <= (given_N != true_N).mean() <= rate.high + 0.02
        assert (low_CC <= high_CC).all()
        widths.append(rate.high - rate.low)
    assert widths[1] < 0.6 * widths[0]
    again, _ = resampled(fit, given_N, resamples=30, seed=0)
    assert again == rate


def test_a_class_that_nobody_has_keeps_its_own_row():
    score_NC, _, given_N = drawn(np.eye(2))
    score_NC = np.hstack([score_NC, np.full((len(score_NC), 1), -50.0)])
    fit = fit_confusion(score_NC, given_N)
    np.testing.assert_allclose(fit.transition_CC[2], [0, 0, 1], atol=1e-6)


# --- told by the surest samples --------------------------------------------------------------------------------------


def two_kinds(transition_CC: np.ndarray, size: int = 6000):
    """An opinion that knows the classes of most samples, and guesses at the rest with half as much to say."""
    generator = np.random.default_rng(1)
    classes = len(transition_CC)
    true_N = generator.integers(0, classes, size)
    knows_N = generator.random(size) < 0.7
    taken_N = np.where(knows_N | (generator.random(size) < 0.3), true_N, generator.integers(0, classes, size))
    opinion_NC = 0.02 * generator.normal(size=(size, classes))
    opinion_NC[np.arange(size), taken_N] += np.where(knows_N, 0.5, generator.uniform(0.1, 0.4, size))
    given_N = (transition_CC[true_N].cumsum(axis=1) < generator.random((size, 1))).sum(axis=1)
    return opinion_NC, true_N, given_N


@pytest.mark.parametrize("right", [1.0, 0.8, 0.6])
def test_the_surest_samples_tell_what_likelihood_overlooks(right):
    transition_CC = np.full((3, 3), (1 - right) / 2) + (right - (1 - right) / 2) * np.eye(3)
    opinion_NC, true_N, given_N = two_kinds(transition_CC)
    rate = (given_N != true_N).mean()
    fit = anchored_confusion(opinion_NC, given_N)
    assert abs(fit.wrong(given_N).mean() - rate) < 0.05
    np.testing.assert_allclose(fit.transition_CC, transition_CC, atol=0.06)
    np.testing.assert_allclose(fit.true_NC.sum(axis=1), 1, rtol=1e-12)
    if right == 0.6:
        assert fit_confusion(opinion_NC, given_N).wrong(given_N).mean() < rate - 0.06


def test_anchors_are_the_surest_of_each_class():
    opinion_NC = np.zeros((200, 2))
    opinion_NC[:120, 0] = np.arange(120) + 1.0
    opinion_NC[120:, 1] = np.arange(80) + 1.0
    given_N = np.array([0] * 120 + [1] * 80)
    fit = anchored_confusion(opinion_NC, given_N)
    assert fit.anchor_N is not None
    assert np.flatnonzero(fit.anchor_N == 0).tolist() == list(range(90, 120))
    assert np.flatnonzero(fit.anchor_N == 1).tolist() == list(range(180, 200))  # at least twenty
    given_N[[0, 119]] = 1  # one of them an anchor
    fit = anchored_confusion(opinion_NC, given_N)
    np.testing.assert_allclose(fit.transition_CC, [[30 / 31, 1 / 31], [0, 1]])  # and one imagined


def graded(errs_N: np.ndarray, noise: float):
    """A two-class opinion, the surest first, that errs so often; labels of which this share is wrong."""
    generator = np.random.default_rng(2)
    size = len(errs_N)
    true_N = generator.integers(0, 2, size)
    taken_N = np.where(generator.random(size) < errs_N, 1 - true_N, true_N)
    opinion_NC = np.zeros((size, 2))
    opinion_NC[np.arange(size), taken_N] = np.linspace(1, 0.01, size)
    return opinion_NC, np.where(generator.random(size) < noise, 1 - true_N, true_N)


def share_of_anchors(opinion_NC, given_N):
    return (anchored_confusion(opinion_NC, given_N).anchor_N >= 0).mean()


def test_anchors_are_many_where_labels_are_noisy_and_few_where_the_opinion_errs():
    never, falling_N = np.zeros(8000), np.where(np.arange(8000) < 800, 0.01, 0.1)
    assert share_of_anchors(*graded(never, 0.4)) == pytest.approx(0.25, abs=0.01)
    assert share_of_anchors(*graded(never, 0.0)) == pytest.approx(0.25, abs=0.01)
    opinion_NC, given_N = graded(falling_N, 0.0)  # clean labels, and the opinion errs more and more
    fit = anchored_confusion(opinion_NC, given_N)
    assert (fit.anchor_N >= 0).mean() == pytest.approx(0.1, abs=0.01)
    assert fit.wrong(given_N).mean() < 0.03
    # Its errors hardly count among many wrong labels, which it takes many to tell.
    opinion_NC, given_N = graded(falling_N, 0.4)
    fit = anchored_confusion(opinion_NC, given_N)
    assert (fit.anchor_N >= 0).mean() == pytest.approx(0.25, abs=0.01)
    assert abs(fit.wrong(given_N).mean() - 0.4) < 0.05


def test_a_belief_that_is_given_is_kept():
    opinion_NC, _, given_N = two_kinds(np.array([[0.7, 0.3], [0.1, 0.9]]))
    belief_NC = softmax(3.0 * opinion_NC)
    fit = anchored_confusion(opinion_NC, given_N, belief_NC)
    assert fit.belief_NC is belief_NC
    np.testing.assert_array_equal(fit.transition_CC, anchored_confusion(opinion_NC, given_N).transition_CC)


def test_intervals_rest_on_the_anchors_where_they_told():
    transition_CC = np.array([[0.7, 0.3], [0.1, 0.9]])
    opinion_NC, true_N, given_N = two_kinds(transition_CC)
    fit = anchored_confusion(opinion_NC, given_N)
    rate, (low_CC, high_CC) = resampled(fit, given_N, resamples=40, seed=0)
    assert rate.low <= rate.value <= rate.high and rate.high - rate.low < 0.1
    assert abs(rate.value - (given_N != true_N).mean()) < 0.05
    assert (low_CC <= fit.transition_CC).all() and (fit.transition_CC <= high_CC).all()
    assert (high_CC - low_CC).max() < 0.12


def test_a_class_that_nobody_is_taken_for_keeps_its_own_row():
    opinion_NC, _, given_N = two_kinds(np.eye(2))
    opinion_NC = np.hstack([opinion_NC, np.full((len(opinion_NC), 1), -50.0)])
    fit = anchored_confusion(opinion_NC, given_N)
    np.testing.assert_allclose(fit.transition_CC[2], [0, 0, 1], atol=1e-6)
