"""What a model is made to do aside: buffers and random numbers of its own for a while, and all as it was afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hf_clidmu.classifier import forked_random_state


@contextmanager
def without_checkpointing(module: nn.Module) -> Iterator[None]:
    """Inside, layers of transformers and timm keep their activations; where no backward follows, that costs nothing.

    Older versions checkpoint even then, and a checkpoint has no forward-mode derivative.
    """
    names = ("gradient_checkpointing", "grad_checkpointing")
    switched = [(part, name) for part in module.modules() for name in names if part.__dict__.get(name) is True]
    try:
        for part, name in switched:
            setattr(part, name, False)
        yield
    finally:
        for part, name in switched:
            setattr(part, name, True)


@contextmanager
def even_duals(module: nn.Module) -> Iterator[None]:
    """Inside, tangents have the type of their values.

    Batch normalisation with running statistics gives half-precision values a float32 tangent, which no convolution
    takes.
    """

    def even(_: nn.Module, __: object, output: Tensor) -> Tensor:
        value, tangent = forward_ad.unpack_dual(output)
        if tangent is None or tangent.dtype == value.dtype:
            return output
        return forward_ad.make_dual(value, tangent.to(value.dtype))

    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_hook(even) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def private_buffers(module: nn.Module) -> Iterator[None]:
    """Inside the context every buffer is a copy: running statistics move there and nowhere else.

    A buffer that several modules share stays one buffer.
    """
    owners = [module]
    for owner in owners:  # the list grows meanwhile; `module.modules()` would put together the names of all on the way
        owners.extend(child for child in owner._modules.values() if child is not None)
    originals = [
        (owner, name, buffer) for owner in owners for name, buffer in owner._buffers.items() if buffer is not None
    ]
    shared = {id(buffer): buffer for _, _, buffer in originals}
    copies = {key: torch.empty_like(buffer) for key, buffer in shared.items()}
    if copies:  # in one kernel a type, where there may be hundreds
        torch._foreach_copy_(list(copies.values()), list(shared.values()))
    try:
        for owner, name, buffer in originals:
            owner._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for owner, name, buffer in originals:
            owner._buffers[name] = buffer


@contextmanager
def without_side_effects(module: nn.Module, seed: int) -> Iterator[None]:
    """A forward inside leaves neither buffers nor the random state changed; its dropout masks follow the seed."""
    device = next(module.parameters()).device
    with forked_random_state(device, seed), private_buffers(module):
        yield
