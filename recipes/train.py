"""Fine-tune a classifier on labels that are partly wrong, and report what came of it.

    accelerate launch recipes/train.py                                          # digits, 40 % wrong labels
    accelerate launch recipes/train.py --config recipes/text/trec_weak.yaml --seed 2
    accelerate launch recipes/train.py --config recipes/vision/digits.yaml --weighting none     # cross-entropy

Test labels are read for the final table alone: no choice of the run depends on them.
"""

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from arguments import RunArguments, answer_help, parse


if __name__ == "__main__":
    answer_help(sys.argv[1:])  # here, since what follows takes seconds to import

import torch
from cards import measured
from recording import Recording, peak_memory_mib
from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_clidmu.backbones import load_classifier
from hf_clidmu.classifier import forked_random_state
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.data import Corpus, load_corpus, prepare_corpus, stream_corpus
from hf_clidmu.ledger import Ledger
from hf_clidmu.metrics import classification_metrics
from hf_clidmu.run_facts import versions_of
from hf_clidmu.staging import is_local
from hf_clidmu.trainer import CLIDMUTrainer


DEFAULT_CONFIG = Path(__file__).parent / "vision" / "digits.yaml"
RESULTS_NAME = "results.json"
_TRAINERS_OWN_OUTPUT = "trainer_output"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the recipe; returns what `results.json` holds."""
    run, config = parse((RunArguments, CLIDMUConfig), arguments, DEFAULT_CONFIG)
    settle(run, config)
    transformers_logging.set_verbosity_error()
    set_seed(config.seed)
    corpus, trainer, test = build(run, config)
    speaks = trainer.is_world_process_zero()
    if speaks:
        print(plan(corpus, trainer, run, config))

    final = FinalTable(trainer, test, run.track_test)
    trainer.add_callback(final)
    recording = Recording(trainer, corpus)
    trainer.add_callback(recording)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    seconds = time.perf_counter() - started
    if run.dry_run:
        if speaks:
            print("Dry run: one step done, nothing saved.")
        return {}

    table_rows = final.results()  # before saving: adapters are merged there, snapshots are of the model with them
    weights = trainer.held_weights()
    if run.lora_rank:
        trainer.model = trainer.model.merge_and_unload()  # a plain model, which anybody can load without peft
    results = {
        "dataset": corpus.source,
        "num_train_samples": None if run.streaming else len(corpus.train),
        "noise": None if corpus.noise is None else corpus.noise.to_dict(),
        "model": run.model,
        "weights": weights,
        "results": table_rows,
        "suspects_auroc": suspects_auroc(trainer, corpus),
        "evaluations": [{**scores, **recording.at(scores["step"])} for scores in final.evaluations],
        "train_seconds": round(seconds, 1),
        "peak_memory_mib": peak_memory_mib(),
        "arguments": {**asdict(run), **config.non_default()},
        "versions": versions_of(("hf_clidmu", "torch", "transformers", "accelerate", "timm")),
    }
    describe(trainer, corpus, run, results)
    if speaks:
        path = Path(config.output_dir) / RESULTS_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf8")
    trainer.create_model_card()
    trainer.save_model()  # with --push_to_hub true it is pushed
    if speaks:
        print(table(results, corpus, config))
    return results


def describe(trainer: CLIDMUTrainer, corpus: Corpus, run: RunArguments, results: dict[str, Any]) -> None:
    """Tell the model card what the recipe knows: the data and the figures, and no sample that was not asked for."""
    for name, value in {**measured(results), "dataset_name": corpus.name}.items():
        setattr(trainer.card, name, value)
    if not is_local(run.dataset) and "/" in run.dataset:
        trainer.card.datasets = [run.dataset]
    if run.card_examples and trainer.ledger is not None:
        trainer.card.examples = least_believed(trainer.ledger, corpus, run.card_examples)


def least_believed(ledger: Ledger, corpus: Corpus, count: int) -> list[tuple[str, str, str]]:
    """The samples whose labels the run believes least: text or row, given label, and the label that it believes."""
    suspects = ledger.suspects()
    doubted = (suspects["given_label"] != suspects["predicted_label"]) & (suspects["predicted_label"] >= 0)
    rows = suspects.loc[doubted, ["index", "given_label", "predicted_label"]].head(count)
    return [
        (
            corpus.train[row]["text"] if corpus.modality == "text" else f"row {row}",
            corpus.label_names[given],
            corpus.label_names[believed],
        )
        for row, given, believed in rows.astype(int).itertuples(index=False)
    ]


def settle(run: RunArguments, config: CLIDMUConfig) -> None:
    """What follows from the arguments: where to write, what a dry run leaves out, what an upper reference needs."""
    if config.output_dir == _TRAINERS_OWN_OUTPUT:  # every run would share it
        config.output_dir = f"outputs/{Path(run.dataset).stem}"
    if run.dry_run:
        config.max_steps, config.eval_strategy, config.save_strategy = 1, "no", "no"
    elif (Path(config.output_dir) / RESULTS_NAME).exists() and not (run.overwrite or config.resume_from_checkpoint):
        sys.exit(
            f"error: {config.output_dir} holds a finished run; choose another --output_dir, or pass --overwrite true"
        )
    if run.clean_meta:
        config.objective, config.meta_source = "cross_entropy", "dataset"
    if run.streaming:
        whole = ("noise", "test_size", "max_train_samples", "noisy_validation", "clean_meta")
        asked = [name for name in whole if getattr(run, name)]
        if asked:
            sys.exit(f"error: {', '.join(asked)} need all rows of the training data: leave streaming out")
        config.meta_source = "batch" if config.meta_source == "subset" else config.meta_source
        config.judge_source = "eval"
    config.dataloader_pin_memory = config.dataloader_pin_memory and torch.cuda.is_available()


def build(run: RunArguments, config: CLIDMUConfig) -> tuple[Corpus, CLIDMUTrainer, Any]:
    """The corpus, the trainer over it, and the test samples."""
    corpus = load(run, config)
    if run.score_on != "test":
        corpus = replace(corpus, test=scored_split(corpus, run.score_on))
    corpus = replace(
        corpus,
        validation=first_rows(corpus.validation, run.max_eval_samples),
        test=first_rows(corpus.test, run.max_test_samples),
    )
    if run.noisy_validation:
        corpus = with_noisy_validation(corpus, run.noisy_validation, config.seed)
    if run.clean_meta and config.meta_size is None:
        config.meta_size = min(1000, len(corpus.train))
    model, processor = load_classifier(
        expanded("model", run.model),
        corpus.label_names,
        image_size=run.image_size,
        pooling=run.pooling,
        revision=run.revision,
        trust_remote_code=run.trust_remote_code,
    )
    if run.channels_last and corpus.modality == "image":
        model.to(memory_format=torch.channels_last)
    if run.lora_rank:
        model = with_adapters(model, run.lora_rank)
    data = prepare_corpus(
        corpus,
        processor,
        augment=run.augment,
        hflip=run.hflip,
        max_length=run.max_length,
        with_clean_train=run.clean_meta,
    )
    trainer = CLIDMUTrainer(
        model=model,
        args=config,
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset=data.validation,
        meta_dataset=data.clean_train,
        processing_class=processor,
        compute_metrics=classification_metrics,
    )
    return corpus, trainer, data.test


def scored_split(corpus: Corpus, name: str) -> Any:
    """The split that the final table scores instead of the test split: settings are chosen on the validation split."""
    if name != "validation":
        sys.exit(f"error: score_on must be 'test' or 'validation', got '{name}'")
    if corpus.validation is None:
        sys.exit(f"error: score_on='validation', but {corpus.source} has no validation split")
    return corpus.validation


def first_rows(split: Any, count: int | None) -> Any:
    """The beginning of a split; all of it where there is no more, or no limit."""
    return split if split is None or count is None or count >= len(split) else split.select(range(count))


def with_adapters(model: Any, rank: int) -> Any:
    """The model with low-rank adapters on every linear layer but the last, which trains whole; all else is frozen."""
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        sys.exit("error: lora_rank needs peft: pip install 'hf_clidmu[lora]'")
    adapters = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules="all-linear"
    )
    return get_peft_model(model, adapters)


def with_noisy_validation(corpus: Corpus, share: float, seed: int) -> Corpus:
    """The corpus with a part of its training samples, and their given labels, as validation split."""
    if not 0 < share < 1:
        sys.exit(f"error: noisy_validation must lie between 0 and 1, got {share}")
    parts = corpus.train.train_test_split(test_size=share, seed=seed, stratify_by_column="label")
    return replace(corpus, train=parts["train"], validation=parts["test"])


def class_map(value: Any) -> Any:
    """The noise map: a mapping from YAML, JSON from the command line, or a word."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        sys.exit(f"error: noise_map: {value} is no JSON: {error}")


def load(run: RunArguments, config: CLIDMUConfig) -> Corpus:
    """The corpus, its training split as a stream where that is asked for."""
    columns = {
        "config_name": run.dataset_config,
        "label_column": run.label_column,
        "clean_label_column": run.clean_label_column,
        "image_column": run.image_column,
        "text_column": run.text_column,
        "label_names": None if run.class_names is None else [name.strip() for name in run.class_names.split(",")],
        "seed": config.seed,
    }
    if not run.streaming:
        return load_corpus(
            expanded("dataset", run.dataset),
            **columns,
            missing_labels=run.missing_labels,
            noise=run.noise or None,  # '' takes the noise of a recipe back
            noise_rate=run.noise_rate,
            noise_seed=run.noise_seed,
            noise_map=class_map(run.noise_map),
            test_size=run.test_size,
            max_train_samples=run.max_train_samples,
        )
    return stream_corpus(expanded("dataset", run.dataset), **columns)


def expanded(name: str, value: str) -> str:
    """The value with its environment variables filled in."""
    result = os.path.expandvars(os.path.expanduser(value))
    if "$" in result:
        sys.exit(f"error: {name}: {value} names an environment variable that is not set; set it, or pass --{name} PATH")
    return result


class FinalTable(TrainerCallback):
    """Test accuracy of the last, the selected and the best state; computed beside the run and shown after it."""

    def __init__(self, trainer: CLIDMUTrainer, test: Any, track: bool):
        self.trainer = trainer
        self.test = test
        self.track = track and test is not None
        self.evaluations: list[dict[str, Any]] = []  # with clid_chunks, any rule of selection can be tried afterwards
        self.last: dict[str, float] | None = None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):  # noqa: D102
        if not self.trainer.is_in_train or "eval_clid" not in (metrics or {}):
            return
        scores = self._test_scores() if self.track else {}
        judged = {name.removeprefix("eval_"): metrics[name] for name in metrics if name.startswith("eval_clid")}
        judged["clid_chunks"] = [round(clid, 5) for clid in self.trainer.reading.clid_K]
        self.evaluations.append({"step": state.global_step, **judged, **scores})
        self.last = scores if state.global_step == state.max_steps else None

    def on_train_end(self, args, state, control, **kwargs):  # noqa: D102
        self.last = self.last or self._test_scores()

    def results(self) -> dict[str, dict[str, float]]:
        """Test scores by kind of selection; empty without a test split."""
        if self.test is None:
            return {}
        rows = {"last": self.last, "selected": self._test_scores()}
        if len(self.trainer.snapshots.kept) > 1:
            prediction = self.trainer.predict_ensemble(self.test)
            rows["ensemble"] = _scores(prediction.metrics)
        if self.track and self.evaluations:
            rows["oracle_best"] = max(self.evaluations, key=lambda scores: scores["test_accuracy"])
        return {name: {key: row[key] for key in ("test_accuracy", "test_macro_f1")} for name, row in rows.items()}

    def _test_scores(self) -> dict[str, float]:
        if self.test is None:
            return {}
        with forked_random_state(self.trainer.args.device):  # reporting must not change the run
            return _scores(self.trainer.predict(self.test).metrics)


def _scores(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("test_accuracy", "test_macro_f1")}


def suspects_auroc(trainer: CLIDMUTrainer, corpus: Corpus) -> float | None:
    """How well the ledger ranks the labels that really are wrong; known only where clean labels are."""
    if trainer.ledger is None or "clean_label" not in (corpus.train.column_names or ()):
        return None
    from sklearn.metrics import roc_auc_score

    seen = trainer.ledger.suspects()
    clean = [corpus.train["clean_label"][row] for row in seen["index"].tolist()]
    wrong = [given != true for given, true in zip(seen["given_label"], clean, strict=True) if true >= 0]
    scores = [-score for score, true in zip(seen["label_score"], clean, strict=True) if true >= 0]
    return float(roc_auc_score(wrong, scores)) if 0 < sum(wrong) < len(wrong) else None


def plan(corpus: Corpus, trainer: CLIDMUTrainer, run: RunArguments, config: CLIDMUConfig) -> str:
    """What is about to happen, in a few lines."""
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in trainer.model.parameters())
    sizes = ", ".join(
        f"{'streamed' if run.streaming and name == 'train' else format(len(split), ',')} {name}"
        for name, split in (("train", corpus.train), ("validation", corpus.validation), ("test", corpus.test))
        if split is not None
    )
    noise = "unknown" if corpus.noise is None else f"{corpus.noise.achieved_rate:.1%} ({corpus.noise.kind})"
    method = (
        "cross-entropy"
        if config.weighting == "none"
        else f"weighting={config.weighting}, objective={config.objective}, scope={config.scope}"
    )
    return "\n".join(
        [
            f"data    {corpus.source}: {sizes}; {corpus.num_labels} classes; wrong labels: {noise}",
            f"model   {run.model}: {trainable:,} of {everything:,} parameters train",
            f"method  {method}, seed={config.seed}",
            f"output  {config.output_dir}",
        ]
    )


def table(results: dict[str, Any], corpus: Corpus, config: CLIDMUConfig) -> str:
    """The final table, and how to use what was saved."""
    task = "image-classification" if corpus.modality == "image" else "text-classification"
    names = {
        "last": "last step",
        "selected": "selected by CLID",
        "ensemble": f"ensemble of the best {config.snapshot_top_k} by CLID",
        "oracle_best": "oracle: best by test labels",
    }
    rows = [
        f"{names[name]:<34}{row['test_accuracy']:>10.4f}{row['test_macro_f1']:>10.4f}"
        for name, row in results["results"].items()
    ]
    lines = (
        ["", f"{'':<34}{'accuracy':>10}{'macro F1':>10}", *rows]
        if rows
        else ["", "No test split: nothing to score on."]
    )
    if results["suspects_auroc"] is not None:
        lines.append(f"wrong labels ranked by the ledger: AUROC {results['suspects_auroc']:.3f}")
    model = Path(config.output_dir)
    lines += [
        f"trained in {results['train_seconds']:.0f} s; model, ledger and {RESULTS_NAME} are in {model}",
        f'use it:  from transformers import pipeline; classify = pipeline("{task}", model="{model}")',
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
