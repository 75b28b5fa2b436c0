"""The judge of a run: CLID of the present model on one fixed set of samples, without their labels.

Shape suffixes: N judging samples, K chunks of them, C classes, D features.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clidmu.batches import Collator, is_stream
from hf_clidmu.classifier import ClassifierTap, forked_random_state
from hf_clidmu.divergence import centred, certain, chunks, clid, shuffled_clid
from hf_clidmu.precompute import checked_features, encode
from hf_clidmu.state import real_number, real_numbers


logger = logging.getLogger(__name__)

#: Below this t-value a state's CLID cannot be told from that of its predictions in random order.
MINIMUM_ALIGNMENT = 3.0
#: Below this share of the clustering that the features have, the classes are not what the features are about.
MINIMUM_SHARE = 0.4
_SAMPLES_PER_CLUSTER = 10  # k-means of fewer finds clusters in anything
#: Features that train along change CLID by themselves: a rise by less than this share of what it has fallen by before
#: is no rise.
LEARNING_SHARE = 0.3
#: Samples that judge, where nobody said how many; the latter where a frozen backbone leaves little to compute.
JUDGES, MORE_JUDGES = 1000, 4000
#: Of an evaluation set that is taken unasked: CLID of fewer samples is mostly chance.
FEWEST_JUDGES = 200


def judges_evaluation_samples(source: str, eval_dataset: Any, by_pretrained: bool) -> bool:
    """Whether evaluation samples judge, rather than training samples.

    Args:
        source: `eval`, `train`, or `auto`: evaluation samples where the features train along, and enough are there.
        eval_dataset: what was given for evaluation.
        by_pretrained: whether the features are those of the pretrained model.
    """
    if source != "auto":
        return source == "eval"
    if eval_dataset is None or isinstance(eval_dataset, dict) or is_stream(eval_dataset):
        return False
    return len(eval_dataset) >= FEWEST_JUDGES and not by_pretrained


@dataclass
class Judge:
    """Measures CLID the same way each time: evaluation mode, fixed samples in a fixed order, fixed chunks.

    Args:
        tap: reads the model.
        dataset: map-style; its evaluation view is used where it has one.
        rows: the samples that judge, in the order in which they are compared.
        collate: makes a batch of samples.
        batch_size: samples a forward.
        temperature: of CLID's feature graph.
        features_ND: fixed features of these rows for the feature graph (those of the pretrained model), or None for
            the model's own.
        chunk_size: samples compared with one another; CLID of different chunk sizes cannot be compared.
        by_class: compare the predicted classes ([`certain`]) rather than the probabilities.
        centred: take their mean over the rows off the features.
    """

    tap: ClassifierTap
    dataset: Any
    rows: list[int]
    collate: Collator
    batch_size: int
    temperature: float
    features_ND: Tensor | None = None
    chunk_size: int = 100
    by_class: bool = True
    centred: bool = True
    _attainable: float | None = field(default=None, init=False, repr=False)

    def clid(self, model: nn.Module, device: torch.device) -> float:
        """CLID of the model as it is. Changes neither the model nor any random state."""
        return self.read(model, device).clid

    def read(self, model: nn.Module, device: torch.device) -> "Reading":
        """CLID of the model as it is, and how far it is from chance. Changes neither model nor any random state."""
        with forked_random_state(device):
            seen = encode(model, self.tap, self.dataset, self.collate, self.batch_size, device, rows=self.rows)
        features_ND = seen.features_ND if self.features_ND is None else self.features_ND
        if self.centred:
            features_ND = centred(features_ND)
        logits_NC = certain(seen.logits_NC) if self.by_class else seen.logits_NC
        clid_K, gain_K = self._clid_and_gain(features_ND, logits_NC)
        share = float(gain_K.mean()) / self._attainable_gain(features_ND, logits_NC.shape[1])
        return Reading(tuple(clid_K.tolist()), _t_value(gain_K), share)

    def _clid_and_gain(self, features_ND: Tensor, logits_NC: Tensor) -> tuple[Tensor, Tensor]:
        """CLID of each chunk, and how far it lies below that of the same predictions in random order, (K,) each."""
        parts = [(features_ND[chunk], logits_NC[chunk]) for chunk in chunks(len(logits_NC), self.chunk_size)]
        clid_K = torch.stack([clid(*part, self.temperature) for part in parts])
        return clid_K, torch.stack([shuffled_clid(*part, self.temperature) for part in parts]) - clid_K

    def _attainable_gain(self, features_ND: Tensor, num_labels: int) -> float:
        """What the fixed features' own clusters, one a class, gain; computed once, NaN where there is no telling."""
        if self.features_ND is None or not self.by_class:
            return math.nan
        if self._attainable is None:
            self._attainable = math.nan
            if len(features_ND) >= _SAMPLES_PER_CLUSTER * num_labels and features_ND.isfinite().all():
                clusters_NC = F.one_hot(_clusters(features_ND, num_labels), num_labels).to(features_ND.dtype)
                gain = float(self._clid_and_gain(features_ND, certain(clusters_NC))[1].mean())
                self._attainable = gain if gain > 0 else math.nan
        return self._attainable

    def state_dict(self) -> dict[str, Tensor]:
        """The fixed features, of the model before training: a resumed run no longer has it."""
        return {} if self.features_ND is None else {"features": self.features_ND}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Judge by the features of a checkpoint.

        Raises:
            ValueError: when they are not those of these rows.
        """
        self.features_ND = checked_features(state, len(self.rows))
        self._attainable = None


@dataclass(frozen=True)
class Reading:
    """What the judge says of a state.

    Attributes:
        clid_K: CLID of each chunk.
        alignment: t-value over the chunks of how far CLID lies below that of the same predictions in random order;
            near zero, features and predictions have nothing to do with one another. NaN for a single chunk.
        share: how far CLID lies below that of the same predictions in random order, as a share of what the features'
            own clusters (k-means, one a class) reach: near one, the classes are those clusters. NaN where the features
            train along, where probabilities are compared, and for fewer than 10 samples a class.
    """

    clid_K: tuple[float, ...]
    alignment: float
    share: float = math.nan

    @property
    def clid(self) -> float:
        """Mean over the chunks."""
        return fmean(self.clid_K)


def is_higher(clid_K: Sequence[float], lowest_K: Sequence[float], tolerance: float, margin: float = 0.0) -> bool:
    """Whether one state's CLID lies above another's by more than the samples that judge could have made it so.

    Both states were judged by the same chunks, so the differences between them count, chunk by chunk.

    Args:
        clid_K: of the one state, chunk by chunk.
        lowest_K: of the other.
        tolerance: standard errors of the mean difference; 0 asks for any difference.
        margin: a difference that does not count either.
    """
    difference_K = torch.tensor(clid_K, dtype=torch.float64) - torch.tensor(lowest_K, dtype=torch.float64)
    error = float(difference_K.std()) / math.sqrt(len(difference_K)) if len(difference_K) > 1 else 0.0
    return float(difference_K.mean()) > max(tolerance * error, margin)


class Levels:
    """CLID of a run's states, where states that cannot be told from the lowest so far stand level with it.

    Args:
        tolerance: standard errors of the difference within which they cannot.
        share: nor can they within this share of what CLID has fallen by since the first state.

    All states stand level until one of the lowest has [`MINIMUM_SHARE`] of the clustering that its features allow: CLID
    says before what the features are about, and that is not the classes.

    Attributes:
        first_K: CLID of the first state, chunk by chunk; empty before there is one.
        lowest_K: of the lowest state so far.
        clustering: the largest share of the features' clustering that a lowest state has had ([`Reading.share`]).
    """

    def __init__(self, tolerance: float = 0.0, share: float = 0.0):
        self.tolerance, self.share = tolerance, share
        self.first_K: tuple[float, ...] = ()
        self.lowest_K: tuple[float, ...] = ()
        self.clustering = math.nan

    @property
    def is_blind(self) -> bool:
        """Whether the classes are not what the features are about."""
        return self.clustering < MINIMUM_SHARE

    def see(self, reading: Reading) -> float:
        """Hear of a state; returns its CLID, or that of the lowest so far if it is level with that.

        Where all states stand level, that of the first.
        """
        clid_K = reading.clid_K
        self.first_K = self.first_K or clid_K
        if not self.lowest_K or fmean(clid_K) < fmean(self.lowest_K):
            self.lowest_K = clid_K
            if not reading.share <= self.clustering:  # either may be NaN
                self.clustering = reading.share
        lowest = fmean(self.lowest_K)
        if self.is_blind:
            return fmean(self.first_K)  # never below the lowest: the first state that CLID can tell ranks before these
        margin = self.share * (fmean(self.first_K) - lowest)
        return fmean(clid_K) if is_higher(clid_K, self.lowest_K, self.tolerance, margin) else lowest

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        clustering = self.clustering if math.isfinite(self.clustering) else None
        return {"first": list(self.first_K), "lowest": list(self.lowest_K), "clustering": clustering}

    def load(self, values: Any) -> None:
        """Go on from [`state`].

        Raises:
            ValueError: when it is none.
        """
        if not isinstance(values, Mapping):
            raise ValueError("the checkpoint does not say how low CLID has been")
        self.first_K, self.lowest_K = real_numbers(values, "first"), real_numbers(values, "lowest")
        if len(self.first_K) != len(self.lowest_K):
            raise ValueError("the first and the lowest CLID of a checkpoint must be of the same chunks")
        self.clustering = real_number(values, "clustering")


def warn_of_chance(alignment: float, clustering: float = math.nan) -> None:
    """Say so when CLID could not select, or chance could have as well; NaN, where nothing was measured, says nothing.

    Args:
        alignment: of the selected state, see [`Reading`].
        clustering: see [`Levels`].
    """
    if clustering < MINIMUM_SHARE:
        logger.warning(
            "CLID did not select: the predicted classes have %.0f %% of the clustering that the features allow, so "
            "these features are about something else. All states of the run count alike, and the model is the latest "
            "(their mean with snapshot_mode='soup'). Compare it with others on labels that you trust, or start from a "
            "model that was trained to tell such classes apart.",
            100 * clustering,
        )
    elif alignment < MINIMUM_ALIGNMENT:
        logger.warning(
            "The selection is not to be trusted: CLID of the selected state is no better than that of its predictions "
            "in random order (t = %.1f). Features and classes have little in common here. Compare with the last step, "
            "or start from a model that knows this kind of data.",
            alignment,
        )


def _clusters(features_ND: Tensor, count: int) -> Tensor:
    """k-means of the features' directions: a cluster of each row, (N,)."""
    from sklearn.cluster import KMeans  # half a second that only a judge should pay

    unit_ND = F.normalize(features_ND.double(), dim=1).cpu().numpy()
    return torch.from_numpy(KMeans(count, n_init=3, random_state=0).fit_predict(unit_ND)).long()


def _t_value(values_K: Tensor) -> float:
    if len(values_K) < 2:
        return math.nan
    error = values_K.std() / math.sqrt(len(values_K))
    # Chunks that agree exactly (one class everywhere) have no error: nothing gained is then nothing, not infinity.
    return 0.0 if float(values_K.abs().max()) < 1e-6 else float(values_K.mean() / error.clamp(min=1e-12))
