"""The published algorithm in its own way, as a rival of the benchmarks: it differentiates twice through the network.

Every step (arXiv 2507.11807 and its reference code): a copy of the model takes one virtual SGD step with
`create_graph`, CLID judges it on a meta batch, a double backward reaches the weighting, and the live model takes the
real step. Nothing in `hf_clidmu/` uses this. It is the cheapest form there is of it: parameters are copied where the
reference builds the model anew, and the double backward ends at the weighting's parameters.

Shape suffixes: B samples of the batch, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer

from hf_clidmu.batches import MetaBatches, SampleCollator, labels_of, model_inputs
from hf_clidmu.classifier import ClassifierTap, model_logits
from hf_clidmu.divergence import clid
from hf_clidmu.weighting import VRI, WeightingBatch


class PublishedTrainer(Trainer):
    """A plain Trainer whose step is the published one, with VRI and CLID."""

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self.tap = ClassifierTap(self.model)
        self.weighting = VRI(self.tap.num_labels, self.tap.feature_size).to(self.args.device)
        self.weighting.configure_optimizer("adam", 1e-3, 5e-4)
        self.meta_batches = MetaBatches(
            self.train_dataset,
            None,
            self._train_batch_size,
            SampleCollator(self.data_collator),
            seed=0,
            num_workers=self.args.dataloader_num_workers,
        )
        return super()._prepare_for_training(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        labels_B, inputs = labels_of(inputs), model_inputs(inputs)
        # Fused attention has no second derivative: the reference needs the mathematical form throughout.
        with sdpa_kernel(SDPBackend.MATH):
            self._meta_step(model, inputs, labels_B)
            output = self.tap.forward(model, inputs)
            loss, _ = self.weighting.real_loss(self._batch(output.logits_BC, output.features_BD, labels_B))
            self.accelerator.backward(loss)
        return loss.detach()

    def _meta_step(self, model: nn.Module, inputs: dict[str, Tensor], labels_B: Tensor) -> None:
        theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with self.tap.listening() as heard:
            logits_BC = model_logits(functional_call(model, {**theta, **buffers}, kwargs=inputs))
            output = self.tap.read(heard, logits_BC)
            loss = self.weighting.inner_loss(self._batch(output.logits_BC, output.features_BD, labels_B))
            gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True, materialize_grads=True)
            step_size = self._get_learning_rate()
            ahead = {name: t - step_size * g for (name, t), g in zip(theta.items(), gradients, strict=True)}
            meta = model_inputs(self.meta_batches.batch(self.state.global_step), self.args.device)
            judged = self.tap.read(heard, model_logits(functional_call(model, {**ahead, **buffers}, kwargs=meta)))
        clid(judged.features_BD, judged.logits_BC).backward(inputs=list(self.weighting.parameters()))
        self.weighting.optimizer.step()
        self.weighting.optimizer.zero_grad()

    def _batch(self, logits_BC: Tensor, features_BD: Tensor, labels_B: Tensor) -> WeightingBatch:
        return self.weighting.prepare(WeightingBatch(logits_BC, features_BD, labels_B))
