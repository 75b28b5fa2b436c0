"""Score any classifier on any corpus: a checkpoint, a folder or a Hub id, trained with this library or not.

    python recipes/score.py --model outputs/trec_weak --dataset trec_weak
    python recipes/score.py --model you/films --dataset my.csv --split test --output results.json --add_to_card true

Labels of the split are taken as they are: where they are wrong, so are the scores.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class ScoreArguments:
    """What to score on what."""

    model: str = field(metadata={"help": "Folder of a model or of a checkpoint, or a Hub id."})
    dataset: str = field(metadata={"help": "Hub id, local folder or file, a preset, or the built-in 'digits'."})
    split: str = field(default="test", metadata={"help": "The split to score: test, validation or train."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; found if not named."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found if not named."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts; found if not named."})
    class_names: str | None = field(default=None, metadata={"help": "Class names in index order, with commas."})
    max_samples: int | None = field(default=None, metadata={"help": "Score the first so many rows, at most."})
    max_length: int = field(default=128, metadata={"help": "Longest text, in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Samples a forward."})
    temperature: float = field(default=0.5, metadata={"help": "Temperature of CLID's feature graph."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code of a model repository run."})
    output: str = field(default="results.json", metadata={"help": "Where to write the scores."})
    add_to_card: bool = field(
        default=False,
        metadata={"help": "Add the scores to the model's card: README.md of a folder, or of a repository of yours."},
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the recipe; returns what the output file holds."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(ScoreArguments, description=__doc__.split("\n")[0], allow_abbrev=False)
    (run,) = parser.parse_args_into_dataclasses(args=sys.argv[1:] if arguments is None else arguments)
    results = score(run)
    from hf_clidmu.files import write_json

    write_json(run.output, results, indent=1)
    print(json.dumps(results, indent=1))
    if run.add_to_card:
        print(f"added to {add_to_card(run, results)}")
    return results


def score(run: ScoreArguments) -> dict[str, Any]:
    """Load model and corpus, and score one on the other."""
    import torch
    from transformers import AutoConfig

    from hf_clidmu.backbones import load_classifier
    from hf_clidmu.classifier import ClassifierTap
    from hf_clidmu.data import load_corpus, prepare_corpus
    from hf_clidmu.divergence import chunks
    from hf_clidmu.metrics import accuracy, clid_of, expected_calibration_error, macro_f1
    from hf_clidmu.precompute import encode

    corpus = load_corpus(
        run.dataset,
        config_name=run.dataset_config,
        label_column=run.label_column,
        image_column=run.image_column,
        text_column=run.text_column,
        label_names=None if run.class_names is None else [name.strip() for name in run.class_names.split(",")],
    )
    if getattr(corpus, run.split, None) is None:
        sys.exit(f"error: {corpus.source} has no split '{run.split}'; choose --split train, validation or test")
    hub = {"revision": run.revision, "trust_remote_code": run.trust_remote_code}
    id2label = AutoConfig.from_pretrained(run.model, **hub).id2label
    names = [str(name) for _, name in sorted(id2label.items())]
    order = class_order(names, corpus.label_names, run.model)
    model, processor = load_classifier(run.model, names, pooling="own", **hub)
    data = prepare_corpus(corpus, processor, max_length=run.max_length)
    samples = getattr(data, run.split)
    rows = list(range(len(samples) if run.max_samples is None else min(run.max_samples, len(samples))))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen = encode(model.to(device), ClassifierTap(model), samples, data.collator, run.batch_size, device, rows=rows)
    probability_NC = seen.logits_NC.double().softmax(dim=1)[:, order].numpy()
    label_N = seen.labels_N.numpy()
    if (label_N < 0).any():
        sys.exit(f"error: the split '{run.split}' of {corpus.source} has rows without a label")
    predicted_N = probability_NC.argmax(axis=1)
    features_ND = seen.features_ND.numpy()
    parts = [clid_of(features_ND[at], probability_NC[at], run.temperature) for at in chunks(len(rows), 100)]
    return {
        "model": Path(run.model).name if Path(run.model).exists() else run.model,
        "dataset": corpus.name,
        "split": run.split,
        "num_samples": len(rows),
        "task": f"{corpus.modality}-classification",
        "scores": {
            "accuracy": accuracy(predicted_N, label_N),
            "macro_f1": macro_f1(predicted_N, label_N),
            "expected_calibration_error": expected_calibration_error(probability_NC, label_N),
            "clid": sum(parts) / len(parts),
        },
    }


def class_order(models: list[str], corpus: list[str], name: str) -> list[int]:
    """Which output of the model is which class of the corpus.

    Raises:
        SystemExit: when they have different classes: a model is scored as it is, never given a new last layer.
    """
    if set(models) == set(corpus):
        return [models.index(label) for label in corpus]
    if len(models) == len(corpus) and all(label == f"LABEL_{number}" for number, label in enumerate(models)):
        return list(range(len(models)))
    sys.exit(
        f"error: {name} knows the classes {', '.join(models[:10])}, the corpus has {', '.join(corpus[:10])}: they must "
        "be the same; --class_names names those of a corpus with bare numbers"
    )


def add_to_card(run: ScoreArguments, results: dict[str, Any]) -> str:
    """Add the scores to the card of a folder, or of a repository on the Hub; returns where that is."""
    from huggingface_hub import EvalResult, ModelCard

    from hf_clidmu.model_card import add_results, plain

    titles = {
        "accuracy": ("accuracy", "Accuracy"),
        "macro_f1": ("f1", "Macro F1"),
        "expected_calibration_error": ("ece", "Calibration error"),
    }
    path = Path(run.model) / "README.md"
    if Path(run.model).is_dir() and not path.exists():
        sys.exit(f"error: {path} does not exist: there is no card to add to")
    card = ModelCard.load(path if path.exists() else run.model)
    figures = [
        EvalResult(
            task_type=results["task"],
            dataset_type=results["dataset"],
            dataset_name=results["dataset"],
            dataset_split=results["split"],
            metric_type=titles[name][0],
            metric_name=titles[name][1],
            metric_value=value,
        )
        for name, value in results["scores"].items()
        if name in titles
    ]
    words = ", ".join(f"{titles[name][1]} {results['scores'][name]:.4f}" for name in titles)
    add_results(
        card, figures, f"{plain(results['dataset'])} | {results['split']} | {results['num_samples']:,} | {words}"
    )
    if path.exists():
        card.save(path)
        return str(path)
    return card.push_to_hub(run.model, commit_message=f"Scores on {results['dataset']}").commit_url


if __name__ == "__main__":
    main()
