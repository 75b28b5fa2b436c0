"""ContextNet: the weight of a label from everything a batch knows of it: features, label, loss and margin."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clidmu.weighting.base import SampleWeighting, WeightingBatch


class ContextNet(SampleWeighting):
    """`w_i = sigmoid(MLP([h_i / |h_i|, e_y, CE_i, margin_i]))`, inputs detached; weights scaled to sum one per batch.

    The margin is the given label's logit less the largest other one. Where WNet sees a loss alone, this net can learn
    that the same loss means different things in different classes and regions of the feature space.

    Args:
        num_labels: number of classes.
        feature_size: width of the features.
        embedding_size: width of the label embedding.
        hidden_size: width of the hidden layer.
    """

    def __init__(self, num_labels: int, feature_size: int, embedding_size: int = 16, hidden_size: int = 100):
        super().__init__()
        self.label_embedding = nn.Embedding(num_labels, embedding_size)
        self.hidden = nn.Linear(feature_size + embedding_size + 2, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def raw_weights(self, batch: WeightingBatch) -> Tensor:
        logits_BC = batch.logits_BC.detach()
        loss_B1 = F.cross_entropy(logits_BC, batch.labels_B, reduction="none")[:, None]
        margin_B1 = label_margin(logits_BC, batch.labels_B)[:, None]
        unit_BD = F.normalize(batch.features_BD.detach().to(logits_BC.dtype), dim=1)
        context = torch.cat([unit_BD, self.label_embedding(batch.labels_B), loss_B1, margin_B1], dim=1)
        return self.output(self.hidden(context).relu()).sigmoid().squeeze(1)


def label_margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The given label's logit less the largest other one, (B,); zero where there is only one class."""
    given_B = logits_BC.gather(1, labels_B[:, None]).squeeze(1)
    if logits_BC.shape[1] == 1:
        return torch.zeros_like(given_B)
    others_BC = logits_BC.scatter(1, labels_B[:, None], float("-inf"))
    return given_B - others_BC.max(dim=1).values
