"""The judge of a run: CLID of the present model on one fixed set of samples, without their labels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_clidmu.batches import Collator
from hf_clidmu.classifier import ClassifierTap, forked_random_state
from hf_clidmu.divergence import certain, clid_in_chunks
from hf_clidmu.precompute import encode


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

    def clid(self, model: nn.Module, device: torch.device) -> float:
        """CLID of the model as it is. Changes neither the model nor any random state."""
        with forked_random_state(device):
            seen = encode(model, self.tap, self.dataset, self.collate, self.batch_size, device, rows=self.rows)
        features_ND = seen.features_ND if self.features_ND is None else self.features_ND
        logits_NC = certain(seen.logits_NC) if self.by_class else seen.logits_NC
        return float(clid_in_chunks(features_ND, logits_NC, self.chunk_size, self.temperature))
