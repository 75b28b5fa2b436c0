"""What every weighting shares: the batch it sees, and how it learns from a logit tangent.

A weighting shapes the loss of the given labels. It never sees the backbone: all it knows of a batch are logits,
features, labels and sample indices, and all it is told of the look-ahead is the *logit tangent*, the direction in
which the logits move when the classifier follows the objective's gradient.

Shape suffixes: B samples of the training batch, C classes, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hf_clidmu.processes import Processes
from hf_clidmu.weighting.losses import generalized_cross_entropy


@dataclass(frozen=True)
class WeightingBatch:
    """All that a weighting may know of a training batch.

    Attributes:
        logits_BC: outputs of the classifier, attached to its graph.
        features_BD: inputs of the classifier's last layer, detached.
        labels_B: the given labels, possibly wrong.
        index_B: stable sample indices, or None where the dataset has none.
        noise_BC: standard normal draws, for weightings that sample (see [`Weighting.prepare`]).
        weight_B: per-sample weights that were found for this very batch (see [`FreeWeighting`]).
        posterior: mean and log-variance, (B, C) each, for this very batch and the present phi (see [`VRI.precompute`]).
    """

    logits_BC: Tensor
    features_BD: Tensor
    labels_B: Tensor
    index_B: Tensor | None = None
    noise_BC: Tensor | None = None
    weight_B: Tensor | None = None
    posterior: tuple[Tensor, Tensor] | None = None

    def with_logits(self, logits_BC: Tensor) -> "WeightingBatch":
        """The same batch with other logits: the point at which a weighting is differentiated."""
        return replace(self, logits_BC=logits_BC)


class Weighting(nn.Module, ABC):
    """How much a given label counts, as a module with parameters phi.

    Subclasses implement [`inner_loss`] and [`weights`]. Everything else has a default: [`learn`] computes the
    hypergradient by automatic differentiation and takes one step of the weighting's own optimiser.
    """

    optimizer: torch.optim.Optimizer | None = None
    #: Exponent of the generalised cross-entropy of one label; 0 is plain cross-entropy, as published.
    loss_q = 0.0
    #: Whether there is something to learn from the look-ahead; a fixed rule takes no meta step.
    learns = True
    #: The processes that train together: what normalises over a batch does so over the batches of all.
    processes = Processes()

    @abstractmethod
    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        """The shaped loss of the given labels: a scalar, differentiable in `batch.logits_BC` and in phi.

        A pure function of its input: draws come with the batch, so that the look-ahead and the hypergradient see the
        same ones.
        """

    @abstractmethod
    def weights(self, batch: WeightingBatch) -> Tensor:
        """How much each label counts now, (B,), mean about 1 where that has a meaning; for the record, not the loss."""

    def label_loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of each given label, (B,), before it is weighted: see [`generalized_cross_entropy`]."""
        return generalized_cross_entropy(logits_BC, labels_B, self.loss_q)

    def outer_penalty(self, batch: WeightingBatch) -> Tensor | None:
        """A regulariser of phi, added to the meta objective. Default: none."""
        return None

    def bind(self, num_samples: int | None) -> None:  # noqa: B027 (most weightings remember nothing)
        """Told once, before training, how many samples there are; None for a stream. Default: ignored."""

    def prepare(self, batch: WeightingBatch, generator: torch.Generator | None = None) -> WeightingBatch:
        """What happens once before the batch is used: random draws, memories. Default: the batch, unchanged.

        The generator is the same in every process: draw with [`standard_normal`], which gives each its own.
        """
        return batch

    def standard_normal(self, like_BC: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the shape of `like_BC`, drawn for the rows of all processes together; these are this one's."""
        rows = len(like_BC) * self.processes.count
        shape = (rows, *like_BC.shape[1:])
        return self.processes.own(torch.randn(shape, generator=generator, device=like_BC.device, dtype=like_BC.dtype))

    def precompute(self, batch: WeightingBatch) -> WeightingBatch:
        """Attach what [`inner_loss`] and [`weights`] would both compute. Default: the batch, unchanged."""
        return batch

    def real_loss(self, batch: WeightingBatch) -> tuple[Tensor, Tensor]:
        """The inner loss with phi held fixed, for the real update, and how much each label counts in it, (B,).

        The backward of the loss leaves nothing on phi.
        """
        phi = self._phi()
        try:
            for parameter in phi:
                parameter.requires_grad_(False)
            batch = self.precompute(batch)
            return self.inner_loss(batch), self.weights(batch).detach()
        finally:
            for parameter in phi:
                parameter.requires_grad_(True)

    def loss_gradient(self, batch: WeightingBatch) -> Tensor:
        """`dL/dz` of the inner loss, (B, C), attached to phi's graph and to nothing else.

        Its value is all that the look-ahead needs to know of the loss; its graph is what [`learn`] goes back through.
        """
        with torch.enable_grad(), torch.autocast(device_type=batch.logits_BC.device.type, enabled=False):
            logits_BC = batch.logits_BC.detach().requires_grad_()
            loss = self.inner_loss(batch.with_logits(logits_BC))
            (loss_gradient_BC,) = torch.autograd.grad(loss, logits_BC, create_graph=True)
        return loss_gradient_BC

    def hypergradient(
        self, batch: WeightingBatch, loss_gradient_BC: Tensor, logit_tangent_BC: Tensor, step_size: float
    ) -> list[Tensor]:
        """Gradient of the meta objective with respect to phi, through one look-ahead step.

        With l the inner loss, zdot the logit tangent and eta the step size:
        `dM/dphi = -eta * d/dphi <dl/dz(z, h; phi), zdot>`, plus the gradient of [`outer_penalty`].

        Args:
            batch: the training batch; its logits and features are constants here.
            loss_gradient_BC: (B, C), `dl/dz` as [`loss_gradient`] returned it; its graph is used up.
            logit_tangent_BC: (B, C), `J_theta z(theta) D u` with u the objective's gradient at the look-ahead.
            step_size: eta of the look-ahead.

        Returns:
            One gradient per trainable parameter, in the order of `parameters()`.
        """
        phi = self._phi()
        with torch.enable_grad(), torch.autocast(device_type=batch.logits_BC.device.type, enabled=False):
            outer = -step_size * (loss_gradient_BC * logit_tangent_BC).sum()
            penalty = self.outer_penalty(batch.with_logits(batch.logits_BC.detach()))
            if penalty is not None:
                outer = outer + penalty
            return list(torch.autograd.grad(outer, phi, allow_unused=True, materialize_grads=True))

    def learn(
        self,
        batch: WeightingBatch,
        loss_gradient_BC: Tensor,
        logit_tangent_BC: Tensor,
        step_size: float,
        average: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> WeightingBatch:
        """One meta step: phi follows the hypergradient.

        Args:
            batch: the training batch.
            loss_gradient_BC: (B, C), what [`loss_gradient`] returned for this batch.
            logit_tangent_BC: (B, C), see [`hypergradient`].
            step_size: eta of the look-ahead.
            average: averages gradients over processes; None for a single process.

        Returns:
            The batch to compute the real loss with: the same one, unless the weighting attaches what it found.
        """
        if self.optimizer is None:
            raise RuntimeError("call configure_optimizer() before learn()")
        gradients = self.hypergradient(batch, loss_gradient_BC, logit_tangent_BC, step_size)
        if average is not None:
            gradients = average(gradients)
        for parameter, gradient in zip(self._phi(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return batch

    def configure_optimizer(self, name: str, learning_rate: float, weight_decay: float) -> None:
        """Give the weighting its optimiser: `adam` or plain `sgd`. A weighting without parameters needs none."""
        phi = self._phi()
        if not phi:
            return
        if name == "adam":
            self.optimizer = torch.optim.Adam(phi, lr=learning_rate, weight_decay=weight_decay, fused=True)
        elif name == "sgd":
            self.optimizer = torch.optim.SGD(phi, lr=learning_rate, weight_decay=weight_decay, fused=True)
        else:
            raise ValueError(f"meta_optim must be 'adam' or 'sgd', got '{name}'")

    def _phi(self) -> list[nn.Parameter]:
        """The parameters that learn; a subclass may have frozen others, say a pretrained embedding."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class SampleWeighting(Weighting):
    """Weightings that are one number per sample: `sum_i w_i l_i`, with the weights scaled to sum one.

    l_i is the loss of one label ([`Weighting.label_loss`]).
    """

    @abstractmethod
    def raw_weights(self, batch: WeightingBatch) -> Tensor:
        """Non-negative weights, (B,), on any scale."""

    def normalised_weights(self, batch: WeightingBatch) -> Tensor:
        """The weights of the batch, (B,), summing to one; all zero where no sample has any weight.

        With several processes they sum to one in the mean over processes, whose losses are averaged.
        """
        weight_B = self.raw_weights(batch)
        total = self.processes.total(weight_B.sum()) / self.processes.count
        return weight_B / torch.where(total > 0, total, torch.ones_like(total))

    def inner_loss(self, batch: WeightingBatch) -> Tensor:
        return (self.normalised_weights(batch) * self.label_loss(batch.logits_BC, batch.labels_B)).sum()

    @torch.no_grad()
    def weights(self, batch: WeightingBatch) -> Tensor:
        return self.normalised_weights(batch) * len(batch.labels_B)
