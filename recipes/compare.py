"""Methods x corpora x seeds from one YAML file; a finished cell is never run again.

    python recipes/compare.py recipes/benchmarks/first.yaml --output recipes/benchmarks/first.json

The YAML holds `corpora`, `methods` (name -> arguments of recipes/train.py) and `seeds`. A cell is one run of
recipes/train.py; its results are kept in the output file as they come.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml


ROWS = ("last", "selected", "ensemble", "oracle_best")


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="YAML file with corpora, methods and seeds")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results; continued if it exists")
    options = parser.parse_args(arguments)
    grid = yaml.safe_load(options.grid.read_text(encoding="utf8"))
    cells: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for seed in grid["seeds"]:
        for corpus, corpus_arguments in grid["corpora"].items():
            for method, method_arguments in grid["methods"].items():
                key = f"{corpus} | {method} | {seed}"
                if key not in cells:
                    print(f"--- {key}", flush=True)
                    cells[key] = run_cell({**corpus_arguments, **(method_arguments or {}), "seed": seed})
                    unfinished = options.output.with_suffix(".tmp")
                    unfinished.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf8")
                    unfinished.replace(options.output)
    print(table(cells))


def run_cell(arguments: dict[str, Any]) -> dict[str, Any]:
    """One run of recipes/train.py in a process of its own; returns what is kept of its results."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        script = str(Path(__file__).parent / "train.py")
        command = [sys.executable, "-W", "ignore", script, *words, "--output_dir", folder, "--disable_tqdm", "true"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            sys.exit(f"{' '.join(command)}\n{finished.stderr[-3000:]}")
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf8"))
    kept = ("results", "suspects_auroc", "train_seconds", "evaluations", "num_train_samples", "versions")
    return {"arguments": arguments, **{name: results[name] for name in kept}}


def table(cells: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds of each corpus and method, as Markdown."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, cell in cells.items():
        corpus, method, _ = key.split(" | ")
        groups.setdefault((corpus, method), []).append(cell)
    names = ["last", "selected by CLID", "ensemble", "oracle best", "suspects AUROC", "seconds"]
    lines = ["| corpus | method | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for (corpus, method), runs in groups.items():
        values = [_spread([run["results"].get(row, {}).get("test_accuracy") for run in runs], 100, 1) for row in ROWS]
        values.append(_spread([run["suspects_auroc"] for run in runs], 1, 3))
        values.append(_spread([run["train_seconds"] for run in runs], 1, 0))
        lines.append(f"| {corpus} | {method} | {len(runs)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _spread(values: list[float | None], scale: float, digits: int) -> str:
    found = [scale * value for value in values if value is not None]
    if not found:
        return ""
    deviation = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
