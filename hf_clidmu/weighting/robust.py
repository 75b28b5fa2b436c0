"""Robust losses: the label-free alternatives that CLID-MU is compared with, in the same trainer.

They have no parameters and need no meta step: each is a fixed rule of how much a given label counts.

Shape suffixes: B samples of the training batch, N samples of the dataset, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.weighting.base import Weighting, WeightingBatch
from hf_clidmu.weighting.losses import generalized_cross_entropy, share_of_gradient


class RobustLoss(Weighting):
    """A fixed loss: nothing to learn, so no look-ahead is taken and no warm-up of cross-entropy is needed."""

    learns = False


class GeneralizedCrossEntropy(RobustLoss):
    """`mean_i (1 - p_iy^q) / q`, between cross-entropy (q to 0) and the mean absolute error (q = 1).

    Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    NeurIPS 2018, equation 6.

    Args:
        q: in (0, 1], default 0.7 as published.
    """

    def __init__(self, q: float = 0.7):
        super().__init__()
        if not 0 < q <= 1:
            raise ValueError(f"q must be in (0, 1], got {q}; use plain cross-entropy for q=0")
        self.q = q

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        return generalized_cross_entropy(batch.logits_BC, batch.labels_B, self.q).mean()

    @torch.no_grad()
    def weights(self, batch: WeightingBatch) -> Tensor:
        """`p_iy^q`, (B,): the share of its cross-entropy gradient that a sample keeps."""
        return share_of_gradient(batch.logits_BC, batch.labels_B, self.q)


class SymmetricCrossEntropy(RobustLoss):
    """`alpha * CE + beta * RCE`, where the reverse cross-entropy is `-log_zero * (1 - p_iy)`.

    Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019, equation 8.

    Args:
        alpha: weight of cross-entropy, default 0.1 (published for CIFAR-10; 6.0 for CIFAR-100).
        beta: weight of the reverse cross-entropy, default 1.0 (published for CIFAR-10; 0.1 for CIFAR-100).
        log_zero: stands for the logarithm of zero, default -4 as published.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0):
        super().__init__()
        if not log_zero < 0:
            raise ValueError(f"log_zero stands for log(0) and must be negative, got {log_zero}")
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        cross_entropy_B = F.cross_entropy(batch.logits_BC, batch.labels_B, reduction="none")
        reverse_B = -self.log_zero * -torch.expm1(-cross_entropy_B)
        return (self.alpha * cross_entropy_B + self.beta * reverse_B).mean()

    @torch.no_grad()
    def weights(self, batch: WeightingBatch) -> Tensor:
        """`alpha - beta * log_zero * p_iy`, (B,): its gradient relative to that of cross-entropy."""
        probability_B = torch.exp(-F.cross_entropy(batch.logits_BC, batch.labels_B, reduction="none"))
        return self.alpha - self.beta * self.log_zero * probability_B


class EarlyLearning(RobustLoss):
    """Early-learning regularisation: `CE + strength * mean_i log(1 - <p_i, t_i>)` with t_i a memory of predictions.

    t_i is the running mean of the sample's own past predictions; holding on to it keeps what was learned before wrong
    labels are memorised. Source: Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels",
    NeurIPS 2020, equation 6.

    Args:
        num_labels: C.
        strength: weight of the regulariser, default 3 (published for CIFAR-10; 7 for CIFAR-100).
        momentum: of the running mean, default 0.7 (published for CIFAR-10; 0.9 for CIFAR-100).
    """

    target_NC: Tensor

    def __init__(self, num_labels: int, strength: float = 3.0, momentum: float = 0.7):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.strength, self.momentum = strength, momentum
        self.register_buffer("target_NC", torch.zeros(0, num_labels))

    def bind(self, num_samples: int | None) -> None:
        if num_samples is None:
            raise ValueError("weighting='elr' remembers every training sample: it cannot train on a stream")
        self.target_NC = self.target_NC.new_zeros(num_samples, self.target_NC.shape[1])

    @torch.no_grad()
    def prepare(self, batch: WeightingBatch, generator: torch.Generator | None = None) -> WeightingBatch:
        """The memory of these samples, those of all processes, moves towards what the model predicts now."""
        # The published clamp keeps classes the model has ruled out reachable.
        probability_BC = batch.logits_BC.softmax(dim=1).clamp(1e-4, 1 - 1e-4).to(self.target_NC.dtype)
        now_BC = probability_BC / probability_BC.sum(dim=1, keepdim=True)
        index_B, now_BC = self.processes.gather(self._index(batch)), self.processes.gather(now_BC)
        now_BC = now_BC[(index_B[:, None] == index_B).int().argmax(dim=1)]  # a sample that stands twice moves once
        self.target_NC[index_B] = self.momentum * self.target_NC[index_B] + (1 - self.momentum) * now_BC
        return batch

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        probability_BC = batch.logits_BC.softmax(dim=1).clamp(1e-4, 1 - 1e-4)
        agreement_B = (self.target_NC[self._index(batch)].to(probability_BC.dtype) * probability_BC).sum(dim=1)
        cross_entropy = F.cross_entropy(batch.logits_BC, batch.labels_B)
        return cross_entropy + self.strength * torch.log1p(-agreement_B.clamp(max=1 - 1e-4)).mean()

    @torch.no_grad()
    def weights(self, batch: WeightingBatch) -> Tensor:
        """The memory's belief in the given label, (B,)."""
        return self.target_NC[self._index(batch)].gather(1, batch.labels_B[:, None]).squeeze(1)

    def _index(self, batch: WeightingBatch) -> Tensor:
        if batch.index_B is None:
            raise ValueError("weighting='elr' needs the index of each sample: use a dataset with a length")
        return batch.index_B
