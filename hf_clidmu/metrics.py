"""How good predictions are, and how well wrong labels are found: the scores that runs and cards report.

Pure functions on arrays. As `evaluate.Metric`s they are in [`hf_clidmu.evaluate_metrics`].

Shape suffixes: N samples, C classes, D features.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt


if TYPE_CHECKING:
    from transformers import EvalPrediction

Array = npt.NDArray[Any]


def accuracy(predictions_N: Array, references_N: Array) -> float:
    """Share of predictions that are the reference."""
    _same_length(predictions_N, references_N)
    return float((predictions_N == references_N).mean())


def macro_f1(predictions_N: Array, references_N: Array) -> float:
    """Mean F1 of the classes that occur; 0 for a class that is never predicted."""
    from sklearn.metrics import f1_score

    _same_length(predictions_N, references_N)
    return float(f1_score(references_N, predictions_N, average="macro", zero_division=0))


def expected_calibration_error(probabilities_NC: Array, references_N: Array, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy, over bins of equal width in confidence, by their sizes.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    Args:
        probabilities_NC: (N, C), rows of sum one.
        references_N: (N,), true classes.
        bins: how many.
    """
    _same_length(probabilities_NC, references_N)
    confidence_N = probabilities_NC.max(axis=1)
    right_N = (probabilities_NC.argmax(axis=1) == references_N).astype(np.float64)
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)  # of a confidence on an edge: the lower
    size = np.bincount(bin_N, minlength=bins)
    gap = np.bincount(bin_N, right_N, bins) - np.bincount(bin_N, confidence_N, bins)
    return float(np.abs(gap).sum() / size.sum())


def clid_of(features_ND: Array, probabilities_NC: Array, temperature: float = 0.5) -> float:
    """Cross-Layer Information Divergence, see [`hf_clidmu.divergence.clid`]. Compare values at one N only.

    Args:
        features_ND: (N, D), inputs of the classifier's last layer.
        probabilities_NC: (N, C), rows of sum one.
        temperature: of the feature graph.
    """
    import torch

    from hf_clidmu.divergence import clid

    _same_length(features_ND, probabilities_NC)
    logits_NC = torch.from_numpy(np.asarray(probabilities_NC, dtype=np.float64)).clamp(min=1e-300).log()
    return float(clid(torch.from_numpy(np.asarray(features_ND, dtype=np.float64)), logits_NC, temperature))


def label_error_auroc(scores_N: Array, is_wrong_N: Array) -> float:
    """How well a score ranks wrong labels before right ones: area under the ROC curve, 0.5 for chance.

    Args:
        scores_N: (N,), high where the label is suspect.
        is_wrong_N: (N,), whether the given label is wrong.

    Raises:
        ValueError: when all are wrong, or none is.
    """
    from sklearn.metrics import roc_auc_score

    _same_length(scores_N, is_wrong_N)
    wrong_N = np.asarray(is_wrong_N, dtype=bool)
    if wrong_N.all() or not wrong_N.any():
        raise ValueError("the area under the ROC curve needs wrong labels and right ones")
    return float(roc_auc_score(wrong_N, scores_N))


#: Name of a score -> its function, and what its arguments are called where batches are collected.
SCORES: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "accuracy": (accuracy, ("predictions", "references")),
    "macro_f1": (macro_f1, ("predictions", "references")),
    "expected_calibration_error": (expected_calibration_error, ("probabilities", "references")),
    "clid": (clid_of, ("features", "probabilities")),
    "label_error_auroc": (label_error_auroc, ("scores", "is_wrong")),
}


def classification_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """Accuracy and macro F1, as a Trainer's `compute_metrics`.

    Args:
        prediction: logits (N, C), or a tuple that begins with them, and labels (N,).

    Returns:
        `accuracy` and `macro_f1`, both between 0 and 1.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    predicted_N, labels_N = np.argmax(logits, axis=1), np.asarray(prediction.label_ids)
    return {"accuracy": accuracy(predicted_N, labels_N), "macro_f1": macro_f1(predicted_N, labels_N)}


def _same_length(a: Array, b: Array) -> None:
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"a score needs as many of one as of the other, and some: got {len(a)} and {len(b)}")
