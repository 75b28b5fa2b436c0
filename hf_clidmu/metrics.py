"""How good the predictions are: the scores that runs report."""

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from transformers import EvalPrediction


def classification_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """Accuracy and macro F1, as a Trainer's `compute_metrics`.

    Args:
        prediction: logits (N, C), or a tuple that begins with them, and labels (N,).

    Returns:
        `accuracy` and `macro_f1`, both between 0 and 1.
    """
    from sklearn.metrics import f1_score

    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    predicted_N, labels_N = np.argmax(logits, axis=1), prediction.label_ids
    return {
        "accuracy": float((predicted_N == labels_N).mean()),
        "macro_f1": float(f1_score(labels_N, predicted_N, average="macro", zero_division=0)),
    }
