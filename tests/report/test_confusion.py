"""Noise rates and transition matrices, from opinions that are as good as they say."""

import numpy as np
import pytest

from hf_clidmu.report.confusion import fit_confusion, resampled


def drawn(transition_CC: np.ndarray, size: int = 4000, sure: float = 3.0, seed: int = 0):
    """Scores whose softmax (at `sure`) is the truth's probability, true classes, and given labels."""
    generator = np.random.default_rng(seed)
    score_NC = generator.normal(size=(size, len(transition_CC)))
    belief_NC = np.exp(sure * score_NC) / np.exp(sure * score_NC).sum(axis=1, keepdims=True)
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
    assert 2 < fit.sharpness < 4.5


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
