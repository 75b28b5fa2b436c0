"""The datasets of a run as a frozen backbone sees them: each is encoded once, if there is such a backbone.

Shape suffixes: N samples, D features, K bytes of a digest.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_clidmu.batches import (
    CachedFeatures,
    Collator,
    IndexedDataset,
    SampleCollator,
    evaluation_view,
    fetch,
    labels_of,
    model_inputs,
)
from hf_clidmu.classifier import ClassifierTap, forked_random_state
from hf_clidmu.encoding_cache import EncodingCache, sample_digest, weights_digest
from hf_clidmu.precompute import Encoded, FrozenBackbone, encode, freeze_parameters


@dataclass
class FrozenEncoding:
    """What a frozen backbone makes of a whole dataset, row by row; the fields are those of [`Encoded`]."""

    cut_ND: Tensor
    general_ND: Tensor
    labels_N: Tensor | None = None

    def dataset(self) -> CachedFeatures:
        """Samples that hold what flows into the cut."""
        return CachedFeatures(self.cut_ND, self.labels_N)


class Encodings:
    """What a model's frozen part makes of each dataset, and the features of the model before training.

    Args:
        model: the bare classifier, before its first step.
        tap: reads it.
        backbone: its frozen part, or None where nothing can be stored.
        collate: makes a batch of samples.
        batch_size: samples a forward.
        device: where to compute.
        folder: keeps encodings between runs; None keeps none.
    """

    def __init__(
        self,
        model: nn.Module,
        tap: ClassifierTap,
        backbone: FrozenBackbone | None,
        collate: Collator,
        batch_size: int,
        device: torch.device,
        folder: str | Path | None = None,
    ):
        self.model, self.tap, self.backbone = model, tap, backbone
        self.folder = folder
        self._how = (collate, batch_size, device)
        self._encoded: dict[int, tuple[Any, FrozenEncoding]] = {}

    def stored(self, dataset: Any) -> Any:
        """The dataset as stored outputs of the frozen backbone, where there is one; the dataset itself otherwise."""
        if self.backbone is None or dataset is None or isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
            return dataset
        return self._of(dataset).dataset()

    def general_features(self, dataset: Any, rows: list[int]) -> Tensor:
        """Features of these rows by the model before training, for a judge: (N, D), on the CPU."""
        if self.backbone is not None:
            return self._of(dataset).general_ND[rows]
        with forked_random_state(self._how[2]):
            return encode(self.model, self.tap, dataset, *self._how, rows=rows).general_ND

    def _of(self, dataset: Any) -> FrozenEncoding:
        key = id(dataset.dataset) if isinstance(dataset, IndexedDataset) else id(dataset)
        if key not in self._encoded:
            with forked_random_state(self._how[2]):
                encoding = self.frozen(dataset)
            self._encoded[key] = (dataset, encoding)  # holding the dataset keeps its id
        return self._encoded[key][1]

    def frozen(self, dataset: Any) -> FrozenEncoding:
        """What the frozen backbone makes of a dataset; what an earlier run left in the folder is read there."""
        assert self.backbone is not None
        how = (self.model, self.tap, dataset, *self._how, self.backbone)
        view = evaluation_view(dataset)
        if self.folder is None or len(view) == 0:
            whole = encode(*how)
            assert whole.cut_ND is not None
            return FrozenEncoding(whole.cut_ND, whole.general_ND, whole.labels_N)
        sample_NK, labels_N = self._digested(view)
        cache = EncodingCache(self.folder, weights_digest(self.model, self.backbone))
        kept, missing = cache.find(sample_NK)
        if missing:
            fresh = encode(*how, rows=missing)
            assert fresh.cut_ND is not None
            encoded = {"cut_ND": fresh.cut_ND, "general_ND": fresh.general_ND}
            cache.keep(sample_NK[missing], encoded)
            for name, values in encoded.items():
                kept.setdefault(name, values.new_empty((len(view), values.shape[1])))[missing] = values
        return FrozenEncoding(**kept, labels_N=labels_N)

    def _digested(self, view: Any) -> tuple[Tensor, Tensor | None]:
        """Digests of all samples, (N, K), and their labels as the collator gives them."""
        collate, batch_size, _ = self._how
        digests, labels = [], []
        for start in range(0, len(view), batch_size):
            samples = list(fetch(view, list(range(start, min(start + batch_size, len(view))))))
            digests += [list(sample_digest(sample)) for sample in samples]
            labels.append(labels_of(collate(samples)))
        known = [labels_B for labels_B in labels if labels_B is not None]
        return torch.tensor(digests, dtype=torch.uint8), torch.cat(known) if known else None


def encode_from_cache(
    model: nn.Module,
    tap: ClassifierTap,
    dataset: Any,
    collate: Collator,
    batch_size: int,
    device: torch.device,
    folder: str | Path,
) -> Encoded:
    """[`hf_clidmu.precompute.encode`] of a model whose encoder is frozen, by what a folder has of it.

    Args:
        model: the bare classifier; what lies below its classification layers is frozen.
        tap, dataset, collate, batch_size, device: as there.
        folder: `frozen_cache_dir` of the runs that encoded these samples; what it lacks is computed, and added.
    """
    freeze_parameters(model, tap, "backbone")
    collate = SampleCollator(collate)
    inputs = model_inputs(collate(fetch(evaluation_view(dataset), [0])), device)
    backbone = FrozenBackbone.find(model, tap, inputs)
    if backbone is None:
        return encode(model, tap, dataset, collate, batch_size, device)
    found = Encodings(model, tap, backbone, collate, batch_size, device, folder).frozen(dataset)
    with backbone.installed(model):
        seen = encode(model, tap, found.dataset(), collate, batch_size, device)
    return replace(seen, general_ND=found.general_ND)
