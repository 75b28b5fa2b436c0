"""Which classes are mistaken for which, estimated without a clean label.

A given label is read as a noisy record of what the model believes: P(given | sample) = sum_c P(c | sample) T[c, given].
The model's confidence and T are fitted together to the given labels, by maximum likelihood ([`fit_confusion`]). Where
samples exist about which the model is sure, they tell T; where the model is merely weak, unsure samples disagree and T
stays near the identity: that a model errs is no evidence that labels do. Where the model is as sure of many samples as
it can be, their likelihood hardly tells a weak opinion of right labels from a good one of wrong labels; what the surest
samples were given does ([`anchored_confusion`]).

Shape suffixes: N samples, C classes, R resamples. A transition matrix has a row per true class and a column per given
one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .evidence import FLOOR, FloatArray, IntArray


#: Factors that turn the opinion's scores into logits, all of which are tried.
SHARPNESS = np.geomspace(1.0, 40.0, 12)

#: Of the samples that are taken for a class, those that tell what its samples were given: the surest. The widest of
#: these shares up to which labels disagree no more often.
ANCHORS = (0.02, 0.05, 0.1, 0.15, 0.25)
_FEWEST_ANCHORS = 20
# More often: half as often again, and beyond chance by so many standard errors.
_AGAIN, _ERRORS = 1.5, 2.0
_LEAST_TELLING = 0.01  # how far agreement must tell right opinions from wrong ones

_STEPS = 30  # of expectation and maximisation for each sharpness; twice as many for the best
_OWN_COUNTS = 1.0  # imagined samples of each class whose label is right: a class nobody has keeps its own row
_RESAMPLING_STEPS = 10  # from the fit to all samples on
_START = 0.8  # labels that are right, to begin with: above one half, so that classes cannot change places


@dataclass(frozen=True)
class Confusion:
    """A fitted reading of the given labels.

    Attributes:
        transition_CC: T, rows sum to one.
        true_NC: P(true class | sample, given label), rows sum to one.
        belief_NC: P(true class | sample) before the given label is looked at, rows sum to one.
        anchor_N: the class whose row a sample told, -1 for none; None where all told all.
    """

    transition_CC: FloatArray
    true_NC: FloatArray
    belief_NC: FloatArray
    anchor_N: IntArray | None = None

    def wrong(self, given_N: IntArray) -> FloatArray:
        """P(given label wrong), (N,)."""
        return 1 - self.true_NC[np.arange(len(given_N)), given_N]


def fit_confusion(opinion_NC: FloatArray, given_N: IntArray) -> Confusion:
    """Read the given labels as a noisy record of an opinion.

    Args:
        opinion_NC: scores of the classes, of somebody who could not learn these very labels by heart.
        given_N: given labels.
    """
    fits = []
    for sharpness in SHARPNESS:
        belief_NC = _softmax(sharpness * opinion_NC)
        transition_CC, likelihood = _expectation_maximisation(belief_NC, given_N, _start(belief_NC.shape[1]), _STEPS)
        fits.append((likelihood, sharpness, transition_CC))
    _, sharpness, transition_CC = max(fits, key=lambda fit: fit[0])
    belief_NC = _softmax(sharpness * opinion_NC)
    transition_CC, _ = _expectation_maximisation(belief_NC, given_N, transition_CC, 2 * _STEPS)
    return Confusion(transition_CC, _true_classes(belief_NC, given_N, transition_CC), belief_NC)


def anchored_confusion(opinion_NC: FloatArray, given_N: IntArray, belief_NC: FloatArray | None = None) -> Confusion:
    """The same, T told by the samples about which the opinion is surest: their given labels, class by class.

    Errors of the opinion about those samples count as wrong labels; about all others they do not. (Anchor points,
    arXiv 1609.03683, many to a class.) So they are as many as there can be before the opinion errs more often: where
    labels are noisy it takes many to tell, and among clean ones few do.

    Args:
        opinion_NC: scores of the classes, see [`fit_confusion`].
        given_N: given labels.
        belief_NC: P(true class | sample), rows sum to one. None reads it off the labels: how often they agree with the
            opinion tells, given T, how often it is right, at every margin, so confidence need not have the shape of a
            softmax.
    """
    anchor_N = _anchors(opinion_NC, given_N)
    transition_CC = _given_to(anchor_N, given_N, np.ones(len(given_N)), opinion_NC.shape[1])
    if belief_NC is None:
        softmax_NC = max(
            (_softmax(sharpness * opinion_NC) for sharpness in SHARPNESS),
            key=lambda belief_NC: float(np.log((belief_NC * transition_CC.T[given_N]).sum(axis=1)).mean()),
        )
        belief_NC = _calibrated(softmax_NC, _margin(opinion_NC), given_N, transition_CC)
    return Confusion(transition_CC, _true_classes(belief_NC, given_N, transition_CC), belief_NC, anchor_N)


def _calibrated(
    belief_NC: FloatArray, margin_N: FloatArray, given_N: IntArray, transition_CC: FloatArray
) -> FloatArray:
    """The belief, with that in the favoured class a rising function of the margin; the others keep their shares."""
    from sklearn.isotonic import IsotonicRegression

    rows, favoured_N = np.arange(len(belief_NC)), belief_NC.argmax(axis=1)
    rest_NC = belief_NC + FLOOR
    rest_NC[rows, favoured_N] = 0
    rest_NC /= rest_NC.sum(axis=1, keepdims=True)
    # Labels agree with an opinion that is right, and by accident with one that is wrong.
    right_N = transition_CC[favoured_N, favoured_N]
    accident_N = (rest_NC * transition_CC.T[favoured_N]).sum(axis=1)
    tells_N = np.maximum(right_N - accident_N, _LEAST_TELLING)
    isotonic = IsotonicRegression(y_min=1 / belief_NC.shape[1], y_max=1 - FLOOR)
    share_N = isotonic.fit_transform(
        margin_N, ((given_N == favoured_N) - accident_N) / tells_N, sample_weight=tells_N**2
    )
    calibrated_NC = rest_NC * (1 - share_N)[:, None]
    calibrated_NC[rows, favoured_N] = share_N
    return calibrated_NC


def _margin(opinion_NC: FloatArray) -> FloatArray:
    two_N2 = np.partition(opinion_NC, -2, axis=1)[:, -2:]
    return two_N2[:, 1] - two_N2[:, 0]


def _anchors(opinion_NC: FloatArray, given_N: IntArray) -> IntArray:
    """The class that a sample is taken for, where it is among the surest of that class; -1 elsewhere.

    Shares are widened from the narrowest on, until labels disagree with the opinion more often in what is added: noise
    alone makes them disagree as often everywhere. (Lepski's rule for a bias that grows while the variance falls.) That
    labels of people are wrong a little more often where samples are harder does not stop it.
    """
    margin_N, predicted_N = _margin(opinion_NC), opinion_NC.argmax(axis=1)
    order_N = np.lexsort((-margin_N, predicted_N))  # class by class, the surest first
    counts_C = np.bincount(predicted_N, minlength=opinion_NC.shape[1])
    place_N = np.empty(len(order_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(order_N)) - np.repeat(counts_C.cumsum() - counts_C, counts_C)

    def surest(share: float) -> npt.NDArray[np.bool_]:
        return place_N < np.maximum((share * counts_C).astype(np.int64), _FEWEST_ANCHORS)[predicted_N]

    disagrees_N, chosen_N = given_N != predicted_N, surest(ANCHORS[0])
    for share in ANCHORS[1:]:
        wider_N = surest(share)
        if _are_more_often(disagrees_N[wider_N & ~chosen_N], disagrees_N[chosen_N]):
            break
        chosen_N = wider_N
    return np.where(chosen_N, predicted_N, -1)


def _are_more_often(these: npt.NDArray[np.bool_], than_those: npt.NDArray[np.bool_]) -> bool:
    """Whether something is the case in one sample half as often again as in another, and more often beyond chance."""
    if not len(these) or not len(than_those):
        return False
    pooled = np.concatenate([these, than_those]).mean()
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(these) + 1 / len(than_those)))
    return bool(these.mean() > max(_AGAIN * than_those.mean(), than_those.mean() + _ERRORS * error))


def _given_to(anchor_N: IntArray, given_N: IntArray, times_N: FloatArray, classes: int) -> FloatArray:
    """What the anchors of each class were given, (C, C); rows sum to one."""
    counts_CC, chosen_N = _OWN_COUNTS * np.eye(classes), anchor_N >= 0
    np.add.at(counts_CC, (anchor_N[chosen_N], given_N[chosen_N]), times_N[chosen_N])
    return counts_CC / counts_CC.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it: what other samples of the same kind would have said."""

    value: float
    low: float
    high: float


def resampled(confusion: Confusion, given_N: IntArray, resamples: int, seed: int) -> tuple[Interval, FloatArray]:
    """How far the noise rate and the transition matrix depend on which samples happen to be there (bootstrap).

    Args:
        confusion: the fit to all samples.
        given_N: given labels.
        resamples: R.
        seed: of the resampling.

    Returns:
        The noise rate with its interval, and the interval of the transition matrix, (2, C, C): low, high.
    """
    generator = np.random.default_rng(seed)
    size = len(given_N)
    rate_R, transition_RCC = [], []
    for _ in range(resamples):
        times_N = generator.multinomial(size, np.full(size, 1 / size)).astype(np.float64)
        if confusion.anchor_N is not None:
            transition_CC = _given_to(confusion.anchor_N, given_N, times_N, len(confusion.transition_CC))
        else:
            transition_CC, _ = _expectation_maximisation(
                confusion.belief_NC, given_N, confusion.transition_CC, _RESAMPLING_STEPS, times_N
            )
        true_NC = _true_classes(confusion.belief_NC, given_N, transition_CC)
        rate_R.append(1 - float(times_N @ true_NC[np.arange(size), given_N]) / size)
        transition_RCC.append(transition_CC)
    value = float(confusion.wrong(given_N).mean())
    low, high = np.quantile(rate_R, (0.025, 0.975))
    # Quantiles of few resamples may leave the estimate itself outside.
    interval = Interval(value, min(float(low), value), max(float(high), value))
    return interval, np.quantile(transition_RCC, (0.025, 0.975), axis=0)


def _start(classes: int) -> FloatArray:
    transition_CC = np.full((classes, classes), (1 - _START) / (classes - 1))
    np.fill_diagonal(transition_CC, _START)
    return transition_CC


def _expectation_maximisation(
    belief_NC: FloatArray,
    given_N: IntArray,
    transition_CC: FloatArray,
    steps: int,
    times_N: FloatArray | None = None,
) -> tuple[FloatArray, float]:
    classes = belief_NC.shape[1]
    order = np.argsort(given_N, kind="stable")
    belief_NC, given_N = belief_NC[order], given_N[order]
    times_N = np.ones(len(order)) if times_N is None else times_N[order]
    present, starts = np.unique(given_N, return_index=True)
    likelihood = -np.inf
    for _ in range(steps):
        joint_NC = belief_NC * transition_CC.T[given_N]
        total_N = joint_NC.sum(axis=1)
        likelihood = float(np.average(np.log(total_N), weights=times_N))
        counts_CC = _OWN_COUNTS * np.eye(classes)
        counts_CC[:, present] += np.add.reduceat(joint_NC * (times_N / total_N)[:, None], starts, axis=0).T
        transition_CC = counts_CC / counts_CC.sum(axis=1, keepdims=True)
    return transition_CC, likelihood


def _true_classes(belief_NC: FloatArray, given_N: IntArray, transition_CC: FloatArray) -> FloatArray:
    joint_NC = belief_NC * transition_CC.T[given_N]
    return joint_NC / joint_NC.sum(axis=1, keepdims=True)


def _softmax(logits_NC: FloatArray) -> FloatArray:
    weight_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return weight_NC / weight_NC.sum(axis=1, keepdims=True)
