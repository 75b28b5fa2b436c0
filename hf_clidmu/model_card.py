"""The model card: what was wrong with the labels, what was done about it, how well it works, and how it is used.

Facts go in, Markdown comes out; the text is in `model_cards/template.md`. A figure that was not measured is left out,
not filled in. This room knows neither trainers nor data.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_clidmu.curves import draw_curves
from hf_clidmu.files import write_json, write_whole
from hf_clidmu.staging import CARD_NAME, is_local
from hf_clidmu.state import FOLDER


RESULTS_NAME = "results.json"
CURVES_NAME = "curves.png"
TAGS = ("hf_clidmu", "clid-mu", "noisy-labels")
_BESIDE = Path(__file__).parent / "model_cards" / "template.md"  # in an installed package
TEMPLATE = _BESIDE if _BESIDE.exists() else Path(__file__).parents[1] / "model_cards" / "template.md"
_METRICS = {"accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro F1"), "ece": ("ece", "Calibration error")}
# Where a run lies and how it is watched say nothing about the model, and much about the machine.
_NOT_OF_THE_MODEL = re.compile(
    r"(hub|logging|report|dataloader|ddp|fsdp|deepspeed|accelerator|save|push|eval|trackio|project|run)(_\w+)?"
    r"|output_dir|frozen_cache_dir|disable_tqdm|resume_from_checkpoint|use_cpu|overwrite|dry_run|config|dataset|model"
    r"|track_test|load_best_model_at_end|metric_for_best_model|greater_is_better|do_\w+|remove_unused_columns|local_rank"
)


@dataclass
class Scores:
    """How well one state of the run does.

    Attributes:
        name: which state.
        scores: by metric, between 0 and 1.
        is_this_model: whether it is the one that the card is of.
    """

    name: str
    scores: dict[str, float]
    is_this_model: bool = False


@dataclass
class CardFacts:
    """All that a card says. What is None or empty is left out of it.

    Attributes:
        model_name: of the card's title.
        repo_id: where the model will be found.
        modality: `image` or `text`.
        weights: which weights these are, such as `step 120, selected by CLID`.
        base_model: id on the Hub of what was fine-tuned, or the name of an architecture.
        from_scratch: whether the weights were random before.
        datasets: ids on the Hub.
        dataset_name: for people.
        license, language: as the Hub knows them.
        tags: beside those of the library.
        labels: names of the classes.
        num_train_samples: rows.
        noise_kind, noise_rate: what is known of the wrong labels, and their share, where somebody knows.
        noise_estimate: the share of labels that the run itself does not believe.
        confused: given label, label that the run believes in its place, and how many samples; most first.
        examples: samples, as (sample, given label, suggested label). They are data: only what may be shown.
        settings: arguments that were not left at their defaults.
        method: of the weighting, in words.
        meta: what judged it, in words.
        label_free: whether nothing but the given labels was used to train and to choose it.
        split: what the scores were measured on.
        results: scores of the states of the run.
        evaluations: `step`, `clid` and perhaps `accuracy`, one an evaluation.
        alignment: t-value of CLID of the selected state against chance.
        clustering: the share of the features' clustering that predicted classes had, where it was too little to select
            by; None where CLID selected.
        suspects_auroc: how well the run ranks the labels that are wrong, where it is known.
        train_seconds, peak_memory_mib, hardware: cost.
        versions: of libraries.
    """

    model_name: str | None = None
    repo_id: str | None = None
    modality: str = "text"
    weights: str | None = None
    base_model: str | None = None
    from_scratch: bool = False
    datasets: list[str] = field(default_factory=list)
    dataset_name: str | None = None
    license: str | None = None
    language: str | None = None
    tags: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    num_train_samples: int | None = None
    noise_kind: str | None = None
    noise_rate: float | None = None
    noise_estimate: float | None = None
    confused: list[tuple[str, str, int]] = field(default_factory=list)
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    method: str | None = None
    meta: str | None = None
    label_free: bool = False
    split: str = "test"
    results: list[Scores] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    alignment: float | None = None
    clustering: float | None = None
    suspects_auroc: float | None = None
    train_seconds: float | None = None
    peak_memory_mib: float | None = None
    hardware: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CardFacts":
        """What [`to_dict`] gave."""
        results = [Scores(**row) for row in values.get("results", [])]
        return cls(**{**values, "results": results})

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: numbers that are not finite are null, and no path of this machine is among them."""
        return _plain_values(asdict(self))


def render_card(facts: CardFacts, has_curves: bool = False) -> ModelCard:
    """The card of these facts.

    Args:
        facts: what to say.
        has_curves: whether there is an image of the curves beside it.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    found = {name for row in facts.results for name in row.scores}
    environment.filters.update(plain=plain, percent=_percent, thousands=lambda number: f"{number:,}")
    text = environment.from_string(TEMPLATE.read_text(encoding="utf8")).render(
        facts=facts,
        metrics={name: title for name, (_, title) in _METRICS.items()},
        title=facts.model_name or "Classifier",
        name=facts.repo_id or facts.model_name or "path/of/this/folder",
        task=_task(facts),
        curves=f"{FOLDER}/{CURVES_NAME}" if has_curves else None,
        noise=None if facts.noise_rate is None else _percent(facts.noise_rate),
        measured=[name for name in _METRICS if name in found],
    )
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def write_card(facts: CardFacts, folder: Path) -> None:
    """Write card, curves (where matplotlib is installed) and the facts as JSON into a folder."""
    beside = folder / FOLDER
    beside.mkdir(parents=True, exist_ok=True)
    drawn = draw_curves(facts.evaluations, beside / CURVES_NAME)
    text = str(render_card(facts, drawn))
    write_whole(folder / CARD_NAME, lambda unfinished: unfinished.write_text(text, encoding="utf8"))
    write_json(beside / RESULTS_NAME, facts.to_dict(), indent=1)


def add_results(card: ModelCard, results: list[EvalResult], row: str) -> None:
    """Add figures to a card that is there: to its metadata, in place of those of the same metric, data and split, and
    as a line to its table of later evaluations.

    Args:
        card: changed in place.
        results: what was measured.
        row: what the table says of it: Markdown, without the bars at its ends.
    """
    data: Any = card.data
    old = data.eval_results or []
    kept = [one for one in old if not any(one.is_equal_except_value(new) for new in results)]
    data.eval_results = [*kept, *results]
    data.model_name = data.model_name or "model"
    heading = "## Evaluated later"
    table = f"{heading}\n\n| data | split | samples | scores |\n|---|---|---|---|\n"
    if heading in card.text:
        before, after = card.text.split(table, 1) if table in card.text else (card.text, "")
        lines = [line for line in after.split("\n") if line != f"| {row} |"]
        card.text = f"{before}{table}| {row} |\n" + "\n".join(lines)
    else:
        card.text = f"{card.text.rstrip()}\n\n{table}| {row} |\n"


def of_the_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that shaped a model, without paths and without what concerns the machine."""
    return {
        name: value
        for name, value in settings.items()
        if not (_NOT_OF_THE_MODEL.fullmatch(name) or name.endswith("_token") or value is None)
        and not (isinstance(value, str) and ("/" in value or "\\" in value))
    }


def eval_results(facts: CardFacts) -> list[EvalResult]:
    """What was measured of this model, for the metadata; nothing that was not, and nothing that is not finite."""
    rows = [row for row in facts.results if row.is_this_model]
    return [
        EvalResult(
            task_type=_task(facts),
            dataset_type=facts.datasets[0] if facts.datasets else "custom",
            dataset_name=facts.dataset_name or "a dataset of the author's",
            dataset_split=facts.split,
            metric_type=kind,
            metric_name=title,
            metric_value=float(row.scores[name]),
        )
        for row in rows
        for name, (kind, title) in _METRICS.items()
        if math.isfinite(row.scores.get(name, math.nan))
    ]


def plain(text: Any, longest: int = 200) -> str:
    """Somebody's text as one line that Markdown shows as it is."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else line[: longest - 3] + "..."
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line)


def _metadata(facts: CardFacts) -> ModelCardData:
    results = eval_results(facts)
    base = facts.base_model if facts.base_model and not facts.from_scratch and not is_local(facts.base_model) else None
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=_task(facts),
        base_model=base,
        datasets=facts.datasets or None,
        language=facts.language,
        license=facts.license,
        tags=[*TAGS, *(tag for tag in facts.tags if tag not in TAGS)],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=(facts.model_name or "model") if results else None,
        eval_results=results or None,
    )


def _task(facts: CardFacts) -> str:
    return f"{facts.modality}-classification"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain_values(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_values(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "item"):  # of numpy
        return _plain_values(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return json.loads(json.dumps(value, default=str))
