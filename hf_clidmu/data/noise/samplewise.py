"""Noise in which the wrong label depends on what the sample looks like.

Shapes: N rows, D features, C classes, K classes that a weak model knows, n rows of a chunk.

Numbers. Here labels follow from floating-point sums, whose last bits differ between BLAS libraries. Rounding would move
the boundaries at which a label tips, not remove them; what makes labels agree is that the sums are in float64, where a
label tips with a chance of some 1e-12. Chunks of rows keep that affordable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .._rows import name_rows
from .record import FloatArray, IntArray, Labels, NoiseRecord, record_injection, start
from .rows import draw_by_class


#: Standard deviation of the rates of samples around the requested one (Xia et al. 2020).
RATE_DEVIATION = 0.1

#: The fewest rows of a class, if it has twice as many, on which a weak model is fitted.
MIN_WEAK_ROWS = 5

#: Inverse strength of the penalty of a weak model, for rows of length about 1. Measured on digits and on simulated
#: embeddings: at 1 the probabilities are so soft that the noise is nearly symmetric, at 100 they are focused, and their
#: log loss on rows not seen is less than half as high.
WEAK_PENALTY = 100.0

#: Numbers held in float64 at a time: 32 MiB.
CHUNK_VALUES = 2**22


def instance_dependent_noise(
    features_ND: npt.NDArray[Any],
    labels: Labels,
    num_classes: int,
    rate: float,
    seed: int,
    *,
    standardize: bool = True,
) -> tuple[IntArray, NoiseRecord]:
    """Change labels by a random linear function of the sample: similar samples of a class get similar wrong labels.

    Sample n has a rate q_n of its own, from a normal distribution around `rate` with deviation 0.1, truncated to
    [0, 1]. With probability 1 - q_n it keeps its label y_n; else it gets one of the others, drawn from the softmax over
    these of x_n W_{y_n}, where W_c is a (D, C) matrix of standard normal numbers for each class c. Source: Xia et al.,
    "Part-dependent Label Noise" (NeurIPS 2020).

    The truncation raises low rates, as in the source: on average 0.1 becomes 0.129, and 0.2 becomes 0.206. A rate of 0
    is no noise at all, unlike there.

    The longer x_n, the closer the softmax is to a single class. The source feeds pixels normalised by channel, of
    length about sqrt(D); `standardize` gives any features that length.

    Args:
        features_ND: (N, D) numbers, or (N, ...), which is flattened: pixels, embeddings. Not modified; converted to
            float64 a chunk at a time.
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0. Time grows with N * D * C, and with D * C * C.
        rate: Mean of the rates of samples before truncation, in [0, 1).
        seed: Seed of the rates, the matrices and the draw, a non-negative integer.
        standardize: Bring each feature to mean 0 and variance 1 over the N rows; a constant one becomes 0. `False`
            takes them as they are, such as pixels that are normalised by channel.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done; the achieved rate differs from the mean of the
        rates of samples by sampling error.

    Raises:
        TypeError: As `symmetric_noise`; or the features are not numbers.
        ValueError: As `symmetric_noise`; or the features are not one row per label, or not finite (the message names
            the rows).
    """
    clean_N, rng = start(labels, num_classes, rate, seed)
    columns = _Columns(features_ND, clean_N.size, standardize)
    noisy_N = clean_N.copy()
    if rate > 0:
        flipped = np.flatnonzero(rng.random(clean_N.size) < _sample_rates(rate, clean_N.size, rng))
        # Drawn for all rows, so that what one row gets does not depend on how many others changed.
        uniform_N = rng.random(clean_N.size)
        by_class = flipped[np.argsort(clean_N[flipped], kind="stable")]
        ends = np.cumsum(np.bincount(clean_N[flipped], minlength=num_classes))
        for label, rows in enumerate(np.split(by_class, ends[:-1])):
            if rows.size == 0:
                continue
            # A stream for each class: its matrix stays the same whichever other classes have rows.
            stream = np.random.SeedSequence(int(seed), spawn_key=(label,))
            projection_DC = np.random.Generator(np.random.PCG64(stream)).standard_normal((columns.width, num_classes))
            for chunk, features_nD in columns.chunks(rows, num_classes):
                logits_nC = features_nD @ projection_DC
                logits_nC[:, label] = -np.inf
                noisy_N[chunk] = _draw_columns(logits_nC, uniform_N[chunk])
    return record_injection("instance", rate, clean_N, noisy_N, seed, None, num_classes)


def feature_dependent_noise(
    features_ND: npt.NDArray[Any],
    labels: Labels,
    num_classes: int,
    rate: float,
    seed: int,
    *,
    share: float = 0.05,
    standardize: bool = True,
) -> tuple[IntArray, NoiseRecord]:
    """Change the labels that a weak model doubts, to classes with which it confuses them.

    A logistic regression is fitted on a small share of the clean rows, drawn by class. Its doubt about a row is the
    probability that it gives to all classes but the label. Exactly `round(rate * N)` rows are drawn without
    replacement, with probabilities proportional to their doubt, and each gets one of the other classes, drawn from the
    probabilities of these. Ambiguous samples thus get plausible wrong labels, as from a hurried annotator; works for
    embeddings of texts as for images. In the spirit of Algan and Ulusoy, "Label Noise Types and Their Effects on Deep
    Learning" (arXiv:2003.10471), whose model is a distilled network. The rows of the share are judged by a second
    model, fitted on another share: no model is asked about rows that it has seen.

    An iterative solver fits the models, so that other versions of scikit-learn or BLAS may change a few labels: keep
    the labels themselves where they must stay the same.

    Args:
        features_ND: (N, D) numbers, or (N, ...), which is flattened. Not modified.
        labels: (N,) integer labels in 0..C-1. Not modified.
        num_classes: C; at least 2 when `rate` is above 0.
        rate: Share of labels to make wrong, in [0, 1).
        seed: Seed of the shares and of the draw, a non-negative integer.
        share: Share of the rows of each class on which each of the two models is fitted, in (0, 0.5]; at least 5 rows
            of a class, or half of them where it has fewer than 10. A class of one row is unknown to the models, and
            that row is doubted most.
        standardize: As in `instance_dependent_noise`.

    Returns:
        The (N,) int64 noisy labels, and the record of what was done.

    Raises:
        TypeError: As `symmetric_noise`; or the features are not numbers.
        ValueError: As `symmetric_noise`; or the features are not one row per label or not finite, `share` is outside
            (0, 0.5], or fewer than two classes have two rows.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float, np.integer, np.floating)) or not 0 < share <= 0.5:
        raise ValueError(f"share must be a number in (0, 0.5], got {share!r}: two models need rows of their own.")
    clean_N, rng = start(labels, num_classes, rate, seed)
    columns = _Columns(features_ND, clean_N.size, standardize)
    noisy_N = clean_N.copy()
    num_flips = round(float(rate) * clean_N.size)
    if num_flips:
        log_doubt_N, wrong_N = _weak_opinions(columns, clean_N, num_classes, float(share), rng)
        # Gumbel noise on log weights: the k highest are a draw of k without replacement in proportion to the weights.
        scores_N = log_doubt_N + rng.gumbel(size=clean_N.size)
        flipped = np.argsort(-scores_N, kind="stable")[:num_flips]
        noisy_N[flipped] = wrong_N[flipped]
    return record_injection("feature", rate, clean_N, noisy_N, seed, None, num_classes)


def _sample_rates(rate: float, size: int, rng: np.random.Generator) -> FloatArray:
    """Draw from the normal distribution around `rate`, again where a draw is outside [0, 1]."""
    rates_N = rng.normal(float(rate), RATE_DEVIATION, size)
    while (outside := np.flatnonzero((rates_N < 0) | (rates_N > 1))).size:
        rates_N[outside] = rng.normal(float(rate), RATE_DEVIATION, outside.size)
    return rates_N


def _draw_columns(logits_nC: FloatArray, uniform_n: FloatArray) -> IntArray:
    """Draw a column for every row from the softmax of its logits; one of -inf is never drawn."""
    weights_nC = np.exp(logits_nC - logits_nC.max(axis=1, keepdims=True))
    cumulative_nC = np.cumsum(weights_nC, axis=1)
    # The first column above the threshold: one of weight 0 adds nothing, and so is never the first.
    return np.sum(cumulative_nC <= uniform_n[:, None] * cumulative_nC[:, -1:], axis=1)


def _weak_opinions(
    columns: _Columns, clean_N: IntArray, classes: int, share: float, rng: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    """Return the log doubt about each label, and a wrong label for each row, from a model that has not seen the row."""
    counts_C = np.bincount(clean_N, minlength=classes)
    size_C = np.minimum(np.maximum(np.rint(share * counts_C), MIN_WEAK_ROWS), counts_C // 2).astype(np.int64)
    if np.count_nonzero(size_C) < 2:
        raise ValueError(
            "feature noise fits a weak model, which needs at least 2 classes with 2 rows each; "
            f"labels has {np.count_nonzero(size_C)}."
        )
    drawn, place = draw_by_class(clean_N, 2 * size_C, rng)
    first_half = place < size_C[clean_N[drawn]]
    first, second = np.sort(drawn[first_half]), np.sort(drawn[~first_half])
    uniform_N = rng.random(clean_N.size)

    log_doubt_N, wrong_N = np.zeros(clean_N.size), clean_N.copy()
    for fitted, asked in ((first, np.setdiff1d(np.arange(clean_N.size), first)), (second, first)):
        known_K, weights_DK, bias_K = _fit_weak(columns, fitted, clean_N[fitted])
        column_C = np.full(classes, -1)
        column_C[known_K] = np.arange(known_K.size)
        for chunk, features_nD in columns.chunks(asked, known_K.size):
            logits_nK = features_nD @ weights_DK + bias_K
            all_n = np.logaddexp.reduce(logits_nK, axis=1)
            own_n = column_C[clean_N[chunk]]
            known = np.flatnonzero(own_n >= 0)
            logits_nK[known, own_n[known]] = -np.inf
            log_doubt_N[chunk] = np.logaddexp.reduce(logits_nK, axis=1) - all_n
            wrong_N[chunk] = known_K[_draw_columns(logits_nK, uniform_N[chunk])]
    return log_doubt_N, wrong_N


def _fit_weak(columns: _Columns, rows: IntArray, labels_n: IntArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Fit on `rows`; return the K classes seen, and weights and biases that give one logit for each."""
    from sklearn.linear_model import LogisticRegression

    # Rows of length about 1 give the penalty the same meaning for 50 features as for 3,000.
    scale = columns.width**-0.5
    features_nD = np.concatenate([features for _, features in columns.chunks(rows)]) * scale
    model = LogisticRegression(C=WEAK_PENALTY, tol=1e-6, max_iter=1000).fit(features_nD, labels_n)
    weights_DK, bias_K = model.coef_.T * scale, model.intercept_
    if model.classes_.size == 2:  # scikit-learn keeps one logit for two classes: that of the second over the first
        weights_DK, bias_K = np.hstack([0 * weights_DK, weights_DK]), np.array([0.0, bias_K[0]])
    return model.classes_.astype(np.int64), weights_DK, bias_K


class _Columns:
    """Features, checked, and given out in float64, standardised by column, a chunk of rows at a time."""

    def __init__(self, features: object, num_rows: int, standardize: bool) -> None:
        array = np.asarray(features)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"features must be an array of numbers, got an array of {array.dtype}.")
        if array.ndim < 2 or array.shape[0] != num_rows or array.size == 0:
            raise ValueError(
                f"features must be of shape (N, D), one row for each of the {num_rows} labels, got {array.shape}."
            )
        self.array_ND: npt.NDArray[Any] = array.reshape(num_rows, -1)
        self.width = self.array_ND.shape[1]
        self.offset_D, self.scale_D = np.zeros(self.width), np.ones(self.width)
        everything = np.arange(num_rows)
        self._check_finite(everything)
        if standardize:
            # Taken from the first row, a constant column is exactly 0, and no rounding error is blown up to 1.
            self.offset_D = self.array_ND[0].astype(np.float64)
            mean_D = sum((chunk.sum(axis=0) for _, chunk in self.chunks(everything)), np.zeros(self.width)) / num_rows
            self.offset_D += mean_D
            variance_D = sum(
                (np.square(chunk).sum(axis=0) for _, chunk in self.chunks(everything)), np.zeros(self.width)
            )
            deviation_D = np.sqrt(variance_D / num_rows)
            self.scale_D = np.where(deviation_D > 0, deviation_D, 1.0)

    def chunks(self, rows: IntArray, extra_width: int = 0) -> Iterator[tuple[IntArray, FloatArray]]:
        """Give `rows` in chunks, with their (n, D) features; `extra_width` more numbers a row are to be held."""
        step = max(1, CHUNK_VALUES // (self.width + extra_width))
        for begin in range(0, rows.size, step):
            chunk = rows[begin : begin + step]
            features_nD = self.array_ND[chunk].astype(np.float64)
            features_nD -= self.offset_D
            features_nD /= self.scale_D
            yield chunk, features_nD

    def _check_finite(self, rows: IntArray) -> None:
        if self.array_ND.dtype.kind != "f":
            return
        bad = [chunk[~np.isfinite(values).all(axis=1)] for chunk, values in self.chunks(rows)]
        bad_rows = np.concatenate(bad)
        if bad_rows.size:
            raise ValueError(f"features: {name_rows(bad_rows.tolist())}: not finite; mend or leave out these rows.")
