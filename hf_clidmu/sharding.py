"""The parameters of a model as processes hold them: all of them in each ([`Wholes`]), or spread (FSDP2).

Where they are spread, each process holds a *share* of every parameter (a `DTensor`); the whole of it exists while a
forward or backward needs it. Until the next backward the outermost modules keep their whole parameters, and then the
module names *those*, so whoever wants the shares must take them in a moment in which all are spread, or ask for that
([`spread`]).

What is small is gathered: the last layer, and one tensor at a time of what is kept. What is large stays where it is:
the look-ahead of more than the head displaces the shares, and the engine's own backward averages its gradients
([`Shares`]). All of this is communication: every process must ask for it at the same moment.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


Average = Callable[[list[Tensor]], list[Tensor]]
#: Outputs of a model and the gradient in each, one after the other: a batch that goes through in parts.
Parts = Iterable[tuple[Tensor, Tensor]]


def is_spread(module: nn.Module) -> bool:
    """Whether the parameters of a model are spread over processes by FSDP2."""
    from torch.distributed.fsdp import FSDPModule  # late: whoever trains without it has not imported it

    return isinstance(module, FSDPModule)


def spread(module: nn.Module) -> None:
    """Let go of whole parameters that a forward left behind: the module names the shares again."""
    for part in module.modules() if is_spread(module) else ():
        if is_spread(part):
            part.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which every process holds a share; any other tensor is whole."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, not a copy of it; all of one that is whole."""
    return tensor.detach().to_local() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same in every process, spread as another one is; as it is where the other is whole."""
    if not _is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@dataclass(frozen=True)
class Wholes:
    """The parameters of a model that every process has all of, for a look-ahead (see [`Shares`]).

    Args:
        average: averages a list of tensors over processes; None for a single process.
    """

    average: Average | None = None

    def values(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        """The parameters."""
        return parameters

    def gradients(self, parameters: Sequence[nn.Parameter], parts: Parts, retain_graph: bool = False) -> list[Tensor]:
        """The gradient of each parameter, summed over parts, averaged over processes; `.grad` is left alone."""
        gradients: list[Tensor] = []
        for output, output_gradient in parts:
            some = torch.autograd.grad(
                output,
                parameters,
                output_gradient.to(output.dtype),
                retain_graph=retain_graph,
                allow_unused=True,
                materialize_grads=True,
            )
            gradients = _added(gradients, some) if gradients else list(some)
        return gradients if self.average is None else self.average(gradients)

    def length(self, parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean length of all tensors together, (); float32."""
        return torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors])

    @contextmanager
    def displaced(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
        """Parameters hold other values inside the context and their own, bit for bit, after it.

        The tensors are exchanged, not written to, so a graph recorded before stays valid and an exception loses
        nothing.
        """
        originals = [parameter.data for parameter in parameters]
        try:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.data = value.to(parameter.dtype)
            torch.clear_autocast_cache()  # it may hold half-precision copies of the originals
            yield
        finally:
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.data = original
            torch.clear_autocast_cache()


class Shares:
    """The parameters of a spread model, for a look-ahead: each process moves what it holds.

    Args:
        module: the bare model, prepared by Accelerate.
    """

    def __init__(self, module: nn.Module):
        spread(module)
        self.module = module
        self.named = dict(module.named_parameters())

    def values(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """What this process holds of each."""
        return [share(parameter) for parameter in parameters]

    def gradients(self, parameters: Sequence[nn.Parameter], parts: Parts, retain_graph: bool = False) -> list[Tensor]:
        """The share of the same that this process holds; what was accumulated in `.grad` before stays.

        The engine gathers parameters and averages gradients in a backward of its own, which leads to `.grad`.
        """
        accumulated = {name: parameter.grad for name, parameter in self.named.items()}
        for parameter in self.named.values():
            parameter.grad = None
        try:
            for output, output_gradient in parts:
                torch.autograd.backward(output, output_gradient.to(output.dtype), retain_graph=retain_graph)
            return [
                torch.zeros_like(share(parameter)) if parameter.grad is None else share(parameter.grad)
                for parameter in parameters
            ]
        finally:
            for name, parameter in self.named.items():
                parameter.grad = accumulated[name]

    def length(self, parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean length of all shares together, of all processes, (); float32."""
        own = torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors]) ** 2
        mesh, placements = parameters[0].device_mesh, parameters[0].placements  # type: ignore[attr-defined]
        axis = next(axis for axis, placement in enumerate(placements) if placement.is_shard())
        dist.all_reduce(own, group=mesh.get_group(axis))
        return own.sqrt()

    @contextmanager
    def displaced(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
        """As [`Wholes.displaced`], of the shares.

        The engine reads the memory of the shares, so it is that memory which is written to; graphs recorded before
        gather the parameters anew when they are gone through, and find the own values.
        """
        shares = self.values(parameters)
        originals = [tensor.clone() for tensor in shares]
        spread(self.module)
        try:
            for tensor, value in zip(shares, values, strict=True):
                tensor.copy_(value)
            yield
        finally:
            for tensor, original in zip(shares, originals, strict=True):
                tensor.copy_(original)
            spread(self.module)


def _is_shared(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, without importing what that takes


def _added(tensors: list[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """The sums, in the memory of the first where it is one tensor's alone: two parameters may have one gradient."""
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    return [
        t.add_(m) if owners[t.untyped_storage().data_ptr()] == 1 and t.is_contiguous() else t + m
        for t, m in zip(tensors, more, strict=True)
    ]
