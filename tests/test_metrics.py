"""The scores, against numbers worked out by hand and against scikit-learn; as metrics of evaluate, offline."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import EvalPrediction

from hf_clidmu.divergence import clid
from hf_clidmu.metrics import (
    accuracy,
    classification_metrics,
    clid_of,
    expected_calibration_error,
    label_error_auroc,
    macro_f1,
)


PREDICTED, TRUE = np.array([0, 1, 1, 2, 0, 2]), np.array([0, 1, 0, 2, 0, 1])


def test_accuracy_and_macro_f1():
    assert accuracy(PREDICTED, TRUE) == 4 / 6
    assert macro_f1(PREDICTED, TRUE) == pytest.approx(np.mean([4 / 5, 1 / 2, 2 / 3]))
    logits = np.eye(3)[PREDICTED]
    for given in (logits, (logits, "hidden states")):
        found = classification_metrics(EvalPrediction(given, TRUE))
        assert found == {"accuracy": 4 / 6, "macro_f1": f1_score(TRUE, PREDICTED, average="macro")}


def test_calibration_error_by_hand():
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    # 0.9: half right, gap 0.4, two samples; 0.6: right, gap 0.4; 0.8: wrong, gap 0.8
    assert expected_calibration_error(probability, np.array([0, 1, 0, 0]), bins=10) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0
    assert expected_calibration_error(np.array([[0.5, 0.5]]), np.array([0]), bins=2) == pytest.approx(0.5)


def test_perfectly_calibrated_predictions_have_no_error():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 200_000)
    label = (generator.uniform(size=200_000) > confidence).astype(int)
    assert expected_calibration_error(np.stack([confidence, 1 - confidence], axis=1), label) < 0.01


def test_clid_is_that_of_the_trainer():
    generator = torch.Generator().manual_seed(0)
    features, logits = torch.randn(50, 8, generator=generator), torch.randn(50, 3, generator=generator)
    found = clid_of(features.numpy(), logits.softmax(dim=1).numpy(), temperature=0.3)
    assert found == pytest.approx(float(clid(features.double(), logits.double(), 0.3)), rel=1e-6)


def test_label_error_auroc():
    assert label_error_auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    with pytest.raises(ValueError, match="wrong labels and right ones"):
        label_error_auroc(np.array([0.1, 0.2]), np.array([1, 1]))


@pytest.mark.parametrize("function", [accuracy, macro_f1, label_error_auroc, clid_of, expected_calibration_error])
def test_lengths_must_agree(function):
    with pytest.raises(ValueError, match="got 2 and 3"):
        function(np.zeros((2, 2)), np.zeros((3, 2)))


def test_as_metrics_of_evaluate_they_load_offline_take_batches_and_combine():
    evaluate = pytest.importorskip("evaluate")
    from hf_clidmu.evaluate_metrics import load_metric

    probability = np.full((6, 3), 0.1) + 0.7 * np.eye(3)[PREDICTED]
    names = ["accuracy", "macro_f1", "expected_calibration_error"]
    metric = evaluate.combine([load_metric(name) for name in names])
    for rows in (slice(0, 4), slice(4, 6)):
        metric.add_batch(predictions=PREDICTED[rows], references=TRUE[rows], probabilities=probability[rows])
    found = metric.compute()
    expected = (accuracy(PREDICTED, TRUE), macro_f1(PREDICTED, TRUE), expected_calibration_error(probability, TRUE))
    assert list(found) == names
    assert list(found.values()) == pytest.approx(expected)
    auroc = load_metric("label_error_auroc").compute(scores=[0.1, 0.4, 0.35, 0.8], is_wrong=[False, False, True, True])
    assert auroc == {"label_error_auroc": 0.75}
    features = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    found = load_metric("clid").compute(features=features, probabilities=probability, temperature=0.3)
    assert found["clid"] == pytest.approx(clid_of(features, probability, 0.3), rel=1e-5)
    with pytest.raises(ValueError, match="unknown metric 'auc'; known: accuracy, macro_f1"):
        load_metric("auc")
