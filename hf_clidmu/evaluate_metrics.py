"""The scores of [`hf_clidmu.metrics`] as `evaluate.Metric`s: they load offline, take batches, and combine.

    metric = evaluate.combine([load_metric("accuracy"), load_metric("expected_calibration_error")])
    metric.add_batch(predictions=..., references=..., probabilities=...)

Importing this takes seconds, since it imports `evaluate`; the functions themselves are in [`hf_clidmu.metrics`].
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_clidmu.metrics import SCORES


_INTEGER, _REAL = datasets.Value("int32"), datasets.Value("float32")
_INPUTS = {
    "predictions": _INTEGER,
    "references": _INTEGER,
    "probabilities": datasets.Sequence(_REAL),
    "features": datasets.Sequence(_REAL),
    "scores": _REAL,
    "is_wrong": datasets.Value("bool"),
}


class _Score(evaluate.Metric):
    """A score of [`hf_clidmu.metrics`]; the names of its inputs are those of the function's arguments."""

    score = ""

    def _info(self) -> evaluate.MetricInfo:
        function, inputs = SCORES[self.score]
        return evaluate.MetricInfo(
            description=str(function.__doc__),
            citation="arXiv:2507.11807" if self.score == "clid" else "",
            inputs_description=", ".join(inputs),
            features=datasets.Features({name: _INPUTS[name] for name in inputs}),
        )

    def _compute(self, **columns: Any) -> dict[str, float]:
        function, inputs = SCORES[self.score]
        arrays = [np.asarray(columns.pop(name)) for name in inputs]
        return {self.score: function(*arrays, **columns)}


def load_metric(name: str) -> evaluate.Metric:
    """A metric by its name: one of `SCORES`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in SCORES:
        raise ValueError(f"unknown metric '{name}'; known: {', '.join(SCORES)}")
    return type(name, (_Score,), {"score": name, "__module__": __name__})()
