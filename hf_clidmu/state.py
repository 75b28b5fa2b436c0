"""What a checkpoint holds of a run beside the model: tensors as safetensors, everything else as JSON. No pickle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_clidmu.files import read_json, read_tensors, write_json, write_tensors


FOLDER = "clidmu"
VERSION = 5
_VALUES_NAME = "state.json"


def save_state(checkpoint: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
    """Write groups of tensors and JSON values into the checkpoint's own folder.

    The values are written last: a folder without them is an unfinished one.

    Raises:
        OSError: when the disk does not take them; the folder is then an unfinished one.
    """
    folder = Path(checkpoint) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / _VALUES_NAME, *folder.glob("*.safetensors")):  # of a run that was here before
        old.unlink(missing_ok=True)
    for name, group in tensors.items():
        if group:
            write_tensors(folder / f"{name}.safetensors", group)
    write_json(folder / _VALUES_NAME, {"version": VERSION, **values})


def load_state(checkpoint: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What [`save_state`] wrote.

    Raises:
        ValueError: when the checkpoint was not written by this trainer, not completely, or by another version; also
            when a file in it cannot be read.
    """
    folder = Path(checkpoint) / FOLDER
    if not (folder / _VALUES_NAME).is_file():
        raise ValueError(
            f"{checkpoint} has no folder '{FOLDER}' with a {_VALUES_NAME}: it was not written by CLIDMUTrainer, or not "
            "completely. Start without resume_from_checkpoint, or from another checkpoint"
        )
    values = read_json(folder / _VALUES_NAME)
    if values.get("version") != VERSION:
        raise ValueError(f"{folder} has format {values.get('version')}, this version reads format {VERSION}")
    return {path.stem: read_tensors(path) for path in sorted(folder.glob("*.safetensors"))}, values


def whole_number(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A count of the saved values.

    Raises:
        ValueError: when it is missing, or no whole number from zero on.
    """
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"the saved state holds {value!r:.80} as '{name}', where a whole number from 0 on belongs")
    return value


def real_number(values: Mapping[str, Any], name: str) -> float:
    """A number of the saved values, NaN for null.

    Raises:
        ValueError: when it is missing or anything else.
    """
    value = values.get(name, "nothing")
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise ValueError(f"the saved state holds {value!r:.80} as '{name}', where a number or null belongs")
    return float(value)


def real_numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Finite numbers of the saved values.

    Raises:
        ValueError: when they are missing or anything else.
    """
    found = values.get(name, "nothing")
    if not isinstance(found, list) or not all(type(value) in (int, float) and abs(value) < 1e300 for value in found):
        raise ValueError(f"the saved state holds {found!r:.80} as '{name}', where a list of numbers belongs")
    return tuple(float(value) for value in found)


class OptimizerState:
    """An optimiser whose state is named tensors.

    Args:
        optimizer: of the weighting; None, where it has no parameters, has no state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """See [`optimizer_tensors`]."""
        return optimizer_tensors(self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See [`load_optimizer_tensors`]."""
        load_optimizer_tensors(self.optimizer, state)


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """An optimiser's state as named tensors; empty for None."""
    if optimizer is None:
        return {}
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": torch.as_tensor(value) for number, slot in state.items() for key, value in slot.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]) -> None:
    """Put back what [`optimizer_tensors`] took.

    Raises:
        ValueError: when it belongs to other parameters.
    """
    if optimizer is None or not tensors:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        fits = number.isdecimal() and number.isascii() and len(number) < 9 and int(number) < len(parameters)
        if not (fits and key and (value.ndim == 0 or value.shape == parameters[int(number)].shape)):
            raise ValueError(
                f"the saved optimiser state does not fit: '{name}' of shape {tuple(value.shape)} belongs to none of "
                f"its {len(parameters)} parameters"
            )
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
