"""Methods x corpora x seeds from one YAML file; a finished cell is never run again.

    python recipes/compare.py recipes/benchmarks/text.yaml --output recipes/benchmarks/text.json
    python recipes/compare.py recipes/benchmarks/text.yaml --output text.json --jobs 2 --figures plots

The YAML holds `corpora`, `methods` (name -> arguments of recipes/train.py) and `seeds`. A cell is one run of
recipes/train.py in a process of its own, forked from one that has imported everything; its results are kept in the
output file as they come. `skip` lists [corpus, method] pairs that make no sense together.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from results_table import table
from tqdm import tqdm


_RECIPES = Path(__file__).parent
_PROCESSES = multiprocessing.get_context("forkserver")
_FIRST_START = threading.Lock()  # several threads must not start the server at once
_KEPT = (
    "weights",
    "results",
    "suspects_auroc",
    "train_seconds",
    "peak_memory_mib",
    "num_train_samples",
    "noise",
    "evaluations",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="YAML file with corpora, methods and seeds")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results; continued if it exists")
    parser.add_argument("--jobs", type=int, default=1, help="Cells that run at the same time; they share the cores")
    parser.add_argument("--only", help="Only cells whose 'corpus / method / seed' match this regular expression")
    parser.add_argument("--cache", help="Folder that keeps what frozen encoders make of a corpus for the next call")
    parser.add_argument("--figures", type=Path, help="Folder for a figure per corpus")
    options = parser.parse_args(arguments)
    grid = read_grid(options.grid)
    document = {"command": shlex.join(["python", "recipes/compare.py", str(options.grid)]), "cells": []}
    if options.output.exists():
        document = json.loads(options.output.read_text(encoding="utf8"))
    finished = {(cell["corpus"], cell["method"], cell["seed"]) for cell in document["cells"]}
    missing = [cell for cell in cells_of(grid) if (cell["corpus"], cell["method"], cell["seed"]) not in finished]
    if options.only:
        only = re.compile(options.only)
        missing = [cell for cell in missing if only.search(f"{cell['corpus']} / {cell['method']} / {cell['seed']}")]

    failures = []
    with (
        tempfile.TemporaryDirectory() as ours,
        ThreadPoolExecutor(options.jobs) as pool,
        tqdm(total=len(missing), desc=options.grid.stem, unit="cell") as bar,
    ):
        kept = options.cache or ours  # what a frozen encoder makes of a corpus serves every cell
        futures = [pool.submit(run_cell, cell, kept, options.jobs) for cell in missing]
        try:
            for future in as_completed(futures):
                try:
                    document["cells"].append(future.result())
                except CellFailed as failure:
                    failures.append(str(failure))
                else:
                    document["cells"].sort(key=lambda cell: _order(grid, cell))
                    write_json(options.output, document)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt must not run all the rest first
    print(table(document["cells"]))
    if options.figures:
        from figures import figures

        figures(document["cells"], options.figures)
    if failures:
        sys.exit("\n".join(["error: these cells failed; run again to repeat them", *failures]))


class CellFailed(Exception):
    """A run of recipes/train.py that ended with an error; the others go on."""


def read_grid(path: Path) -> dict[str, Any]:
    """The grid in a YAML file.

    Raises:
        SystemExit: when something is missing from it.
    """
    grid = yaml.safe_load(path.read_text(encoding="utf8"))
    absent = [name for name in ("corpora", "methods", "seeds") if not (grid or {}).get(name)]
    if absent:
        sys.exit(f"error: {path} lacks {', '.join(absent)}: it must hold corpora, methods and seeds")
    return {"skip": [], **grid}


def cells_of(grid: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a grid: all of the first seed come first, so that a table is complete early."""
    return [
        {
            "corpus": corpus,
            "method": method,
            "seed": seed,
            "arguments": {**corpus_arguments, **(method_arguments or {}), "seed": seed},
        }
        for seed in grid["seeds"]
        for corpus, corpus_arguments in grid["corpora"].items()
        for method, method_arguments in grid["methods"].items()
        if [corpus, method] not in grid["skip"]
    ]


def run_cell(cell: dict[str, Any], kept: str, jobs: int = 1) -> dict[str, Any]:
    """One run of recipes/train.py; returns the cell with what is kept of its results.

    Raises:
        CellFailed: with the end of what the run said.
    """
    if jobs > 1:  # two processes with a thread a core each would crawl
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with tempfile.TemporaryDirectory() as folder:
        given = {"frozen_cache_dir": kept, **cell["arguments"], "output_dir": folder, "disable_tqdm": "true"}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        said = Path(folder) / "said.txt"
        if status := run_apart(words, said):
            name = f"{cell['corpus']}, {cell['method']}, seed {cell['seed']}"
            command = shlex.join(["python", "recipes/train.py", *words])
            end = said.read_text(encoding="utf8", errors="replace")[-2000:] if said.exists() else ""
            raise CellFailed(f"{name} ended with status {status}: {command}\n{end}")
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf8"))
    return {**cell, **rounded({name: results[name] for name in _KEPT}), "versions": results["versions"]}


def run_apart(words: list[str], said: Path) -> int:
    """recipes/train.py with these arguments in a new process; what it prints goes into a file. Returns its status.

    The process is forked from a server that has imported what a run needs: that takes longer than a short run.
    """
    if str(_RECIPES) not in sys.path:  # where a process that begins looks for this module
        sys.path.append(str(_RECIPES))
    # The server has the environment of its own first moment.
    process = _PROCESSES.Process(target=_train, args=(words, said, dict(os.environ)))
    with _FIRST_START:
        # The server finds what it imports in the environment's path alone.
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_RECIPES), given]))
        _PROCESSES.set_forkserver_preload(["train"])
        try:
            process.start()
        finally:
            if given is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = given
    process.join()
    return process.exitcode or 0


def _train(words: list[str], said: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with said.open("w", encoding="utf8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            import train

            train.main(words)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def rounded(value: Any) -> Any:
    """The same values with floats to five digits: more would be noise in a file that is kept."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def write_json(path: Path, document: Any) -> None:
    """Write the file whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    text = json.dumps(document, separators=(",", ":")).replace('{"corpus"', '\n{"corpus"')  # a line a cell
    unfinished.write_text(text + "\n", encoding="utf8")
    unfinished.replace(path)


def _order(grid: dict[str, Any], cell: dict[str, Any]) -> tuple[int, int, int]:
    corpora, methods = list(grid["corpora"]), list(grid["methods"])
    places = [
        names.index(cell[name]) if cell[name] in names else len(names)
        for name, names in (("corpus", corpora), ("method", methods))
    ]
    return (places[0], places[1], cell["seed"])


if __name__ == "__main__":
    main()
