"""What a checkpoint holds of a run beside the model: tensors as safetensors, everything else as JSON. No pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


FOLDER = "clidmu"
VERSION = 1
_VALUES_NAME = "state.json"


def save_state(checkpoint: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
    """Write groups of tensors and JSON values into the checkpoint's own folder.

    The values are written last: a folder without them is an unfinished one.
    """
    folder = Path(checkpoint) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / _VALUES_NAME, *folder.glob("*.safetensors")):  # of a run that was here before
        old.unlink(missing_ok=True)
    for name, group in tensors.items():
        if group:
            save_file({key: value.contiguous() for key, value in group.items()}, folder / f"{name}.safetensors")
    text = json.dumps({"version": VERSION, **values}) + "\n"
    unfinished = folder / (_VALUES_NAME + ".tmp")
    unfinished.write_text(text, encoding="utf8")
    unfinished.replace(folder / _VALUES_NAME)


def load_state(checkpoint: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What [`save_state`] wrote.

    Raises:
        ValueError: when the checkpoint was not written by this trainer, not completely, or by another version.
    """
    folder = Path(checkpoint) / FOLDER
    if not (folder / _VALUES_NAME).is_file():
        raise ValueError(
            f"{checkpoint} has no folder '{FOLDER}' with a {_VALUES_NAME}: it was not written by CLIDMUTrainer, or not "
            "completely. Start without resume_from_checkpoint, or from another checkpoint"
        )
    values = json.loads((folder / _VALUES_NAME).read_text(encoding="utf8"))
    if values.get("version") != VERSION:
        raise ValueError(f"{folder} has format {values.get('version')}, this version reads format {VERSION}")
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}, values


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """An optimiser's state as named tensors; empty for None."""
    if optimizer is None:
        return {}
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": torch.as_tensor(value) for number, slot in state.items() for key, value in slot.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]) -> None:
    """Put back what [`optimizer_tensors`] took."""
    if optimizer is None or not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
