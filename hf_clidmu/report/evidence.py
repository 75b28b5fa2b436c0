"""What is known of every sample and its label: from one pass of a model over the data, and from the ledger of a run.

Shape suffixes: N samples, C classes, D features, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.data._rows import name_rows
from hf_clidmu.divergence import nearest


if TYPE_CHECKING:
    import pandas
    import pyarrow

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: The least probability that anything is given: a model that is sure has not seen everything.
FLOOR = 1e-6

#: Ridge penalty of the linear opinions per sample, for features of variance one.
PENALTY = 0.25

#: Columns of a ledger that are read, and what they are called in a report.
LEDGER_COLUMNS = {
    "label_score": "mean_probability",
    "margin": "area_under_margin",
    "agreement": "agreement",
    "times_forgotten": "times_forgotten",
    "weight": "weight",
}


@dataclass(frozen=True)
class Linear:
    """What ridge regression on some features says of every sample, fitted without the sample itself.

    Attributes:
        model_NC: of the model's probabilities; scores around 0..1, not normalised.
        labels_NC: of the given labels.
    """

    model_NC: FloatArray
    labels_NC: FloatArray

    @property
    def both_NC(self) -> FloatArray:
        """The mean of the two."""
        return (self.model_NC + self.labels_NC) / 2


@dataclass(frozen=True)
class Evidence:
    """Three opinions about every sample, and what a run remembers of its given label.

    Attributes:
        given_N: given labels, 0..C-1.
        log_own_NC: log probabilities of the classes by the model, at least `log(FLOOR)`.
        log_neighbour_NC: the same by its neighbours: the mean of their probabilities, weighted by CLID's feature
            graph. The sample itself has no part in it, so a label that was learnt by heart is not confirmed by itself.
        linear: what the model's features say.
        general: what general-purpose features say, which fewer labels have touched, or none; `linear` where there are
            no others.
        neighbour_labels_N: share of the neighbours, by the same weights, that were given the same label.
        ledger: columns of (N,) numbers, by the names of a report; empty where nothing was recorded. NaN for a sample
            that was never seen.
    """

    given_N: IntArray
    log_own_NC: FloatArray
    log_neighbour_NC: FloatArray
    linear: Linear
    general: Linear
    neighbour_labels_N: FloatArray
    ledger: Mapping[str, FloatArray]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.log_own_NC.shape[1]

    def __len__(self) -> int:
        return len(self.given_N)


def gather(
    labels: Any,
    logits: Any,
    features: Any,
    ledger: pandas.DataFrame | pyarrow.Table | None = None,
    neighbours: int = 10,
    general_features: Any = None,
) -> Evidence:
    """Evidence about the labels of a dataset, which is compared with itself in CLID's feature graph.

    Args:
        labels: (N,) given labels, 0..C-1.
        logits: (N, C) of a model that saw these labels, or did not; in evaluation mode, without augmentation.
        features: (N, D) inputs of its last layer, or any other features of the same samples. A tensor on a GPU is
            compared there, which takes N * N * D multiplications.
        ledger: of the run that trained the model: [`hf_clidmu.ledger.Ledger.table`] or its Parquet file, read.
        neighbours: K.
        general_features: (N, D') of the same samples, which fewer labels have touched: features that were trained on
            wrong labels know some of them by heart, those near the input fewer. Of [`hf_clidmu.precompute.encode`],
            `general_ND` above a frozen encoder, `middle_ND` otherwise.

    Raises:
        ValueError: when the arguments are not of the same samples, labels are outside 0..C-1, or numbers are not
            finite; the message names the rows.
    """
    logits_NC, features_ND = torch.as_tensor(logits), torch.as_tensor(features)
    labels_N = torch.as_tensor(labels)
    given = {"logits": logits_NC, "features": features_ND}
    if general_features is not None:
        given["general_features"] = torch.as_tensor(general_features)
    if labels_N.ndim != 1 or any(values.ndim != 2 for values in given.values()):
        shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in {"labels": labels_N, **given}.items())
        raise ValueError(f"a report needs labels (N,), logits (N, C) and features (N, D), got {shapes}")
    if any(len(values) != len(labels_N) for values in given.values()):
        rows = ", ".join(f"{len(values)} {name}" for name, values in {"labels": labels_N, **given}.items())
        raise ValueError(f"labels, logits and features must be of the same samples, got {rows}")
    if len(labels_N) < 2 or logits_NC.shape[1] < 2:
        raise ValueError(f"a report needs at least two samples and two classes, got logits of {tuple(logits_NC.shape)}")
    for name, values in given.items():
        broken = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"{name}: {name_rows(broken)}: not finite; was the model that gave them trained?")
    classes = logits_NC.shape[1]
    outside = ((labels_N < 0) | (labels_N >= classes)).nonzero().flatten().tolist()
    if outside or labels_N.is_floating_point():
        raise ValueError(f"labels must be integers in 0..{classes - 1}; {name_rows(outside) if outside else 'floats'}")

    index_NK, weight_NK = nearest(features_ND, neighbours)
    own_NC = F.softmax(logits_NC.double(), dim=1).to(features_ND.device)
    labels_N = labels_N.to(features_ND.device)
    same_NK = (labels_N[index_NK] == labels_N[:, None]).double()
    linear = _linear(features_ND, own_NC, labels_N)
    return Evidence(
        given_N=labels_N.cpu().numpy().astype(np.int64),
        log_own_NC=_log(own_NC),
        log_neighbour_NC=_log(_mean_of_neighbours(own_NC, index_NK, weight_NK.double())),
        linear=linear,
        general=linear if general_features is None else _linear(given["general_features"], own_NC, labels_N),
        neighbour_labels_N=(same_NK * weight_NK).sum(dim=1).cpu().numpy(),
        ledger={} if ledger is None else _of_ledger(ledger, labels_N.cpu().numpy()),
    )


def _linear(features_ND: Tensor, own_NC: Tensor, labels_N: Tensor) -> Linear:
    classes = own_NC.shape[1]
    target_NL = torch.cat([own_NC, F.one_hot(labels_N.long(), classes).double()], dim=1)
    said_NL = leave_one_out(features_ND, target_NL.to(features_ND.device)).cpu().numpy()
    return Linear(said_NL[:, :classes], said_NL[:, classes:])


def leave_one_out(features_ND: Tensor, target_NL: Tensor, penalty: float = PENALTY) -> Tensor:
    """What ridge regression on all other samples says of each: exact, at the cost of a single fit.

    Args:
        features_ND: features; scaled to unit norm as in CLID's graph, then to mean zero and overall variance one.
        target_NL: what is regressed.
        penalty: per sample; of the weights, not of the constant.

    Returns:
        (N, L), float64.
    """
    x_ND = F.normalize(features_ND.double(), dim=1)
    mean_D = x_ND.mean(dim=0)
    scale = (x_ND - mean_D).std().clamp(min=1e-12)
    x_ND = (x_ND - mean_D) / scale
    size = len(x_ND)
    gram_DD = x_ND.T @ x_ND + penalty * size * torch.eye(x_ND.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    solved_DN = torch.linalg.solve(gram_DD, x_ND.T)
    mean_L = target_NL.mean(dim=0)
    fitted_NL = x_ND @ (solved_DN @ (target_NL - mean_L)) + mean_L
    # A sample's share in its own fit; the constant, which is not penalised, adds 1/N.
    leverage_N1 = ((x_ND * solved_DN.T).sum(dim=1, keepdim=True) + 1 / size).clamp(max=1 - 1e-9)
    return (fitted_NL - leverage_N1 * target_NL) / (1 - leverage_N1)


def _mean_of_neighbours(own_NC: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    mean_NC = torch.zeros_like(own_NC)
    for index_N, weight_N in zip(index_NK.unbind(dim=1), weight_NK.unbind(dim=1), strict=True):
        mean_NC += weight_N[:, None] * own_NC[index_N]  # a neighbour at a time: never (N, K, C)
    return mean_NC


def _log(probability_NC: Tensor) -> FloatArray:
    return probability_NC.clamp(min=FLOOR).log().cpu().numpy()


def _of_ledger(ledger: pandas.DataFrame | pyarrow.Table, given_N: IntArray) -> dict[str, FloatArray]:
    frame = ledger if hasattr(ledger, "iloc") else ledger.to_pandas()
    needed = ["index", "given_label", *LEDGER_COLUMNS]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise ValueError(f"the ledger lacks {', '.join(missing)}: is it the ledger.parquet of a run?")
    rows = frame["index"].to_numpy()
    if len(rows) and not (0 <= rows.min() and rows.max() < len(given_N)):
        raise ValueError(
            f"the ledger speaks of row {rows.max() if rows.max() >= len(given_N) else rows.min()} of a dataset of "
            f"{len(given_N)} rows: it belongs to another one"
        )
    other = rows[frame["given_label"].to_numpy() != given_N[rows]].tolist()
    if other:
        raise ValueError(
            f"the ledger saw other labels than these ({name_rows(other)}): it belongs to another dataset, another "
            "order of its rows, or other injected noise"
        )
    columns = {}
    for source, name in LEDGER_COLUMNS.items():
        columns[name] = np.full(len(given_N), np.nan)
        columns[name][rows] = frame[source].to_numpy()
    return columns
