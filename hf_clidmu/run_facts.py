"""What a run knows of itself that a model card is to say: read from its model, settings, log and ledger."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from hf_clidmu import __version__
from hf_clidmu.model_card import Scores, of_the_model
from hf_clidmu.staging import is_local


if TYPE_CHECKING:
    from hf_clidmu.config import CLIDMUConfig
    from hf_clidmu.ledger import Ledger

_LIBRARIES = ("hf_clidmu", "torch", "transformers", "datasets", "timm")
_WEIGHTINGS = {
    "vri": "a net that rectifies the logits",
    "wnet": "a net that reads a weight off the loss",
    "context": "a net that reads a weight off features, label and loss",
    "free": "a weight of its own in every batch",
}
_BASELINES = {
    "gce": "generalised cross-entropy",
    "sce": "symmetric cross-entropy",
    "elr": "early-learning regularisation",
}
_MOST_CONFUSED = 5


def facts_of_run(
    *,
    model: Any,
    config: "CLIDMUConfig | None",
    history: Sequence[dict[str, Any]],
    ledger: "Ledger | None" = None,
    selected: Sequence[int] = (),
) -> dict[str, Any]:
    """Fields of [`CardFacts`] that follow from a run.

    Args:
        model: a classifier.
        config: the settings; None for plain ones.
        history: of the log.
        ledger: of the run.
        selected: the step whose weights the model holds, where they were selected, or the steps whose mean it holds;
            none of them means the last ones.
    """
    labels = [str(name) for _, name in sorted((getattr(model.config, "id2label", None) or {}).items())]
    name = getattr(model.config, "_name_or_path", "") or ""
    architecture = getattr(model.config, "architecture", None)
    evaluated = [entry for entry in history if "eval_clid" in entry]
    return {
        "modality": modality_of(model),
        "labels": labels,
        "base_model": name if name and not is_local(name) else None if name else architecture,
        "from_scratch": not name,
        **facts_of_settings(config),
        "split": "evaluation",
        "results": _results(history, selected),
        "evaluations": [
            {"step": entry["step"], "clid": entry["eval_clid"], **_scores(entry, ("accuracy",))} for entry in evaluated
        ],
        "train_seconds": next((entry["train_runtime"] for entry in history[::-1] if "train_runtime" in entry), None),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "versions": versions_of(_LIBRARIES),
        **_of_ledger(ledger, labels),
    }


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """Versions by library; one that is not there is left out. We may run from a folder, without being installed."""
    found = {}
    for library in libraries:
        try:
            found[library] = __version__ if library == "hf_clidmu" else version(library)
        except PackageNotFoundError:
            continue
    return found


def facts_of_settings(config: "CLIDMUConfig | None") -> dict[str, Any]:
    """Fields of [`CardFacts`] that follow from the settings alone; None for plain ones."""
    return {
        "settings": of_the_model(config.non_default()) if config is not None else {},
        "method": _method(config),
        "meta": _meta(config),
        "label_free": _is_label_free(config),
    }


def modality_of(model: Any) -> str:
    """`image` or `text`, by what the model takes."""
    return "image" if getattr(model, "main_input_name", "") == "pixel_values" else "text"


def _scores(entry: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    return {name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}


def _results(history: Sequence[dict[str, Any]], selected: Sequence[int]) -> list[Scores]:
    """The scores on the evaluation set, where there was one with labels; nobody measured those of a mean of states."""
    scored = {entry["step"]: found for entry in history if (found := _scores(entry, ("accuracy", "macro_f1")))}
    if not scored:
        return []
    last = max(scored)
    step = last if not selected else selected[0] if len(selected) == 1 else None
    if step is None or step not in scored or step == last:
        return [Scores("last step", scored[last], step == last)]
    return [Scores("last step", scored[last]), Scores("selected", scored[step], True)]


def _method(config: "CLIDMUConfig | None") -> str | None:
    if config is None or config.weighting == "none":
        return None
    if config.weighting in _BASELINES:
        return f"Trained with {_BASELINES[config.weighting]} on the given labels."
    judge = {"clid": "the Cross-Layer Information Divergence (CLID) of unlabelled samples"}
    how = _WEIGHTINGS.get(config.weighting, f"the weighting `{config.weighting}`")
    return (
        f"CLID-MU: how much a given label counts is learned along with the classifier, by {how}. What it learns from "
        f"is one look-ahead step of the classifier (scope `{config.scope}`), judged by "
        f"{judge.get(config.objective, 'the objective `' + config.objective + '`')}."
    )


def _is_label_free(config: "CLIDMUConfig | None") -> bool:
    """Whether no label but the given ones had a say: neither in judging the look-ahead, nor in selecting."""
    if config is None or (config.metric_for_best_model or "clid").removeprefix("eval_") != "clid":
        return False
    return config.objective == "clid" or config.weighting in ("none", *_BASELINES)


def _meta(config: "CLIDMUConfig | None") -> str | None:
    if config is None or config.weighting == "none" or config.weighting in _BASELINES:
        return None
    labels = "their labels unused" if config.objective == "clid" else "with labels"
    size = f"{config.meta_size:,} " if config.meta_size else "up to 1,000 " if config.meta_source == "subset" else ""
    source = {
        "subset": f"{size}training samples, {labels}",
        "batch": f"the running batch, {labels}",
        "dataset": f"{size}samples of a dataset given for it, {labels}",
    }
    return f"Meta set: {source[config.meta_source]}."


def _of_ledger(ledger: "Ledger | None", labels: list[str]) -> dict[str, Any]:
    """How many labels the run does not believe, and which classes it would give instead; counts, no sample."""
    if ledger is None:
        return {}
    table = ledger.table()
    given, believed = table["given_label"].to_numpy(), table["predicted_label"].to_numpy()
    differ = (given != believed) & (believed >= 0)
    if not len(given):
        return {}
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(given[differ].tolist(), believed[differ].tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_CONFUSED]
    known = dict(enumerate(labels))
    return {
        "noise_estimate": float(differ.mean()),
        "confused": [(known.get(a, str(a)), known.get(b, str(b)), count) for (a, b), count in most],
    }
