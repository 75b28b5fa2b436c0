"""When a report is not to be trusted, and why.

Each sign compares two things that were computed anyway; none of them reads a clean label.
"""

from __future__ import annotations

import numpy as np

from .calibration import Verdict
from .evidence import Evidence


#: AUROC on labels made wrong on purpose, below which nothing else is worth much.
LEAST_POWER = 0.75

#: Share of the disputed labels that the features themselves suggest: above, wrong labels follow a rule.
MOST_RULED = 0.5

#: Given labels that the model repeats beyond what its features foretell: above, it knows them by heart.
MOST_BY_HEART = 0.15

#: How far the share of contradicted labels may lie above the estimated noise rate.
MOST_UNDECIDED = 0.05

#: Rows of a class, below which nothing is said of its confusions.
FEWEST_ROWS = 20


def doubts(evidence: Evidence, verdict: Verdict, label_names: list[str]) -> list[str]:
    """Reasons not to trust a report, each a sentence or two; empty where nothing speaks against it."""
    given_N, own_N = evidence.given_N, evidence.log_own_NC.argmax(axis=1)
    contradicted_N = own_N != given_N
    contradicted, rate = float(contradicted_N.mean()), float(verdict.confusion.wrong(given_N).mean())
    found = []
    if verdict.power < LEAST_POWER:
        found.append(
            "The evidence hardly tells right labels from wrong ones: of labels made wrong on purpose it ranks "
            f"{_percent(verdict.power)} before right ones, where chance ranks 50 %. Start from a model that knows this "
            "kind of data."
        )
    if contradicted - rate > MOST_UNDECIDED:
        found.append(
            f"The model contradicts {_percent(contradicted)} of the labels, but {_percent(rate)} suffice to explain "
            "what it sees; the rest are hard samples, or labels that are wrong just where samples are hard. The noise "
            "rate may lie well above the estimate."
        )
    if contradicted_N.any():
        ruled = float((evidence.linear.labels_NC.argmax(axis=1) == given_N)[contradicted_N].mean())
        if ruled > MOST_RULED:
            found.append(
                f"{_percent(ruled)} of the labels that the model contradicts are what the labels of similar samples "
                "suggest: wrong labels seem to follow a rule. Where the model has learnt that rule, it does not "
                "contradict it: the noise rate is at least the estimated one."
            )
    by_heart = float((evidence.linear.model_NC.argmax(axis=1) != given_N).mean()) - contradicted
    if by_heart > MOST_BY_HEART:
        found.append(
            f"The model repeats {_percent(by_heart)} more of the given labels than its own features foretell: it "
            "knows them by heart. Use the checkpoint that CLID selected, or one of fewer epochs."
        )
    rows_C = np.bincount(given_N, minlength=evidence.num_classes)
    rare = [label_names[label] for label in np.flatnonzero(rows_C < FEWEST_ROWS)]
    if rare:
        names = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        found.append(f"Fewer than {FEWEST_ROWS} samples are labelled {names}: what is said of them rests on little.")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
