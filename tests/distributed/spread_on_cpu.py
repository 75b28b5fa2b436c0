"""FSDP2 on the CPU, for tests.

The engine (`fully_shard`) runs on gloo. Accelerate 1.15 starts it on accelerators only: with CPU processes it silently
runs DDP instead. Here it is told otherwise, with the settings of `recipes/accelerate/fsdp2.yaml`.
"""

import os
from pathlib import Path

import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


SETTINGS = Path(__file__).resolve().parents[2] / "recipes" / "accelerate" / "fsdp2.yaml"


def install(**changes: object) -> None:
    """What `accelerate launch --config_file recipes/accelerate/fsdp2.yaml` sets, with changes by name."""
    settings = {**yaml.safe_load(SETTINGS.read_text())["fsdp_config"], **changes}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in settings.items():
        name = name.removeprefix("fsdp_").replace("transformer_layer_cls", "transformer_cls")  # as the launcher does
        os.environ[f"FSDP_{name.upper()}"] = str(value)
    original = AcceleratorState.__init__

    def started(self: AcceleratorState, *args: object, fsdp_plugin: object = None, **kwargs: object) -> None:
        known = "fsdp_plugin" in AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and not known:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = started
