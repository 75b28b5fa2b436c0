"""WNet: the weight of a label as a function of its loss (Meta-Weight-Net, arXiv 1902.07379; used by CLID-MU)."""

import torch.nn.functional as F
from torch import Tensor, nn

from hf_clidmu.weighting.base import SampleWeighting, WeightingBatch


class WNet(SampleWeighting):
    """`w_i = sigmoid(W2 relu(W1 CE_i + b1) + b2)`, the loss CE_i detached; weights scaled to sum one per batch.

    Args:
        hidden_size: width of the hidden layer, 100 as published.
    """

    def __init__(self, hidden_size: int = 100):
        super().__init__()
        self.hidden = nn.Linear(1, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def raw_weights(self, batch: WeightingBatch) -> Tensor:
        loss_B = F.cross_entropy(batch.logits_BC, batch.labels_B, reduction="none").detach()
        return self.output(self.hidden(loss_B[:, None]).relu()).sigmoid().squeeze(1)
