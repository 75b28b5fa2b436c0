"""Loading a classifier by name, with the processor that turns raw samples into its inputs.

A name is a local folder, a timm architecture (random weights), or a model on the Hub.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_clidmu.data.text import ensure_pad_token
from hf_clidmu.pooling import POOLINGS, append_mean_pooling, declared_pooling


logger = logging.getLogger(__name__)


def load_classifier(
    name: str,
    label_names: Sequence[str],
    *,
    image_size: int | None = None,
    pooling: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_args: dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A classifier over these labels, and its image processor or tokenizer.

    Args:
        name: a local folder with a `config.json`; the name of a timm architecture such as `test_resnet`, built with
            random weights; or a Hub id such as `timm/resnet50.a1_in1k` or `bert-base-uncased`. A last layer of
            another size is replaced by a new one.
        label_names: names of the classes, in the order of their integers; at least two.
        image_size: height and width of the input of an image model built from an architecture name, in pixels.
            Defaults to what the architecture was made for.
        pooling: how the classifier reads a text encoder: `own`, as its class does (mostly the first token); `mean`,
            the mean token state (see [`append_mean_pooling`]); `auto`, as a sentence encoder's own
            `1_Pooling/config.json` says, and `own` without one.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether code of the repository may run. Off unless you say so.
        model_args: further arguments of `timm.create_model`, for an architecture name.

    Returns:
        The model and its processor; saved together, they load in `transformers.pipeline`.

    Raises:
        ValueError: for fewer than two labels, names that occur twice, or a pooling that the architecture cannot have.
        OSError: when the name is neither a folder, nor an architecture, nor reachable on the Hub; the message says
            what can be given instead.
    """
    names = [str(label) for label in label_names]
    if len(names) < 2:
        raise ValueError(f"a classifier needs at least two classes, got {names}")
    if len(set(names)) < len(names):
        raise ValueError(f"label_names must differ from one another, got {names}")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got '{pooling}'")
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {label: number for number, label in enumerate(names)},
    }
    if not Path(name).exists() and _is_timm_architecture(name):
        return _random_timm_classifier(name, labels, image_size, model_args)
    if image_size is not None or model_args:
        raise ValueError(f"image_size and model_args are for architecture names; '{name}' brings its own configuration")

    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, num_labels=len(names), **labels, **hub)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot load the model '{name}': it is no local folder with a config.json, no timm architecture, and "
            "could not be reached on the Hub. Give the path of a downloaded model, the name of an architecture "
            f"(timm.list_models() lists them), or connect to the network. ({error})"
        ) from error
    config.num_labels = len(names)
    config.problem_type = "single_label_classification"
    is_image = config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    model_class: Any = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    processor_class: Any = AutoImageProcessor if is_image else AutoTokenizer
    model = model_class.from_pretrained(name, config=config, ignore_mismatched_sizes=True, **hub)
    processor = processor_class.from_pretrained(name, **hub)
    if not is_image:
        ensure_pad_token(processor, model.config)
        _pool(model, name, pooling, revision)
    return model, processor


def _pool(model: PreTrainedModel, name: str, pooling: str, revision: str | None) -> None:
    if pooling == "auto":
        if declared_pooling(name, revision) != "mean":
            return
        try:
            append_mean_pooling(model)
        except ValueError as error:
            logger.warning("'%s' was trained to be read by its mean token state, but %s", name, error)
    elif pooling == "mean":
        append_mean_pooling(model)


def _is_timm_architecture(name: str) -> bool:
    import timm

    return timm.is_model(name)


def _random_timm_classifier(
    architecture: str, labels: dict[str, Any], image_size: int | None, model_args: dict[str, Any] | None
) -> tuple[PreTrainedModel, Any]:
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor

    known = timm.get_pretrained_cfg(architecture)
    data = {} if known is None else known.to_dict()
    arguments = dict(model_args or {})
    if image_size is not None:
        # The processor reads its size here, in `pipeline` as well: the folder must know how it was trained.
        data.update(input_size=(3, image_size, image_size), crop_pct=1.0)
        data.pop("test_input_size", None)
        if not data.get("fixed_input_size", False):
            arguments = arguments if _takes_any_size(architecture) else {"img_size": image_size, **arguments}
        else:
            arguments = {"img_size": image_size, **arguments}
    data.pop("num_classes", None)
    data["input_size"] = list(data["input_size"])
    settings = {
        "num_labels": len(labels["id2label"]),
        "pretrained_cfg": {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()},
        **labels,
    }
    config: Any = TimmWrapperConfig(architecture=architecture, model_args=arguments or None, **settings)
    return TimmWrapperForImageClassification(config), TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg)


def _takes_any_size(architecture: str) -> bool:
    """Whether the network has no argument for its image size: it is convolutional all through."""
    import inspect

    import timm

    entry = timm.model_entrypoint(architecture)
    module = inspect.getmodule(entry)
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == entry.__module__
    ]
    return not any("img_size" in inspect.signature(value).parameters for value in classes)
