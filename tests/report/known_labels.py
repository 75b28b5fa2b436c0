"""Samples of known classes with labels of known wrongness, and what an honest but imperfect model says of them."""

from dataclasses import dataclass

import numpy as np
import pandas

from hf_clidmu.report import LabelReport, label_report


NAMES = ["ant", "bee", "cat", "dog"]


@dataclass
class Known:
    """Gaussian classes; `true_N` is what no report may read."""

    features_ND: np.ndarray
    logits_NC: np.ndarray
    true_N: np.ndarray
    given_N: np.ndarray

    @property
    def wrong_N(self) -> np.ndarray:
        return self.given_N != self.true_N

    def report(self, **arguments) -> LabelReport:
        return label_report(self.given_N, self.logits_NC, self.features_ND, NAMES, **arguments)

    def ledger(self) -> pandas.DataFrame:
        """What a run would have recorded: the model's opinion with the noise of training in it."""
        noise_N = np.random.default_rng(9).normal(scale=0.5, size=len(self.given_N))
        own_N = self.logits_NC[np.arange(len(self.given_N)), self.given_N] + noise_N
        values = dict.fromkeys(("label_score", "margin", "agreement", "times_forgotten", "weight"), own_N)
        return pandas.DataFrame({"index": np.arange(len(own_N)), "given_label": self.given_N, **values})


def known(rate: float, kind: str = "symmetric", apart: float = 2.6, size: int = 1200, seed: int = 0) -> Known:
    """Classes `apart` standard deviations apart, of which some overlap; `rate` of the labels wrong."""
    generator = np.random.default_rng(seed)
    classes, width = len(NAMES), 12
    true_N = generator.integers(classes, size=size)
    centre_CD = apart * np.eye(classes, width) + 1.0
    features_ND = centre_CD[true_N] + generator.normal(size=(size, width))
    logits_NC = features_ND @ centre_CD.T - (centre_CD**2).sum(axis=1) / 2  # the posterior itself
    flipped = generator.permutation(size)[: round(rate * size)]
    step_n = 1 if kind == "next" else generator.integers(1, classes, size=len(flipped))
    given_N = true_N.copy()
    given_N[flipped] = (given_N[flipped] + step_n) % classes
    return Known(features_ND, logits_NC, true_N, given_N)
