"""VRI: variational rectification of the logits by features and label (CLID-MU's default weighting; arXiv 2507.11807).

Shape suffixes: B samples, C classes, D features, E label embedding, H hidden.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_clidmu.weighting.base import Weighting, WeightingBatch


INITIAL_MEAN = 1.5


class VRI(Weighting):
    """Rectified loss `mean_i l(v_i * z_i, y_i)` with `v = sigmoid(m + exp(u / 2) * eps)`, eps standard normal.

    The mean m and the log-variance u, each (B, C), come from a network of three tanh layers on `[h, e_y]`: the
    detached features and an embedding of the given label.

    Args:
        num_labels: C.
        feature_size: D, width of the features.
        embedding_size: E, width of the label embedding.
        hidden_sizes: widths of the three hidden layers, as published.
        kl_weight: weight of `KL(posterior || prior)` in the *outer* loss, default 0. The prior is the same network
            with a zero label embedding. The published code adds the term to the inner loss, where it cannot act: the
            features are detached, so it has no gradient in theta; it also treats the log-variance as a log standard
            deviation. Here it is the KL of two normals, element mean, where it has an effect.
        initial_mean: where m starts, default 1.5: v starts near 0.8, close to plain cross-entropy, and not at a
            random rectification around 0.5, as published (0), from which not every run recovered.
    """

    def __init__(
        self,
        num_labels: int,
        feature_size: int,
        embedding_size: int = 64,
        hidden_sizes: tuple[int, int, int] = (1024, 512, 512),
        kl_weight: float = 0.0,
        initial_mean: float = INITIAL_MEAN,
    ):
        super().__init__()
        self.kl_weight = kl_weight
        self.label_embedding = nn.Embedding(num_labels, embedding_size)
        widths = (feature_size + embedding_size, *hidden_sizes)
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), nn.Tanh()]
        self.trunk = nn.Sequential(*layers)
        self.mean = nn.Linear(widths[-1], num_labels)
        self.log_variance = nn.Linear(widths[-1], num_labels)
        for head in (self.mean, self.log_variance):
            nn.init.xavier_normal_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.mean.bias, initial_mean)

    def posterior(self, batch: WeightingBatch) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the rectifier's logit given features and label, (B, C) each."""
        if batch.posterior is not None:
            return batch.posterior
        return self._distribution(batch.features_BD, self.label_embedding(batch.labels_B))

    def prior(self, batch: WeightingBatch) -> tuple[Tensor, Tensor]:
        """The same without the label, (B, C) each."""
        nothing_BE = self.label_embedding.weight.new_zeros(len(batch.labels_B), self.label_embedding.embedding_dim)
        return self._distribution(batch.features_BD, nothing_BE)

    def rectifier(self, batch: WeightingBatch) -> Tensor:
        """`v`, (B, C) in (0, 1): sampled with the draws of the batch, or at the mean where it carries none."""
        mean_BC, log_variance_BC = self.posterior(batch)
        if batch.noise_BC is not None:
            mean_BC = mean_BC + (log_variance_BC / 2).exp() * batch.noise_BC
        return mean_BC.sigmoid()

    def prepare(self, batch: WeightingBatch, generator: torch.Generator | None = None) -> WeightingBatch:
        return replace(batch, noise_BC=self.standard_normal(batch.logits_BC, generator))

    def precompute(self, batch: WeightingBatch) -> WeightingBatch:
        return replace(batch, posterior=self.posterior(batch))

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        return self.label_loss(self.rectifier(batch) * batch.logits_BC, batch.labels_B).mean()

    @torch.no_grad()
    def weights(self, batch: WeightingBatch) -> Tensor:
        """The rectifier's entry of the given label, (B,) in (0, 1): how much of that logit counts."""
        return self.rectifier(replace(batch, noise_BC=None)).gather(1, batch.labels_B[:, None]).squeeze(1)

    def outer_penalty(self, batch: WeightingBatch) -> Tensor | None:
        if self.kl_weight == 0:
            return None
        mean_BC, log_variance_BC = self.posterior(batch)
        prior_mean_BC, prior_log_variance_BC = self.prior(batch)
        divergence_BC = (
            (prior_log_variance_BC - log_variance_BC)
            + (log_variance_BC.exp() + (mean_BC - prior_mean_BC) ** 2) / prior_log_variance_BC.exp()
            - 1
        ) / 2
        return self.kl_weight * divergence_BC.mean()

    def _distribution(self, features_BD: Tensor, label_BE: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BH = self.trunk(torch.cat([features_BD.detach().to(label_BE.dtype), label_BE], dim=1))
        return self.mean(hidden_BH), self.log_variance(hidden_BH)
