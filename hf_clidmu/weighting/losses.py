"""The loss of one given label, on which the weightings build.

Shape suffixes: B samples of the training batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def generalized_cross_entropy(logits_BC: Tensor, labels_B: Tensor, q: float) -> Tensor:
    """`(1 - p_y^q) / q` of each sample, (B,): cross-entropy at q = 0, `1 - p_y` at q = 1.

    Its gradient is that of cross-entropy times `p_y^q`: a label that the model finds unlikely pulls less.
    Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    NeurIPS 2018, equation 6.

    Args:
        logits_BC: outputs of the classifier.
        labels_B: the given labels.
        q: in [0, 1].
    """
    cross_entropy_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    # Through the loss: p^q of a probability that is zero in float32 still has a gradient.
    return -torch.expm1(-q * cross_entropy_B) / q if q else cross_entropy_B


def share_of_gradient(logits_BC: Tensor, labels_B: Tensor, q: float) -> Tensor:
    """`p_y^q`, (B,): the share of its cross-entropy gradient that a sample keeps."""
    return torch.exp(-q * F.cross_entropy(logits_BC, labels_B, reduction="none"))
