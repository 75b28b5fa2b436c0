"""Which labels are wrong: a table, charts and a page, from a finished run or from any classifier and corpus.

    python recipes/report.py outputs/trec_weak                                   # a folder that recipes/train.py wrote
    python recipes/report.py --model my/checkpoint --dataset my.csv --output_dir outputs/mine

A run brings its model, corpus, noise and ledger along; whatever is given on the command line wins. Without a run, the
model must be a classifier of the corpus's classes. Nothing is trained, and no clean label is read: one pass of the
model over the training data, without augmentation. Written to output_dir (by default the run's folder):
label_report.parquet, .csv, .json and .html, and a PNG of every chart.

Then: `hf_clidmu.report.apply_report(dataset, "outputs/trec_weak", "suggested", decisions="label_decisions.csv")`.
"""

import json
import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from arguments import RunArguments
from train import RESULTS_NAME, expanded, load, with_noisy_validation
from transformers import AutoConfig, HfArgumentParser
from transformers.utils import logging as transformers_logging

from hf_clidmu import load_classifier, prepare_corpus
from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.data import Corpus
from hf_clidmu.encodings import encode_from_cache
from hf_clidmu.precompute import Encoded, encode
from hf_clidmu.report import LabelReport, label_report


LEDGER_NAME = "ledger.parquet"


@dataclass
class ReportArguments:
    """How to report."""

    run: str | None = field(default=None, metadata={"help": "Folder of a finished run; may stand first, by itself."})
    output_dir: str | None = field(default=None, metadata={"help": "Where to write; the run's folder by default."})
    batch_size: int = field(default=128, metadata={"help": "Samples a forward."})
    neighbours: int = field(default=10, metadata={"help": "Neighbours of a sample whose predictions are asked."})
    frozen: bool = field(
        default=False, metadata={"help": "Only classification layers were trained, not the encoder; a run tells."}
    )
    frozen_cache_dir: str | None = field(
        default=None, metadata={"help": "What a frozen encoder made of samples is read there; a run tells its own."}
    )
    page: bool = field(default=True, metadata={"help": "Write label_report.html and the charts."})
    page_megabytes: float = field(default=25.0, metadata={"help": "Size of the page, at most."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    seed: int = field(default=CLIDMUConfig.seed, metadata={"help": "Of the corpus: a run brings its own."})


def main(arguments: list[str] | None = None) -> LabelReport:
    """Make the report; returns it."""
    options, run = parse(sys.argv[1:] if arguments is None else arguments)
    transformers_logging.set_verbosity_error()
    started = time.perf_counter()
    corpus = load(run, options)
    if run.noisy_validation:
        corpus = with_noisy_validation(corpus, run.noisy_validation, options.seed)
    report = make(corpus, run, options)
    folder = Path(options.output_dir)
    report.save(folder)
    if options.page:
        draw(report, corpus, folder, curves_of(options.run), options.page_megabytes)
    print(told(report, folder, time.perf_counter() - started))
    return report


def parse(arguments: list[str]) -> tuple[ReportArguments, RunArguments]:
    """What to report on, and how; a run's own arguments are the defaults."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    parser = HfArgumentParser((ReportArguments, RunArguments), description=__doc__.split("\n")[0], allow_abbrev=False)
    folder = parser.parse_known_args(arguments)[0].run
    if folder is not None:
        parser.set_defaults(**{**arguments_of(Path(folder)), "model": folder, "output_dir": folder})
    options, run = parser.parse_args_into_dataclasses(args=arguments)
    if folder is None and "--model" not in [word.split("=")[0] for word in arguments]:
        sys.exit("error: name the folder of a run, or --model and --dataset")
    if run.streaming:
        sys.exit("error: a streamed training split has no rows to report on; pass --streaming false to read all of it")
    options.output_dir = options.output_dir or f"outputs/{Path(run.dataset).stem}_report"
    return options, run


def arguments_of(folder: Path) -> dict[str, Any]:
    """The arguments that say what a run's corpus was."""
    path = folder / RESULTS_NAME
    try:
        recorded = json.loads(path.read_text(encoding="utf8"))["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {folder} is no finished run of recipes/train.py ({RESULTS_NAME}: {error})")
    known = {entry.name for entry in fields(RunArguments)} | {"seed"}
    own = {name: value for name, value in recorded.items() if name in known}
    frozen = recorded.get("freeze") == "backbone"
    return {**own, "frozen": frozen, "frozen_cache_dir": recorded.get("frozen_cache_dir")}


def make(corpus: Corpus, run: RunArguments, options: ReportArguments) -> LabelReport:
    """The report on a corpus's training split by a model, and by the run's ledger where there is one."""
    import pyarrow.parquet

    seen = observe(corpus, run, options)
    ledger = None if options.run is None else Path(options.run) / LEDGER_NAME
    return label_report(
        list(corpus.train["label"]),
        seen.logits_NC,
        seen.features_ND,
        corpus.label_names,
        general_features=seen.general_ND,
        ledger=pyarrow.parquet.read_table(ledger) if ledger is not None and ledger.is_file() else None,
        neighbours=options.neighbours,
        settings={"dataset": corpus.source, "model": run.model},
    )


def observe(corpus: Corpus, run: RunArguments, options: ReportArguments, split: str = "train") -> Encoded:
    """What the model makes of a split as it is, in one pass: classes in the corpus's order, features on its device.

    Its general features are those that know fewest labels by heart: below what was trained, or halfway up.
    """
    name = expanded("model", run.model)
    order = class_order(name, corpus.label_names, run)
    model, processor = load_classifier(
        name, corpus.label_names, revision=run.revision, trust_remote_code=run.trust_remote_code
    )
    device = torch.device("cuda" if torch.cuda.is_available() and not options.use_cpu else "cpu")
    model.to(device)
    data = prepare_corpus(corpus, processor, max_length=run.max_length)
    asked = (model, ClassifierTap(model), getattr(data, split), data.collator, options.batch_size, device)
    if options.frozen and options.frozen_cache_dir:
        seen = encode_from_cache(*asked, options.frozen_cache_dir)
    else:
        seen = encode(*asked, middle=not options.frozen)
    general_ND = seen.general_ND if seen.middle_ND is None else seen.middle_ND
    return replace(
        seen,
        logits_NC=seen.logits_NC[:, order],
        features_ND=seen.features_ND.to(device),
        general_ND=general_ND.to(device),
    )


def class_order(name: str, label_names: list[str], run: RunArguments) -> list[int]:
    """Where the model keeps each class of the corpus.

    Raises:
        SystemExit: when it is no classifier of these classes; a new last layer would know nothing.
    """
    try:
        config = AutoConfig.from_pretrained(name, revision=run.revision, trust_remote_code=run.trust_remote_code)
    except (OSError, ValueError) as error:
        sys.exit(f"error: cannot read the model {name}: {error}")
    architectures = config.architectures or []
    if not any(architecture.endswith("Classification") for architecture in architectures):
        sys.exit(f"error: {name} is no trained classifier (architectures: {architectures}); train one first")
    known = [str(config.id2label[number]) for number in range(config.num_labels)]
    if len(known) == len(label_names) and all(word == f"LABEL_{number}" for number, word in enumerate(known)):
        return list(range(len(known)))  # it was never told their names
    if sorted(known) != sorted(label_names):
        sys.exit(
            f"error: {name} tells {', '.join(known[:8])} apart, the corpus has {', '.join(label_names[:8])}: a report "
            "needs a model of the same classes"
        )
    return [known.index(label) for label in label_names]


def draw(report: LabelReport, corpus: Corpus, folder: Path, curves: Any, megabytes: float) -> None:
    """The page and the charts, where their library is installed."""
    from hf_clidmu.report.charts import write_plots
    from hf_clidmu.report.page import write_page

    samples = corpus.train[corpus.input_column]
    try:
        write_plots(report, folder, curves)
        write_page(
            report,
            folder / "label_report.html",
            list(samples) if corpus.modality == "text" else samples,
            title=corpus.name,
            curves=curves,
            megabytes=megabytes,
        )
    except ImportError as error:
        sys.exit(f"error: the table is in {folder}, but there is no page: {error}")


def curves_of(run: str | None) -> Any:
    """Evaluations of a run, or None."""
    if run is None:
        return None
    return json.loads((Path(run) / RESULTS_NAME).read_text(encoding="utf8")).get("evaluations") or None


def told(report: LabelReport, folder: Path, seconds: float) -> str:
    """What came out, in a few lines."""
    table, rate = report.table, report.noise_rate
    counts = table["suggestion"].value_counts()
    lines = [
        f"estimated noise rate  {100 * rate.value:.1f} % "
        f"(95 % interval {100 * rate.low:.1f} % to {100 * rate.high:.1f} %)",
        f"contradicted labels   {100 * report.contradicted:.1f} % (by the model, which errs, too)",
        f"labels called wrong   {int(table['is_label_issue'].sum()):,} of {len(table):,}: "
        f"{counts.get('relabel', 0):,} to relabel, {counts.get('review', 0):,} to review",
        *(f"doubt                 {doubt}" for doubt in report.doubts),
        f"written to            {folder} in {seconds:.0f} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
