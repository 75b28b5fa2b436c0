"""What spreads a model over devices, and which of it a run of ours can have: said before anything is computed."""

from typing import Any


_INSTEAD = "use DDP (recipes/accelerate/ddp.yaml) or FSDP2 (recipes/accelerate/fsdp2.yaml)"
_PLAIN = "; for a plain Trainer pass args=TrainingArguments(...)"


def refuse_engine(accelerator: Any, loaded_spread: bool = False, forward_mode: bool = False) -> None:
    """Refuse engines under which a run would be wrong, or was never seen to be right.

    Args:
        accelerator: of the trainer.
        loaded_spread: whether the model was spread over processes when it was loaded (`distributed_config`).
        forward_mode: whether the logit tangent is wanted from forward-mode differentiation.

    Raises:
        ValueError: with the reason, and what to use instead.
    """
    state = accelerator.state
    if getattr(state, "deepspeed_plugin", None) is not None:
        raise ValueError(
            "DeepSpeed is not supported: it keeps parameters and gradients in partitions of its own, and Accelerate "
            f"starts it on GPUs only, where nobody has tested it with this trainer yet; {_INSTEAD}{_PLAIN}"
        )
    if getattr(state, "megatron_lm_plugin", None) is not None:
        raise ValueError(f"Megatron-LM is not supported: {_INSTEAD}{_PLAIN}")
    parallel = getattr(accelerator, "parallelism_config", None)
    split = [name for name in ("tp", "cp", "sp") if getattr(parallel, f"{name}_size", 1) > 1]
    if split:
        raise ValueError(
            f"parallelism_config with {', '.join(f'{name}_size > 1' for name in split)} is not supported: processes "
            f"that share a sample would count as several with one each; {_INSTEAD}{_PLAIN}"
        )
    if loaded_spread:
        raise ValueError(
            "the model was spread over processes when it was loaded (from_pretrained(distributed_config=...)), which "
            f"is not supported: load it whole, and {_INSTEAD}{_PLAIN}"
        )
    if (fsdp := getattr(state, "fsdp_plugin", None)) is not None:
        _refuse_fsdp(fsdp, forward_mode)


def _refuse_fsdp(plugin: Any, forward_mode: bool) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP1 is not supported: it flattens parameters into one, and neither the last layer nor a snapshot can be "
            f"told apart in it. Set fsdp_version: 2 (recipes/accelerate/fsdp2.yaml){_PLAIN}"
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"FSDP2 with {getattr(plugin.state_dict_type, 'name', plugin.state_dict_type)} is not supported: it saves "
            "no model.safetensors, and torch reads its checkpoints with pickle. Set fsdp_state_dict_type: "
            f"FULL_STATE_DICT{_PLAIN}"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is not supported: every process reads the pretrained model before it is "
            f"spread (CLID judges by its features), and this leaves all but the first without. Set it to false{_PLAIN}"
        )
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        raise ValueError(
            f"fsdp_offload_params is not supported: nobody has tested it with this trainer yet. Set it to false{_PLAIN}"
        )
    if forward_mode:
        raise ValueError(
            "tangent='forward' does not work on parameters that are spread over processes (FSDP2): use "
            "tangent='finite_difference'"
        )
