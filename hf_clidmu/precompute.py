"""What never changes is computed once: the outputs of a frozen backbone, and the features of the model before training.

A text model whose encoder is frozen spends nearly all its time on recomputing constants. [`FrozenBackbone`] finds the
first trainable layer, stores what flows into it for every sample, and lets the same model run from there:
`model(frozen_features=..., labels=...)`.

Shape suffixes: N samples, B batch, T tokens, D features.
"""

import inspect
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_clidmu.batches import (
    FEATURES_COLUMN,
    Collator,
    evaluation_view,
    fetch,
    labels_of,
    model_inputs,
)
from hf_clidmu.classifier import ClassifierOutput, ClassifierTap


logger = logging.getLogger(__name__)


def freeze_parameters(model: nn.Module, tap: ClassifierTap, freeze: str) -> list[str]:
    """Stop the training of a part of the model.

    Args:
        model: the classifier.
        tap: knows its last layer.
        freeze: `backbone` freezes everything below the classification layers: what lies above the encoder (a pooler,
            a dense layer, the last layer) trains. Anything else is a regular expression searched in parameter names.

    Returns:
        Names of the frozen parameters.

    Raises:
        ValueError: when nothing matches, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    if freeze == "backbone":
        frozen = backbone_names(model, tap)
    else:
        frozen = [name for name in names if re.search(freeze, name)]
    if not frozen:
        raise ValueError(
            f"freeze='{freeze}' matches no parameter; use 'backbone' or a regular expression over names like "
            f"{', '.join(names[:2] + names[-2:])}"
        )
    if len(frozen) == len(names):
        raise ValueError(f"freeze='{freeze}' matches every parameter: nothing would be trained")
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def backbone_names(model: nn.Module, tap: ClassifierTap) -> list[str]:
    """Names of the parameters below the classification layers: all but the last layer, a dense one before it, a pooler.

    Args:
        model: the classifier.
        tap: knows its last layer.
    """
    prefix = getattr(model, "base_model_prefix", "")
    inside = prefix + "." if prefix and hasattr(model, prefix) else ""
    head = {f"{tap.head_name}.{name}" for name, _ in tap.head.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name.startswith(inside) and name not in head and ".pooler." not in name]


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The topmost modules without any trainable parameter: their dropout and running statistics stay still, too."""
    if not any(True for _ in model.parameters()):
        return []
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [model]
    return [module for child in model.children() for module in frozen_modules(child)]


@dataclass
class Encoded:
    """Features of a whole dataset, row by row.

    Attributes:
        features_ND: inputs of the last layer.
        logits_NC: the model's predictions.
        general_ND: general-purpose features: the mean token state of a text encoder, `features_ND` otherwise.
        cut_ND: inputs of the first trainable layer, for a frozen backbone.
        labels_N: the dataset's labels, or None.
        middle_ND: hidden states halfway up, averaged over tokens or pixels, where they were asked for; `features_ND` of
            a model that does not tell them.
    """

    features_ND: Tensor
    logits_NC: Tensor
    general_ND: Tensor
    cut_ND: Tensor | None
    labels_N: Tensor | None
    middle_ND: Tensor | None = None


class FrozenBackbone:
    """A text classifier that can start from the stored output of its frozen part.

    Use [`find`] to build one. It is checked on real samples before it is used: the model run from the stored vector
    must give the logits it gives from the tokens.

    Args:
        tap: reads the model.
        cut: where the trainable part begins: its first layer, or the dropout right before it.
        before_head: whether what flows into the cut are the last layer's inputs.
        blocks: frozen layers that map states to states of the same shape; they are skipped.
        vocabulary_token: any token id that is not padding; it stands in for the text.
    """

    def __init__(
        self, tap: ClassifierTap, cut: nn.Module, before_head: bool, blocks: list[nn.Module], vocabulary_token: int
    ):
        self.tap = tap
        self.cut = cut
        self.before_head = before_head
        self.blocks = blocks
        self.vocabulary_token = vocabulary_token
        self._stored_BD: Tensor | None = None
        self._is_installed = False

    @classmethod
    def find(cls, model: nn.Module, tap: ClassifierTap, inputs: Mapping[str, Tensor]) -> "FrozenBackbone | None":
        """Where the trainable part of `model` begins, or None where it cannot be cut off there.

        Args:
            model: in any mode; it is probed in evaluation mode and left as it was.
            tap: knows its last layer.
            inputs: a batch, without labels.
        """
        frozen = any(not parameter.requires_grad for parameter in model.parameters())
        if not frozen or "input_ids" not in inputs:
            return None
        pad_token = getattr(getattr(model, "config", None), "pad_token_id", None)
        backbone = None
        calls: list[tuple[nn.Module, Any, Any]] = []
        blocks: list[nn.Module] = []
        still = {id(module) for top in frozen_modules(model) for module in top.modules()}
        handles = [
            module.register_forward_hook(
                lambda module, args, out: calls.append((module, args[0] if args else None, out))
            )
            for module in model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            or (isinstance(module, nn.Dropout) and id(module) not in still)
        ]
        handles += [
            module.register_forward_hook(
                lambda module, args, out: blocks.append(module) if _keeps_shape(args, out) else None
            )
            for parent in model.modules()
            if isinstance(parent, nn.ModuleList)
            for module in parent
            if id(module) in still
        ]
        with torch.no_grad(), evaluating(model):
            try:
                expected_BC = tap.forward(model, inputs).logits_BC
            finally:
                for handle in handles:
                    handle.remove()
            trained = [i for i, (module, _, _) in enumerate(calls) if not isinstance(module, nn.Dropout)]
            first, entering, _ = calls[trained[0]]
            once = sum(module is first for module, _, _ in calls) == 1
            if once and isinstance(entering, Tensor) and (first is tap.head or entering.ndim == 2):
                # Dropout right before the first layer belongs to the trained part: it draws anew in every step.
                before = [m for m, _, out in calls[: trained[0]] if out.shape == entering.shape and out.equal(entering)]
                entry = before[0] if before else first
                backbone = cls(tap, entry, first is tap.head, list(dict.fromkeys(blocks)), 0 if pad_token != 0 else 1)
                cut_BD = backbone.encode_batch(model, inputs)[1]
                with backbone.installed(model):
                    actual_BC = tap.forward(model, {FEATURES_COLUMN: cut_BD}).logits_BC
                if not torch.allclose(actual_BC, expected_BC, rtol=1e-4, atol=1e-5):
                    backbone = None
        if backbone is None:
            logger.warning("The frozen part of the model cannot be separated: it is computed anew in every step.")
        return backbone

    def encode_batch(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[ClassifierOutput, Tensor]:
        """One forward, and what flows into the cut in it, (B, D)."""
        entering: list[Tensor] = []
        handle = self.cut.register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
        try:
            output = self.tap.forward(model, inputs)
        finally:
            handle.remove()
        return output, (output.features_BD if self.before_head else entering[0].float())

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Inside the context, `model(frozen_features=..., ...)` runs from the stored vectors.

        What is left of the frozen part runs on a stand-in of one token per sample, its blocks skipped, which costs
        next to nothing; its result is replaced at the cut. So every wrapper, hook and output class of the model works
        as ever. Other inputs are not touched. Contexts may be nested.
        """
        if self._is_installed:
            yield
            return
        handles = [
            model.register_forward_pre_hook(self._replace_inputs, with_kwargs=True),
            self.cut.register_forward_pre_hook(self._replace_entering),
        ]
        for block in self.blocks:
            block.forward = self._skipping(block.forward)
        self._is_installed = True
        try:
            yield
        finally:
            self._is_installed, self._stored_BD = False, None
            for handle in handles:
                handle.remove()
            for block in self.blocks:
                del block.forward  # the class's own comes back: a copy of the model must not hold ours

    def _skipping(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return forward(states, *args, **kwargs) if self._stored_BD is None else states

        return run

    def _replace_inputs(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self._stored_BD = kwargs.get(FEATURES_COLUMN)
        if self._stored_BD is None:
            return args, kwargs
        kwargs = {key: value for key, value in kwargs.items() if key != FEATURES_COLUMN}
        shape, device = (len(self._stored_BD), 1), self._stored_BD.device
        kwargs["input_ids"] = torch.full(shape, self.vocabulary_token, device=device)
        kwargs["attention_mask"] = torch.ones(shape, dtype=torch.long, device=device)
        return args, kwargs

    def _replace_entering(self, module: nn.Module, args: tuple) -> tuple:
        if self._stored_BD is None:
            return args
        stored, self._stored_BD = self._stored_BD.to(args[0].dtype), None  # once: a dropout may stand in two places
        return (stored.reshape(args[0].shape), *args[1:])


def _keeps_shape(args: tuple, output: Any) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].shape == output.shape


@torch.no_grad()
def encode(
    model: nn.Module,
    tap: ClassifierTap,
    dataset: Any,
    collate: Collator,
    batch_size: int,
    device: torch.device,
    backbone: FrozenBackbone | None = None,
    rows: list[int] | None = None,
    middle: bool = False,
) -> Encoded:
    """Features of a dataset by the model as it is, in evaluation mode, kept on the CPU.

    Args:
        model: the bare classifier.
        tap: reads it.
        dataset: map-style; its evaluation view is used where it has one.
        collate: makes a batch of samples.
        batch_size: samples a forward.
        device: where to compute.
        backbone: also store what flows into its cut.
        rows: only these rows, in this order; None takes all.
        middle: ask for the hidden states halfway up as well.

    Returns:
        Features in the order of `rows`.
    """
    dataset = evaluation_view(dataset)
    rows = list(range(len(dataset))) if rows is None else rows
    if not rows:
        raise ValueError("there are no samples to encode: the dataset is empty")
    texts = fetch(dataset, rows) if "input_ids" in fetch(dataset, rows[:1])[0] else None
    order = list(range(len(rows)))
    if texts is not None:  # similar lengths together: little padding. All images at once would fill the memory
        order.sort(key=[len(text["input_ids"]) for text in texts].__getitem__)
    columns: dict[str, list[Tensor]] = defaultdict(list)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            samples: Any = fetch(dataset, [rows[i] for i in places]) if texts is None else [texts[i] for i in places]
            batch = collate(samples)
            labels_B = labels_of(batch)
            if labels_B is not None:
                columns["labels"].append(labels_B)
            inputs = model_inputs(batch, device)
            with _token_states(model) as states, _hidden_states(model, middle) as hidden:
                if backbone is None:
                    output = tap.forward(model, inputs)
                else:
                    output, cut_BD = backbone.encode_batch(model, inputs)
                    columns["cut"].append(cut_BD.cpu())
            columns["features"].append(output.features_BD.cpu())
            columns["logits"].append(output.logits_BC.cpu())
            is_text = "attention_mask" in inputs
            general_BD = _pooled(states[-1], inputs) if states and is_text else None
            columns["general"].append((output.features_BD if general_BD is None else general_BD).cpu())
            if middle:
                middle_BD = _pooled(hidden[len(hidden) // 2], inputs) if hidden else None
                columns["middle"].append((output.features_BD if middle_BD is None else middle_BD).cpu())
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    whole = {name: torch.cat(parts)[back] for name, parts in columns.items() if parts}
    return Encoded(
        features_ND=whole["features"],
        logits_NC=whole["logits"],
        general_ND=whole["general"],
        cut_ND=whole.get("cut"),
        labels_N=whole.get("labels"),
        middle_ND=whole.get("middle"),
    )


@dataclass
class FeatureTable:
    """Features of some rows of a dataset, found by sample index.

    Args:
        rows: sample indices.
        features_RD: their features, in the order of `rows`.
    """

    rows: list[int]
    features_RD: Tensor

    def __post_init__(self) -> None:
        self._position = torch.full((max(self.rows) + 1,), -1)
        self._position[torch.tensor(self.rows)] = torch.arange(len(self.rows))

    def lookup(self, index_B: Tensor) -> Tensor:
        """Features of these samples, (B, D), on the device of the indices.

        Raises:
            KeyError: for a sample that is not in the table.
        """
        position_B = self._position[index_B.cpu()]
        if (position_B < 0).any():
            raise KeyError(f"no features of sample {int(index_B[int((position_B < 0).int().argmax())])} in the table")
        return self.features_RD[position_B].to(index_B.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The features, of the model before training: a resumed run no longer has it."""
        return {"features": self.features_RD}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Look up the features of a checkpoint.

        Raises:
            ValueError: when they are not those of these rows.
        """
        self.features_RD = checked_features(state, len(self.rows))


def checked_features(state: Mapping[str, Tensor], rows: int) -> Tensor:
    """Saved features of so many rows.

    Raises:
        ValueError: when they are none.
    """
    features = state.get("features")
    if features is None or features.ndim != 2 or len(features) != rows or not features.is_floating_point():
        found = "none" if features is None else f"{features.dtype} of shape {tuple(features.shape)}"
        raise ValueError(f"the saved features of the judge do not fit: expected {rows} rows, found {found}")
    return features


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _token_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the last hidden states of the base model, where it has token states."""
    base = getattr(model, "base_model", None)
    states: list[Tensor] = []

    def listen(_: nn.Module, args: tuple, output: Any) -> None:
        state = output.get("last_hidden_state") if isinstance(output, Mapping) else None
        if state is not None:
            states.append(state)

    handle = base.register_forward_hook(listen) if isinstance(base, nn.Module) and base is not model else None
    try:
        yield states
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _hidden_states(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects the hidden states of a forward, bottom to top, where they are wanted and the model tells them."""
    states: list[Tensor] = []
    parameters = inspect.signature(model.forward).parameters.values()
    known = any(each.name == "output_hidden_states" or each.kind is each.VAR_KEYWORD for each in parameters)
    timm_model = getattr(model, "timm_model", None)
    if not wanted or not known or (timm_model is not None and not hasattr(timm_model, "forward_intermediates")):
        yield states
        return

    def ask(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "output_hidden_states": True}

    def listen(_: nn.Module, args: tuple, output: Any) -> None:
        told = output.get("hidden_states") if isinstance(output, Mapping) else None
        states.extend(told or ())

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(listen)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _pooled(state: Tensor, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The mean over what is no padding of token states (B, T, D), or over the pixels of maps (B, D, H, W), in float32.

    For text a better judge of meaning than a classification token nobody trained yet. None for other states.
    """
    if state.ndim == 4:
        return state.mean(dim=(2, 3)).float()
    if state.ndim != 3:
        return None
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None or mask_BT.shape != state.shape[:2]:
        return None if "input_ids" in inputs else state.mean(dim=1).float()
    mask_BT1 = mask_BT[:, :, None].to(state.dtype)
    return ((state * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1)).float()
