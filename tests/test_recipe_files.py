"""The YAML recipes: each parses, is short and commented, and is listed with its launch line; presets find theirs."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.data import PRESETS
from hf_clidmu.engines import refuse_engine


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
FILES = sorted(path for room in ("text", "vision") for path in (RECIPES / room).glob("*.yaml"))


@pytest.fixture(scope="module")
def arguments():
    sys.path.insert(0, str(RECIPES))
    try:
        return importlib.import_module("arguments")
    finally:
        sys.path.remove(str(RECIPES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe(path, arguments):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 120
    run, config = arguments.parse(
        (arguments.RunArguments, CLIDMUConfig), ["--use_cpu", "true", "--config", str(path)], None
    )
    values = yaml.safe_load(text)
    assert run.dataset == values["dataset"] and config.output_dir == f"outputs/{Path(config.output_dir).name}"
    assert (
        f"`accelerate launch recipes/train.py --config {path.relative_to(RECIPES.parent)}`"
        in (path.parent / "README.md").read_text()
    )
    if "$" not in run.dataset and run.dataset != "digits":
        preset = PRESETS[run.dataset]
        assert preset.modality == ("text" if path.parent.name == "text" else "image")
        assert f"`{preset.folder}`" in (path.parent / "README.md").read_text()


def test_every_preset_has_a_recipe_of_its_data(arguments):
    for preset in PRESETS.values():
        dataset = yaml.safe_load((RECIPES / preset.recipe).read_text())["dataset"]
        named = PRESETS[dataset].folder if dataset in PRESETS else dataset.split("/")[-1]
        assert named == preset.folder, preset.name


def test_a_noise_map_from_yaml_and_from_the_command_line(arguments, tmp_path):
    sys.path.insert(0, str(RECIPES))
    try:
        class_map = importlib.import_module("train").class_map
    finally:
        sys.path.remove(str(RECIPES))
    path = tmp_path / "recipe.yaml"
    path.write_text("noise_map: {World: Business}\n")
    types = (arguments.RunArguments, CLIDMUConfig)
    for words in (["--config", str(path)], ["--noise_map", '{"World": "Business"}']):
        run, _ = arguments.parse(types, ["--use_cpu", "true", *words], None)
        assert class_map(run.noise_map) == {"World": "Business"}
    assert class_map("next") == "next" and class_map(None) is None
    with pytest.raises(SystemExit, match="error: noise_map: {oops is no JSON"):
        class_map("{oops")


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_launch_configuration_is_one_that_accelerate_reads_and_that_is_listed(path):
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    assert config.num_processes >= 1 and (config.use_cpu, config.num_machines) == (False, 1)
    text = path.read_text()
    assert text.startswith("# ") and max(map(len, text.splitlines())) <= 120
    assert f"--config_file {path.relative_to(RECIPES.parent)}" in (path.parent / "README.md").read_text()


def test_the_configuration_of_fsdp2_is_not_refused(monkeypatch):
    """Each of its settings is one of Accelerate's, and together they are what the trainer takes."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    settings = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    names = {"version": "fsdp_version", "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap"}
    names |= {"offload_params": "cpu_offload"}
    given = {name.removeprefix("fsdp_"): value for name, value in settings.items()}
    given = {names.get(name, name): [value] if "cls" in name else value for name, value in given.items()}
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin sets it
    plugin = FullyShardedDataParallelPlugin(**given)
    refuse_engine(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
