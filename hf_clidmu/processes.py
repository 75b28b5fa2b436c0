"""The processes of a distributed run, as far as training on wrong labels needs them to talk to one another.

Never through a DDP wrapper: the meta step works on the bare module, and what it finds is averaged here, by hand. With
one process everything is what it was given.

Shape suffixes: W processes, B batch of one process, C classes.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor


T = TypeVar("T")


class Processes:
    """How many processes there are, which one this is, and what they tell one another.

    Args:
        accelerator: of the trainer; None stands for a single process.
    """

    def __init__(self, accelerator: Any = None):
        self.accelerator = accelerator
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.index: int = 0 if accelerator is None else accelerator.process_index

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.count > 1

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean over processes of each tensor, in one exchange a dtype."""
        if not self.several or not tensors:
            return tensors
        result: list[Tensor] = list(tensors)
        for dtype in {tensor.dtype for tensor in tensors}:
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in places])
            dist.all_reduce(flat)
            flat /= self.count
            for place, part in zip(places, flat.split([tensors[p].numel() for p in places]), strict=True):
                result[place] = part.view(tensors[place].shape)
        return result

    def everywhere(self, flag: Tensor) -> Tensor:
        """Whether a flag, (), holds in every process; stays on the device."""
        if not self.several:
            return flag
        number = flag.to(torch.int32).reshape(1)
        dist.all_reduce(number, op=dist.ReduceOp.MIN)
        return number[0] > 0

    def gather(self, tensor_B: Tensor) -> Tensor:
        """Rows of all processes, in the order of the processes, without gradient. All must have as many."""
        if not self.several:
            return tensor_B
        tensor_B = tensor_B.detach().contiguous()
        gathered = tensor_B.new_empty((self.count * len(tensor_B), *tensor_B.shape[1:]))
        dist.all_gather_into_tensor(gathered, tensor_B)
        return gathered

    def samples(self, rows: list[Tensor], num_samples: int, drops_last: bool = False) -> list[Tensor]:
        """[`gather`] of what belongs to the samples of a training batch, each sample once an epoch.

        The sampler fills the last round of an epoch up with samples from its beginning, so that all processes have as
        many; these are left out.

        Args:
            rows: tensors of B rows each.
            num_samples: in the dataset.
            drops_last: whether an incomplete last round is dropped instead.
        """
        if not self.several:
            return rows
        rows = [self.gather(tensor) for tensor in rows]
        at = self.accelerator.gradient_state
        if at.end_of_dataloader and at.sync_gradients and not drops_last:
            left_over = num_samples % len(rows[0])
            rows = [tensor[: left_over or None] for tensor in rows]
        return rows

    def gather_with_gradient(self, tensor_B: Tensor) -> Tensor:
        """[`gather`], differentiable: for a function that every process computes alike from the gathered rows.

        The gradient of the own rows is multiplied by the number of processes, so that the *mean* over processes of a
        parameter's gradient is the gradient of that one function.
        """
        return _Gather.apply(tensor_B, self) if self.several else tensor_B

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes, differentiable: what every process makes of it flows back to all."""
        return _Total.apply(tensor) if self.several else tensor

    def own(self, tensor: Tensor) -> Tensor:
        """The rows of this process, of rows drawn for all alike."""
        size = len(tensor) // self.count
        return tensor[self.index * size : (self.index + 1) * size]

    def from_first(self, value: Callable[[], T]) -> T:
        """What the first process computes; an error there is an error everywhere."""
        if not self.several:
            return value()
        answer: list[Any] = [None, None]
        if self.index == 0:
            try:
                answer[0] = value()
            except Exception as error:
                answer[1] = error
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def share(self, value: T) -> T:
        """The first process's value, in every process."""
        return self.from_first(lambda: value)

    def first_of(self, value: T | None) -> T | None:
        """The first value that is not None, of all processes'."""
        values = gather_object([value]) if self.several else [value]
        return next((one for one in values if one is not None), None)

    def check_identical(self, what: str, state: Mapping[str, Tensor]) -> None:
        """Raise unless a state is the same, bit for bit, in every process.

        Raises:
            RuntimeError: in every process; the message names those that differ from the first.
        """
        if not self.several:
            return
        digests = gather_object([digest(state)])
        others = [str(index) for index, value in enumerate(digests) if value != digests[0]]
        if others:
            raise RuntimeError(
                f"{what} differs between processes: process {', '.join(others)} from process 0. All must start from "
                "the same parameters and see the same random numbers: build it before the launch with one seed, and "
                "draw only from the generator that prepare() is given"
            )


def digest(state: Mapping[str, Tensor]) -> str:
    """A checksum of named tensors, bit for bit, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole = tensor.detach().cpu().contiguous()
        found.update(f"{name}{whole.dtype}{tuple(whole.shape)}".encode())
        found.update(whole.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_B: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.gather(tensor_B)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.own(gradient) * ctx.processes.count, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient.contiguous())
