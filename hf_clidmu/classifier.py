"""The classifier as everything else sees it: logits, and the features that its last layer turned into them.

[`ClassifierTap`] finds the last layer of any timm or transformers classifier and reads both from one forward.

Shape suffixes: B samples, T tokens, C classes, D features.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clidmu.sharding import whole


# Where classifiers of transformers keep their last layer, most specific first. An index may follow (`classifier.1`).
_KNOWN_NAMES = ("classifier.out_proj", "classifier", "score", "logits_proj", "head.fc", "head", "fc")
# Parts of an adapter that produce `num_labels` outputs without being the last layer.
_ADAPTER_PARTS = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|original_module)(\.|$)")


@dataclass(frozen=True)
class RandomState:
    """The random state at one moment, so that a forward can be repeated with the same dropout masks."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        module = _random_module(device)
        return cls(torch.get_rng_state(), device, None if module is None else module.get_rng_state(device))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Run the body from this state, and leave the present one as it was."""
        with forked_random_state(self.device):
            torch.set_rng_state(self.cpu)
            module = _random_module(self.device)
            if module is not None and self.accelerator is not None:
                module.set_rng_state(self.accelerator, self.device)
            yield


@contextmanager
def forked_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run the body with the random state set aside (and seeded anew, if asked), and put it back afterwards."""
    module = _random_module(device)
    if module is None:
        fork = torch.random.fork_rng(devices=[])
    else:
        fork = torch.random.fork_rng(devices=[device.index or 0], device_type=device.type)
    with fork:
        if seed is not None:  # torch.manual_seed looks for every kind of device there could be, in every step
            (torch.default_generator if module is None else torch).manual_seed(seed)
        yield


def _random_module(device: torch.device) -> Any:
    return None if device.type == "cpu" else torch.get_device_module(device)


@dataclass(frozen=True)
class ClassifierOutput:
    """What one forward says of a batch.

    Attributes:
        logits_BC: the model's logits, float32 (or float64), attached to the graph.
        features_BD: inputs of the last layer, float32 (or float64), detached; in training mode after dropout.
        random_state: the random state before the forward, where it was asked for.
    """

    logits_BC: Tensor
    features_BD: Tensor
    random_state: RandomState | None = None


class ClassifierTap:
    """Reads features and logits of a classifier from one ordinary forward.

    Args:
        model: a transformers or timm classifier, or any module whose last layer is an `nn.Linear` or a 1x1
            `nn.Conv2d` with as many outputs as there are labels.
        classifier_module: dotted name of that layer; None finds it.

    Raises:
        ValueError: when the layer cannot be found or several could be meant; the message lists the candidates and
            names the argument that settles it. Also for models that do not classify into exclusive classes.
    """

    def __init__(self, model: nn.Module, classifier_module: str | None = None):
        self.head_name, head = find_classifier_module(model, classifier_module)
        self.head: Any = head
        self.num_labels: int = _outputs(self.head)
        self.feature_size: int = self.weight_CD.shape[1]

    @property
    def weight_CD(self) -> Tensor:
        """The last layer's weight as a matrix, (C, D), gathered where it is spread over processes."""
        return whole(self.head.weight).flatten(1)

    @property
    def bias_C(self) -> Tensor | None:
        """The last layer's bias, (C,), or None where it has none; gathered where it is spread over processes."""
        return None if self.head.bias is None else whole(self.head.bias)

    def forward(
        self, model: nn.Module, inputs: Mapping[str, Tensor], remember_random_state: bool = False
    ) -> ClassifierOutput:
        """One forward of `model` (bare or wrapped), read at the last layer.

        Args:
            model: the model itself or a wrapper of it (DDP, compiled).
            inputs: keyword arguments of its forward, without labels.
            remember_random_state: keep the random state, so that the forward can be repeated with the same masks.
        """
        state = RandomState.now(self.head.weight.device) if remember_random_state else None
        with self.listening() as heard:
            logits_BC = model_logits(model(**inputs))
        return self.read(heard, logits_BC, state)

    @contextmanager
    def listening(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Collects (input, output) of the last layer for every forward inside the context."""
        heard: list[tuple[Tensor, Tensor]] = []
        # Eager only: torch.compile may run a graph in which this hook does not exist.
        handle = self.head.register_forward_hook(lambda _, args, output: heard.append((args[0].detach(), output)))
        try:
            yield heard
        finally:
            handle.remove()

    def read(
        self, heard: list[tuple[Tensor, Tensor]], logits_BC: Tensor, random_state: RandomState | None = None
    ) -> ClassifierOutput:
        """Features and logits of the forward that was just heard."""
        if not heard:
            raise ValueError(
                f"the forward did not pass through '{self.head_name}', which was taken for the classifier's last "
                "layer; name the right one with the argument classifier_module"
            )
        features, outputs = heard[-1]
        if outputs.ndim == 3:
            features_BD = features[torch.arange(len(features), device=features.device), _pooled(outputs, logits_BC)]
        else:
            features_BD = features.flatten(1)
        return ClassifierOutput(_full_precision(logits_BC), _full_precision(features_BD), random_state)

    def check_linear(self, output: ClassifierOutput, tolerance: float = 1e-2) -> None:
        """Raise unless `logits = W features + b`, which a look-ahead of the last layer alone relies on.

        Raises:
            ValueError: when the model changes its logits after the last layer (two averaged heads, a scale, a cap).
        """
        bias_C = None if self.bias_C is None else _full_precision(self.bias_C)
        expected_BC = F.linear(output.features_BD, _full_precision(self.weight_CD), bias_C)
        error = (expected_BC - output.logits_BC).abs().max() / output.logits_BC.abs().max().clamp(min=1)
        if not error <= tolerance:
            raise ValueError(
                f"the model's logits are not the output of its last layer '{self.head_name}' (they differ by "
                f"{error:.2g}); use scope='all', or name the layer with the argument classifier_module"
            )


def model_logits(outputs: Any) -> Tensor:
    """Logits of whatever a classifier returns: a mapping with `logits`, a tuple, or a tensor."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(f"the model returned no 'logits', only {', '.join(outputs)}: is it a classifier?")
        return outputs["logits"]
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def find_classifier_module(model: nn.Module, classifier_module: str | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The last layer of a classifier and its dotted name.

    Order: the explicit name; the only layer with `num_labels` outputs; timm's `get_classifier()`; the names that
    transformers uses. Several that could be meant, or none, is an error.

    Raises:
        ValueError: see above; also for regression (`num_labels=1`) and multi-label models.
    """
    config = getattr(model, "config", None)
    num_labels = getattr(config, "num_labels", None)
    if num_labels == 1:
        raise ValueError(
            "num_labels=1 is a regression model; wrong labels of exclusive classes need num_labels >= 2 "
            "(for a binary problem use num_labels=2)"
        )
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ValueError(
            "problem_type='multi_label_classification' is not supported: every sample must have exactly one label. "
            "Set config.problem_type='single_label_classification' or train one classifier per label"
        )

    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not _ADAPTER_PARTS.search(name)
    }
    if classifier_module is not None:
        matches = [name for name in layers if name == classifier_module or name.endswith("." + classifier_module)]
        if len(matches) != 1:
            raise ValueError(
                f"classifier_module='{classifier_module}' is not an nn.Linear or nn.Conv2d of "
                f"{type(model).__name__}; its last ones are: {', '.join(list(layers)[-6:]) or 'none'}"
            )
        return matches[0], layers[matches[0]]

    candidates = {name: layer for name, layer in layers.items() if num_labels in (None, _outputs(layer))}
    if num_labels is None:  # a plain module tells us nothing: its last layer decides
        candidates = dict(list(candidates.items())[-1:])
    by_timm = [name for name, layer in candidates.items() if layer is _timm_classifier(model)]
    for names in (list(candidates), by_timm, *_matches_by_known_name(candidates)):
        if len(names) == 1:
            return names[0], candidates[names[0]]
    found = f"several could be meant ({', '.join(candidates)})" if candidates else "none was found"
    raise ValueError(
        f"cannot tell which layer of {type(model).__name__} turns features into logits of {num_labels} labels: "
        f"{found}. Name it with the argument classifier_module; the model's last layers are: "
        f"{', '.join(list(layers)[-6:]) or 'none'}"
    )


def _matches_by_known_name(candidates: Iterable[str]) -> Iterator[list[str]]:
    for known in _KNOWN_NAMES:
        pattern = re.compile(rf"(^|\.){re.escape(known)}(\.\d+)?(\.modules_to_save\.\w+)?(\.base_layer)?$")
        yield [name for name in candidates if pattern.search(name)]


def _timm_classifier(model: nn.Module) -> nn.Module | None:
    module: Any
    for module in (model, getattr(model, "timm_model", None)):
        if hasattr(module, "get_classifier"):
            return module.get_classifier()
    return None


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _pooled(outputs_BTC: Tensor, logits_BC: Tensor) -> Tensor:
    """Which token's output the model returned, (B,): decoders classify every token and then pick one.

    Read off the values, so that no rule about padding has to be repeated here.
    """
    same_BT = (outputs_BTC.detach().to(logits_BC.dtype) == logits_BC.detach()[:, None]).all(dim=2)
    return same_BT.to(torch.uint8).argmax(dim=1)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
