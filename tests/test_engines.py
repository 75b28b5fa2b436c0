"""What spreads a model, and what of it is refused: the reason and the way out are in the message."""

from types import SimpleNamespace

import pytest

from hf_clidmu.engines import refuse_engine


FSDP2 = {
    "fsdp_version": 2,
    "state_dict_type": "StateDictType.FULL_STATE_DICT",
    "cpu_ram_efficient_loading": False,
    "cpu_offload": None,
}


class CPUOffloadPolicy:
    pass


def accelerator(sizes=None, **plugins):
    parallel = None if sizes is None else SimpleNamespace(**sizes)
    return SimpleNamespace(state=SimpleNamespace(**plugins), parallelism_config=parallel)


def fsdp(**changes):
    return accelerator(fsdp_plugin=SimpleNamespace(**{**FSDP2, **changes}))


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        (accelerator(deepspeed_plugin=object()), r"DeepSpeed is not supported: .* use DDP .*ddp.yaml\) or FSDP2"),
        (accelerator(megatron_lm_plugin=object()), "Megatron-LM is not supported"),
        (accelerator({"tp_size": 2, "cp_size": 1}), "parallelism_config with tp_size > 1 is not supported"),
        (accelerator({"cp_size": 2, "sp_size": 2}), "with cp_size > 1, sp_size > 1 is not supported"),
        (fsdp(fsdp_version=1), "FSDP1 is not supported: .* Set fsdp_version: 2"),
        (fsdp(state_dict_type="StateDictType.SHARDED_STATE_DICT"), "Set fsdp_state_dict_type: FULL_STATE_DICT"),
        (fsdp(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading is not supported: .* Set it to false"),
        (fsdp(cpu_offload=CPUOffloadPolicy()), "fsdp_offload_params is not supported: .* Set it to false"),
    ],
)
def test_refused(launched, message):
    with pytest.raises(ValueError, match=message) as refusal:
        refuse_engine(launched)
    assert "for a plain Trainer pass args=TrainingArguments(...)" in str(refusal.value)


def test_refused_with_fsdp2_alone():
    with pytest.raises(ValueError, match="tangent='forward' does not work .* use tangent='finite_difference'"):
        refuse_engine(fsdp(), forward_mode=True)
    with pytest.raises(ValueError, match="load it whole, and use DDP"):
        refuse_engine(accelerator(), loaded_spread=True)


@pytest.mark.parametrize(
    "launched",
    [accelerator(), accelerator(deepspeed_plugin=None, fsdp_plugin=None), fsdp(), accelerator({"tp_size": 1})],
)
def test_taken(launched):
    refuse_engine(launched)
