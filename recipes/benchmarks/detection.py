"""How well wrong labels are found, and what mending them is worth: the report against its peers, all in one run.

    python recipes/benchmarks/detection.py recipes/benchmarks/detection/corpora.yaml --output detection.json

For every corpus (arguments of recipes/train.py) and seed: a CLID-MU run and its label report; a run with plain
cross-entropy, whose ledger gives the area under the margin and whose last state gives the loss; and five more, for
cleanlab, each on four fifths of the data (`pip install cleanlab`; left out where it is missing). Then cross-entropy is
trained anew on what the report makes of the labels. Clean labels are read for scoring alone. A finished cell is never
run again; with `--runs FOLDER`, nor is a run that a cut-off cell, or another version of the report, had finished.
`--again` is for another version of the report: it measures the report of finished cells anew, and keeps its peers.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet
import report as report_recipe
import train
import yaml
from compare import rounded, write_json
from results_table import detection_table
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from hf_clidmu.report import apply_report


FOLDS = 5
PLAIN = {"weighting": "none", "eval_strategy": "no"}  # nothing is selected: the last state stays
BINS = 10
FINISHED = "finished.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="YAML file with corpora and seeds")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results; continued if it exists")
    parser.add_argument("--only", help="Only cells whose 'corpus / seed' match this regular expression")
    parser.add_argument("--runs", type=Path, help="Keep the runs there, and take up those that are there already")
    parser.add_argument("--again", action="store_true", help="Measure the report of finished cells anew, not its peers")
    options = parser.parse_args(arguments)
    grid = yaml.safe_load(options.grid.read_text(encoding="utf8"))
    document = {"command": f"python recipes/benchmarks/detection.py {options.grid}", "cells": []}
    if options.output.exists():
        document = json.loads(options.output.read_text(encoding="utf8"))
    finished = {(cell["corpus"], cell["seed"]): number for number, cell in enumerate(document["cells"])}
    with tempfile.TemporaryDirectory() as thrown_away:
        kept = options.runs or Path(thrown_away)
        for seed in grid["seeds"]:
            for corpus, given in grid["corpora"].items():
                number = finished.get((corpus, seed))
                asked = options.again if number is not None else True
                if not asked or not re.search(options.only or "", f"{corpus} / {seed}"):
                    continue
                known = None if number is None else document["cells"][number]
                # What a frozen encoder makes of a corpus serves every run.
                arguments = {**given, "seed": seed, "frozen_cache_dir": kept / "encodings"}
                found = run_cell(arguments, kept / re.sub(r"\W+", "-", f"{corpus} {seed}"), known)
                cell = rounded({"corpus": corpus, "seed": seed, "arguments": given, **found})
                if number is None:
                    document["cells"].append(cell)
                else:
                    document["cells"][number] = cell
                write_json(options.output, document)
    print(detection_table(document["cells"]))


def run_cell(given: dict[str, Any], place: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """All detectors on one corpus with one seed, and cross-entropy on the mended labels.

    Args:
        given: arguments of recipes/train.py.
        place: folder of the runs.
        known: the cell as it was measured before, whose figures of the peers are kept.
    """
    seconds = {}
    _, seconds["CLID-MU run"] = run(given, place / "clidmu")
    before = time.perf_counter()
    found = report_recipe.main([str(place / "clidmu"), "--page", "false"])
    seconds["report"] = time.perf_counter() - before
    corpus = corpus_of(place / "clidmu")
    labels_N, clean_N = np.array(corpus.train["label"]), np.array(corpus.train["clean_label"])
    wrong_N = labels_N != clean_N
    scores = {
        "report": score(found.table["p_wrong"], found.table["is_label_issue"], wrong_N),
        "self-confidence, selected": score(-found.table["self_confidence"], found.table["margin"] < 0, wrong_N),
    }
    accuracy = {}
    if known is None:
        plain, seconds["cross-entropy run"] = run({**given, **PLAIN}, place / "plain")
        accuracy["given"] = last(plain)
        scores |= peers_of_one_run(place / "plain", labels_N, wrong_N)
        peers, taken = cleanlab_peers(given, corpus, place, labels_N, wrong_N)
        if peers:
            scores, seconds["cleanlab's runs"] = scores | peers, taken
    else:
        scores, seconds = {**known["scores"], **scores}, {**known["seconds"], **seconds}
        accuracy["given"] = known["accuracy"]["given"]

    for policy in ("drop", "relabel"):
        mended = apply_report(corpus.train, found, policy)
        with tempfile.TemporaryDirectory() as thrown_away:  # another report, other labels: never taken up again
            results, _ = run_on(mended, corpus.test, {**given, **PLAIN}, Path(thrown_away) / policy)
        accuracy[policy] = last(results)
    return {
        "noise_rate": float(wrong_N.mean()),
        "estimated": found.noise_rate.value,
        "flagged": float(found.table["is_label_issue"].mean()),
        "calibration_error": calibration_error(found.table["p_wrong"].to_numpy(), wrong_N),
        "doubts": found.doubts,
        "scores": scores,
        "accuracy": accuracy,
        "seconds": seconds,
    }


def run(given: dict[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """Results of one run of recipes/train.py, and the seconds it took; the same run is not run again."""
    given = {"track_test": False, **given, "output_dir": folder, "disable_tqdm": True, "overwrite": True}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    finished = folder / FINISHED
    if finished.exists():
        record = json.loads(finished.read_text(encoding="utf8"))
        if record["words"] == words:
            return record["results"], record["seconds"]
    started = time.perf_counter()
    results = train.main(words)
    seconds = time.perf_counter() - started
    write_json(finished, {"words": words, "results": results, "seconds": seconds})
    return results, seconds


def run_on(rows: Any, test: Any, given: dict[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """The same on these training rows, whatever the corpus was."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows.select_columns([rows.column_names[0], "label"]).to_parquet(data / "train.parquet")
    test.select_columns([rows.column_names[0], "label"]).to_parquet(data / "test.parquet")
    changed = {"dataset": data, "label_column": "label"}
    kept = {name: value for name, value in given.items() if name not in ("noise_map", "max_train_samples")}
    return run({**kept, **changed, "noise_rate": 0}, folder / "run")  # these labels are noisy already


def corpus_of(folder: Path) -> Any:
    """The corpus of a run."""
    options, arguments = report_recipe.parse([str(folder)])
    return report_recipe.load(arguments, options)


def last(results: dict[str, Any]) -> float | None:
    """Test accuracy of the last step."""
    return results["results"].get("last", {}).get("test_accuracy")


def opinions(folder: Path, split: str = "train") -> np.ndarray:
    """Probabilities of a run's last state on a split of its corpus."""
    options, arguments = report_recipe.parse([str(folder)])
    seen = report_recipe.observe(report_recipe.load(arguments, options), arguments, options, split)
    return seen.logits_NC.double().softmax(dim=1).numpy()


def peers_of_one_run(folder: Path, labels_N: np.ndarray, wrong_N: np.ndarray) -> dict[str, Any]:
    """What one plain run knows: the loss of its last state, and the area under the margin."""
    probability_NC = opinions(folder)
    own_N = probability_NC[np.arange(len(labels_N)), labels_N]
    ledger = pyarrow.parquet.read_table(folder / report_recipe.LEDGER_NAME).to_pandas().set_index("index")
    margin_N = ledger["margin"].reindex(range(len(labels_N))).fillna(0).to_numpy()
    return {
        "loss, last epoch": score(-own_N, probability_NC.argmax(axis=1) != labels_N, wrong_N),
        "area under the margin": score(-margin_N, margin_N < 0, wrong_N),
    }


def cleanlab_peers(
    given: dict[str, Any], corpus: Any, folder: Path, labels_N: np.ndarray, wrong_N: np.ndarray
) -> tuple[dict[str, Any], float]:
    """cleanlab on probabilities of five runs, none of which saw the samples that it is asked about; and their time."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed: its rows are left out")
        return {}, 0.0
    seconds = 0.0
    probability_NC = np.zeros((len(labels_N), corpus.num_labels))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=given["seed"])
    for number, (fitted, asked) in enumerate(folds.split(labels_N, labels_N)):
        place = folder / f"fold-{number}"
        _, taken = run_on(corpus.train.select(fitted), corpus.train.select(asked), {**given, **PLAIN}, place)
        seconds += taken
        probability_NC[asked] = opinions(place / "run", "test")
    quality_N = get_label_quality_scores(labels_N, probability_NC)
    scores = {
        f"cleanlab, {method}": score(-quality_N, find_label_issues(labels_N, probability_NC, filter_by=method), wrong_N)
        for method in ("confident_learning", "predicted_neq_given")
    }
    return scores, seconds


def score(suspicion_N: Any, flagged_N: Any, wrong_N: np.ndarray) -> dict[str, float | None]:
    """How suspicion ranks wrong labels, and how well those called wrong are."""
    flagged_N = np.asarray(flagged_N)
    figures: dict[str, float | None] = {"flagged": float(flagged_N.mean()), "auroc": None, "ap": None, "f1": None}
    if 0 < wrong_N.sum() < len(wrong_N):
        figures["auroc"] = float(roc_auc_score(wrong_N, suspicion_N))
        figures["ap"] = float(average_precision_score(wrong_N, suspicion_N))
        figures["f1"] = float(f1_score(wrong_N, flagged_N, zero_division=0))
    return figures


def calibration_error(probability_N: np.ndarray, wrong_N: np.ndarray) -> float:
    """Expected calibration error of P(wrong) over ten bins of equal width."""
    bin_N = np.minimum((probability_N * BINS).astype(int), BINS - 1)
    return float(
        sum(
            (bin_N == b).mean() * abs(probability_N[bin_N == b].mean() - wrong_N[bin_N == b].mean())
            for b in np.unique(bin_N)
        )
    )


if __name__ == "__main__":
    main()
