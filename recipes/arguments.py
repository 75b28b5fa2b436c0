"""Arguments of the recipes: a YAML file gives defaults, the command line wins, unknown names are an error.

Importing this is cheap, so that a call for help is answered before anything that takes seconds is imported.
"""

import ast
import dataclasses
import difflib
import importlib.util
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_clidmu.data import NOISE_KINDS


@dataclass
class RunArguments:
    """What to train on what."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "Hub id, local folder or file, a preset such as 'cifar10n_worse', or the built-in 'digits'. "
            "Environment variables are expanded."
        },
    )
    model: str = field(
        default="test_resnet",
        metadata={"help": "Local folder, Hub id, or the name of a timm architecture (random weights)."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Input size in pixels, for a model built from an architecture name."}
    )
    pooling: str = field(
        default="auto",
        metadata={"help": "How a text encoder is read: own, mean, or auto (as a sentence encoder says of itself)."},
    )
    augment: str = field(
        default="light", metadata={"help": "Augmentation of training images: off, light, randaugment."}
    )
    channels_last: bool = field(
        default=True,
        metadata={"help": "Keep an image model in the memory layout that convolutions are fastest in; same model."},
    )
    hflip: bool = field(default=True, metadata={"help": "Whether augmentation mirrors images left to right."})
    max_length: int = field(default=128, metadata={"help": "Longest text, in tokens."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the given labels; found if not named. Several annotators, put to a majority vote: their "
            "names with commas between them, or a pattern such as 'random_label*'."
        },
    )
    missing_labels: str = field(
        default="error", metadata={"help": "What to do with training rows without a label: error or drop."}
    )
    class_names: str | None = field(
        default=None, metadata={"help": "Class names in index order, with commas; for columns of bare numbers."}
    )
    clean_label_column: str | None = field(
        default=None, metadata={"help": "Column of true labels, for reporting only."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found if not named."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts; found if not named."})
    noise: str | None = field(
        default=None,
        metadata={
            "help": "Noise to inject into the training labels: "
            + ", ".join(kind for kind in NOISE_KINDS if kind not in ("feature", "transition"))
            + "."
        },
    )
    noise_rate: float = field(default=0.0, metadata={"help": "Share of training labels to make wrong."})
    noise_seed: int = field(default=0, metadata={"help": "Seed of the injected noise, and of ties among annotators."})
    noise_map: str | None = field(
        default=None,
        metadata={
            "help": "For asymmetric noise, what each class is mistaken for: a mapping of classes (on the command line "
            "as JSON), or 'next'; presets of CIFAR know it."
        },
    )
    test_size: float | None = field(
        default=None,
        metadata={"help": "Share of the training data held out for testing, where there is no test split."},
    )
    noisy_validation: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training data, with its given labels, to evaluate on instead of a validation split; "
            "with --metric_for_best_model accuracy --greater_is_better true the best state there is selected."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training split as it comes; needs max_steps, and judges on the evaluation set."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use at most so many training samples."})
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train low-rank adapters of this rank on all linear layers (needs peft); saved merged."},
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use the first so many rows of the validation split, at most."}
    )
    max_test_samples: int | None = field(
        default=None, metadata={"help": "Use the first so many rows of the test split, at most."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code of a model repository run."})
    clean_meta: bool = field(
        default=False,
        metadata={
            "help": "Upper reference, not a method: judge by true labels of the meta samples (objective=cross_entropy)."
        },
    )
    track_test: bool = field(
        default=True, metadata={"help": "Score every evaluated state on the test split, for the oracle row."}
    )
    score_on: str = field(
        default="test",
        metadata={
            "help": "The split that the final table scores: test, or validation, on which settings are to be chosen."
        },
    )
    card_examples: int = field(
        default=0,
        metadata={
            "help": "Show so many samples, those whose labels are believed least, on the model card. Texts are "
            "shown as they are: only for data that anybody may read. Of images, their row."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a finished run in output_dir."})
    dry_run: bool = field(default=False, metadata={"help": "Build everything, do one step, print the plan, stop."})


def parse(
    types: tuple[type, ...], arguments: list[str] | None = None, default_config: Path | None = None
) -> tuple[Any, ...]:
    """Dataclasses filled from `--config file.yaml` and the command line.

    Args:
        types: the dataclasses; a name belongs to one of them.
        arguments: the command line; None takes that of the process.
        default_config: the YAML file of a call without any argument about what to run.

    Returns:
        One instance per type.
    """
    from transformers import HfArgumentParser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    answer_help(arguments)
    if arguments and not arguments[0].startswith("-") and Path(arguments[0]).suffix in (".yaml", ".yml"):
        arguments.insert(0, "--config")
    arguments = ["--help" if argument == "--help_all" else argument for argument in arguments]
    # No abbreviations: `--conf FILE` would be accepted, and never read.
    parser = HfArgumentParser(
        types, description="YAML (--config FILE) gives defaults, the command line wins.", allow_abbrev=False
    )
    parser.add_argument("--config", help="YAML file with defaults for any of these arguments.", default=None)
    config = _option(arguments, "--config")
    chosen = {"--dataset", "--model", "--help"} & {argument.split("=")[0] for argument in arguments}
    path = Path(config) if config else default_config if not chosen else None
    if path is not None:
        parser.set_defaults(**read_yaml(path, [field.name for kind in types for field in dataclasses.fields(kind)]))
        for action in parser._actions:  # what the file gives need not be given again
            action.required = False
    try:
        *parsed, rest, unknown = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    except (ValueError, ImportError) as error:  # settings that do not go together, here or on this machine
        sys.exit(f"error: {error}")
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        parser.error(
            "; ".join(_unknown(word, known, "argument") for word in unknown if word.startswith("-")) or str(unknown)
        )
    return tuple(parsed)


def answer_help(arguments: list[str]) -> None:
    """Print what is ours and leave, if help is asked for. What `TrainingArguments` adds is a matter of seconds."""
    if not {"-h", "--help"} & set(arguments):
        return
    print(
        "usage: train.py [[--config] FILE] [--NAME VALUE ...]\n\n"
        "YAML (--config FILE) gives defaults, the command line wins. Every argument of transformers.TrainingArguments\n"
        "is accepted, too; --help_all lists them all.\n\nWhat to train on what:"
    )
    print(_described("config", "str", "the digits", "YAML file with defaults for any of these arguments."))
    for argument in dataclasses.fields(RunArguments):
        kind = argument.type if isinstance(argument.type, str) else getattr(argument.type, "__name__", argument.type)
        print(_described(argument.name, str(kind), repr(argument.default), argument.metadata["help"]))
    print("\nHow (CLIDMUConfig):")
    for name, kind, default, text in declared_settings():
        print(_described(name, kind, default, text))
    sys.exit()


def declared_settings() -> list[tuple[str, str, str, str]]:
    """Name, type, default and help of what `CLIDMUConfig` declares, read from its source without importing it."""
    found = importlib.util.find_spec("hf_clidmu.config")
    assert found is not None and found.origin is not None
    classes = ast.walk(ast.parse(Path(found.origin).read_text(encoding="utf8")))
    (config,) = [node for node in classes if isinstance(node, ast.ClassDef) and node.name == "CLIDMUConfig"]
    settings = []
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and isinstance(node.target, ast.Name):
            given = {keyword.arg: keyword.value for keyword in node.value.keywords}
            text = ast.literal_eval(given["metadata"])["help"]
            settings.append((node.target.id, ast.unparse(node.annotation), ast.unparse(given["default"]), text))
    return settings


def _described(name: str, kind: str, default: str, text: str) -> str:
    lines = textwrap.wrap(f"{text} ({kind}, default {default})", 90)
    return f"  --{name:<25} " + ("\n" + " " * 30).join(lines)


def read_yaml(path: Path, known: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SystemExit: when the file is missing, is no mapping, or holds an unknown name; the message names the nearest.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except FileNotFoundError:
        sys.exit(f"error: --config {path}: no such file")
    except yaml.YAMLError as error:
        sys.exit(f"error: --config {path} is not valid YAML: {error}")
    if not isinstance(values, dict):
        sys.exit(f"error: --config {path} must hold 'name: value' lines, found {type(values).__name__}")
    wrong = [_unknown(str(name), known, "name") for name in values if name not in known]
    if wrong:
        sys.exit(f"error: --config {path}: " + "; ".join(wrong))
    # YAML 1.1 reads 1e-3 as a string; argparse converts strings by the type of the field.
    return {name: str(value) if isinstance(value, float) else value for name, value in values.items()}


def _option(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name:
            return arguments[position + 1] if position + 1 < len(arguments) else None
        if argument.startswith(name + "="):
            return argument.split("=", 1)[1]
    return None


def _unknown(word: str, known: list[str], kind: str) -> str:
    near = difflib.get_close_matches(word.split("=")[0], known, n=1)
    return f"unknown {kind} '{word}'" + (f", did you mean '{near[0]}'?" if near else "")
