"""Free weights: learning to reweight, with no network at all (arXiv 1803.09050, rewritten for a logit tangent)."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_clidmu.weighting.base import SampleWeighting, WeightingBatch
from hf_clidmu.weighting.losses import share_of_gradient


class FreeWeighting(SampleWeighting):
    """Each weight is the clipped alignment of the sample's own gradient with the objective's.

    `w_i` is proportional to `max(<dl_i/dz_i, zdot_i>, 0)`: a sample counts as far as a step on its label would lower
    the meta objective. The weights belong to one batch, so a batch without a meta step has uniform ones.
    """

    def raw_weights(self, batch: WeightingBatch) -> Tensor:
        return torch.ones_like(batch.logits_BC[:, 0]) if batch.weight_B is None else batch.weight_B

    def alignment(self, batch: WeightingBatch, logit_tangent_BC: Tensor) -> Tensor:
        """`<dl_i/dz_i, zdot_i>`, (B,): minus the change of the objective per unit of weight and step size."""
        probability_BC = batch.logits_BC.detach().softmax(dim=1)
        target_BC = F.one_hot(batch.labels_B, probability_BC.shape[1]).to(probability_BC.dtype)
        alignment_B = ((probability_BC - target_BC) * logit_tangent_BC).sum(dim=1)
        return share_of_gradient(batch.logits_BC.detach(), batch.labels_B, self.loss_q) * alignment_B

    def learn(
        self,
        batch: WeightingBatch,
        loss_gradient_BC: Tensor,
        logit_tangent_BC: Tensor,
        step_size: float,
        average: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> WeightingBatch:
        return replace(batch, weight_B=self.alignment(batch, logit_tangent_BC).clamp(min=0))
