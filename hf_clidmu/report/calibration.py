"""One score per sample, and what it means: P(label wrong).

The score is the log odds that the given label is wrong: the mean of the opinions, weighed with the classes that are
mistaken for one another, and with the ledger's margin where there is one. A logistic regression turns it into a
probability. It learns on labels that were made wrong on purpose: true classes are drawn from what the labels are
believed to be, then confused as the given labels seem to be, so that hard samples with right labels, too, are in it.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .confusion import Confusion, anchored_confusion, fit_confusion
from .evidence import FLOOR, Evidence, FloatArray, IntArray


#: Share of the transition matrix that is spread over all classes before it weighs opinions: what was not seen among
#: these samples is unlikely, not impossible.
SPREAD = 0.1

#: Weight of the ledger's margin in the score, where there is one; the opinions share the rest.
LEDGER_WEIGHT = 0.25

#: Labels above this probability are called wrong.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of every given label.

    Attributes:
        score_N: log odds that the label is wrong, before calibration; orders the samples.
        wrong_N: P(label wrong), increasing in the score.
        predicted_N: the class that the opinions favour, whatever the given label is.
        other_N: the class that is most likely if the label is wrong.
        other_share_N: its share of P(label wrong).
        confusion: the reading of the given labels behind it.
        power: AUROC of the score on labels made wrong on purpose; 0.5 is chance.
    """

    score_N: FloatArray
    wrong_N: FloatArray
    predicted_N: IntArray
    other_N: IntArray
    other_share_N: FloatArray
    confusion: Confusion
    power: float


def judge_labels(evidence: Evidence, seed: int = 0) -> Verdict:
    """Weigh the evidence about every given label.

    Args:
        evidence: see [`hf_clidmu.report.gather`].
        seed: of the labels that are made wrong.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    # Each reading is blind to something: the model's opinion was formed on these very labels, labels of others repeat
    # wrong ones that follow a rule, trained features know labels by heart, and those that were not trained see less.
    # Likelihood overlooks wrong labels where there are many; the surest samples, those that follow a rule. All err on
    # the side of too few: the one that sees most is heard.
    given_N = evidence.given_N
    trained, general = (fit_confusion(o, given_N) for o in (evidence.linear.model_NC, evidence.general.both_NC))
    readings = (
        trained,
        general,
        anchored_confusion(evidence.linear.both_NC, given_N),
        anchored_confusion(evidence.general.both_NC, given_N, general.belief_NC),
    )
    confusion = max(readings, key=lambda fit: float(fit.wrong(given_N).mean()))
    # Whatever tells how many labels are wrong, what was trained on them knows more of each.
    beliefs_NC = (np.log(trained.belief_NC + FLOOR) + np.log(confusion.belief_NC + FLOOR)) / 2
    opinion_NC = (evidence.log_own_NC + evidence.log_neighbour_NC + beliefs_NC) / 3
    log_confused_CC = np.log((1 - SPREAD) * confusion.transition_CC + SPREAD / evidence.num_classes)
    score_N, other_N, other_share_N = _odds(opinion_NC, log_confused_CC, evidence.given_N)

    made_given_N, made_wrong_N = make_wrong(confusion, np.random.default_rng(seed))
    made_score_N, _, _ = _odds(opinion_NC, log_confused_CC, made_given_N)
    if "area_under_margin" in evidence.ledger:
        score_N = _with_ledger(score_N, evidence.ledger["area_under_margin"])
    if made_wrong_N.all() or not made_wrong_N.any():  # nothing was confused: there is nothing to learn from
        wrong_N, power = np.full(len(evidence), made_wrong_N.mean()), float("nan")
    else:
        logistic = LogisticRegression(C=1e6).fit(made_score_N[:, None], made_wrong_N)
        wrong_N = logistic.predict_proba(score_N[:, None])[:, 1]
        power = float(roc_auc_score(made_wrong_N, made_score_N))
    return Verdict(score_N, wrong_N, opinion_NC.argmax(axis=1), other_N, other_share_N, confusion, power)


def make_wrong(confusion: Confusion, generator: np.random.Generator) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Labels that are made wrong as the given ones seem to be: the labels (N,), and which of them are wrong (N,)."""
    true_N = _draw(confusion.true_NC, generator)
    made_N = _draw(confusion.transition_CC[true_N], generator)
    return made_N, made_N != true_N


def _draw(probability_NC: FloatArray, generator: np.random.Generator) -> IntArray:
    cumulative_NC = probability_NC.cumsum(axis=1)
    point_N1 = generator.random((len(probability_NC), 1)) * cumulative_NC[:, -1:]
    return (cumulative_NC <= point_N1).sum(axis=1).clip(max=probability_NC.shape[1] - 1)


def _odds(
    opinion_NC: FloatArray, log_confused_CC: FloatArray, given_N: IntArray
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Log odds of a wrong label, the class that is likeliest then, and its share among the other classes."""
    rows = np.arange(len(given_N))
    joint_NC = opinion_NC + log_confused_CC.T[given_N]
    right_N = joint_NC[rows, given_N]
    joint_NC[rows, given_N] = -np.inf
    other_N = joint_NC.argmax(axis=1)
    wrong_N = np.logaddexp.reduce(joint_NC, axis=1)
    return wrong_N - right_N, other_N, np.exp(joint_NC[rows, other_N] - wrong_N)


def _with_ledger(score_N: FloatArray, margin_N: FloatArray) -> FloatArray:
    """The score with the ledger's say: by rank, for a margin has no scale that two runs would share."""
    seen = ~np.isnan(margin_N)
    rank_n = np.empty(int(seen.sum()), dtype=np.int64)
    rank_n[np.argsort(-margin_N[seen], kind="stable")] = np.arange(len(rank_n))
    mixed_N = score_N.copy()
    mixed_N[seen] = (1 - LEDGER_WEIGHT) * score_N[seen] + LEDGER_WEIGHT * np.sort(score_N[seen])[rank_n]
    return mixed_N
