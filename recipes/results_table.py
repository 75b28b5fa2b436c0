"""Tables of comparisons, as Markdown; run as a script, it renders those in the README from the files they name.

    python recipes/results_table.py            # rewrite the tables of README.md and recipes/benchmarks/README.md
    python recipes/results_table.py --check    # say which are not up to date, change nothing

A table stands between `<!-- results: FILE.json -->` and `<!-- /results -->`; one line a corpus, of several files,
between `<!-- summary: FILE.json FILE.json -->` and `<!-- /summary -->`; how wrong labels were found, `detection`; what
a step costs, `cost`.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "recipes/benchmarks/README.md")
_BLOCK = re.compile(r"(<!-- (?P<kind>\w+): (?P<files>[^>]+?) -->\n).*?(<!-- /(?P=kind) -->)", re.DOTALL)
_PLAIN, _OURS, _UPPER, _RIVAL = "cross-entropy", "CLID-MU (vri)", "upper reference", ", stopped early"
_COSTS = {  # modes of step_cost.py, in words
    "head, batch": 'head, judged on the running batch (`meta_source="batch"`)',
    "head, subset": "head, judged on fixed training samples (the default)",
    "head, subset, every 5th": "the same with `meta_every=5`",
    "all, finite_difference": 'everything that trains (`scope="all"`)',
    "all, forward": 'the same with `tangent="forward"`',
    "all, finite_difference, every 5th": "by finite differences with `meta_every=5`",
    "published": "the published algorithm: twice through the network",
}
# Heading, what to read from a cell, factor, digits.
_COLUMNS = (
    ("last step", ("results", "last", "test_accuracy"), 100, 1),
    ("selected", ("results", "selected", "test_accuracy"), 100, 1),
    ("ensemble", ("results", "ensemble", "test_accuracy"), 100, 1),
    ("oracle best", ("results", "oracle_best", "test_accuracy"), 100, 1),
    ("selected, macro F1", ("results", "selected", "test_macro_f1"), 100, 1),
    ("wrong labels found, AUROC", ("suspects_auroc",), 1, 3),
    ("CLID and accuracy, Spearman", ("clid_spearman",), 1, 2),
    ("seconds", ("train_seconds",), 1, 0),
    ("peak MiB", ("peak_memory_mib",), 1, 0),
)


def table(cells: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each corpus and method, as Markdown.

    Columns that no cell fills are left out. The best selected accuracy of a corpus is bold.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["corpus"], cell["method"]), []).append(cell)
    columns = [column for column in _COLUMNS if any(_value(cell, column[1]) is not None for cell in cells)]
    lines = [
        "| corpus | method | seeds | " + " | ".join(column[0] for column in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    selected = {group: _mean(runs, ("results", "selected", "test_accuracy")) for group, runs in groups.items()}
    previous = None
    for (corpus, method), runs in groups.items():
        best = max(value for (other, _), value in selected.items() if other == corpus)
        texts = [_spread(runs, path, factor, digits) for _, path, factor, digits in columns]
        if selected[corpus, method] == best:
            place = [column[0] for column in columns].index("selected")
            texts[place] = f"**{texts[place]}**"
        name = corpus if corpus != previous else ""
        lines.append(f"| {name} | {method} | {len(runs)} | " + " | ".join(texts) + " |")
        previous = corpus
    return "\n".join(lines)


def summary(cells: list[dict[str, Any]]) -> str:
    """A corpus a line: cross-entropy's last step, the best rival, CLID-MU and its upper reference, as Markdown.

    Columns that no corpus fills are left out.
    The rival is, of the methods that stop early on noisy validation, the one with the best mean *test* accuracy: which
    one that is on a corpus, nobody knows beforehand.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        groups.setdefault(cell["corpus"], {}).setdefault(cell["method"], []).append(cell)
    last, selected = (("results", state, "test_accuracy") for state in ("last", "selected"))
    headings = ["corpus", "seeds", "cross-entropy, last step", "best of those stopped early", "CLID-MU, selected"]
    headings += ["against cross-entropy", "with clean meta labels"]
    rows = []
    for corpus, methods in groups.items():
        plain, ours = methods.get(_PLAIN, []), methods.get(_OURS, [])
        rivals = {name: runs for name, runs in methods.items() if name.endswith(_RIVAL)}
        rival = max(rivals, key=lambda name: _mean(rivals[name], selected), default=None)
        named = "" if rival is None else f"{_spread(rivals[rival], selected, 100, 1)} ({rival.removesuffix(_RIVAL)})"
        upper = next((runs for name, runs in methods.items() if name.startswith(_UPPER)), [])
        gain = f"{round(100 * (_mean(ours, selected) - _mean(plain, last)), 1) + 0.0:+.1f}" if ours and plain else ""
        texts = [corpus, str(len(ours)), _spread(plain, last, 100, 1), named, _spread(ours, selected, 100, 1), gain]
        rows.append([*texts, _spread(upper, selected, 100, 1)])
    filled = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line[column] for column in filled) + " |" for line in lines)


def detection_table(cells: list[dict[str, Any]]) -> str:
    """Of runs of `detection.py`: ranking by detector, then what the report says and is worth, as Markdown."""
    corpora: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        corpora.setdefault(cell["corpus"], []).append(cell)
    detectors = list(dict.fromkeys(name for cell in cells for name in cell["scores"]))
    times = list(dict.fromkeys(name for cell in cells for name in cell["seconds"]))
    accuracies = list(dict.fromkeys(name for cell in cells for name in cell["accuracy"]))
    blocks = (
        ("AUROC", [(name, ("scores", name, "auroc"), 1, 3) for name in detectors]),
        ("average precision", [(name, ("scores", name, "ap"), 1, 3) for name in detectors]),
        ("F1 of those called wrong", [(name, ("scores", name, "f1"), 1, 3) for name in detectors]),
        (
            "the report, %",
            [
                ("wrong labels", ("noise_rate",), 100, 1),
                ("estimated", ("estimated",), 100, 1),
                ("called wrong", ("flagged",), 100, 1),
                ("calibration error", ("calibration_error",), 100, 1),
            ],
        ),
        ("cross-entropy trained on, accuracy in %", [(name, ("accuracy", name), 100, 1) for name in accuracies]),
        ("seconds", [(name, ("seconds", name), 1, 0) for name in times]),
    )
    tables = []
    for title, rows in blocks:
        lines = [f"| {title} | " + " | ".join(corpora) + " |", "|---|" + "---|" * len(corpora)]
        for name, path, factor, digits in rows:
            texts = (_spread(runs, path, factor, digits) for runs in corpora.values())
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def cost_table(models: dict[str, Any]) -> str:
    """Of figures of `step_cost.py`: CPU time of a step, in brackets peak memory, over a plain one's, as Markdown."""
    lines = [["mode", *models], ["---"] * (1 + len(models))]
    for mode in list(dict.fromkeys(mode for figures in models.values() for mode in figures["modes"])):
        found = [figures["modes"].get(mode) for figures in models.values()]
        lines.append(
            [
                _COSTS.get(mode, mode),
                *("" if f is None else f"{f['cpu_time']['median']:.2f} ({f['peak_memory']:.2f})" for f in found),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rendered(page: str, folder: Path) -> str:
    """The page with every table made anew from the files it names, relative to `folder`.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: for a kind of table that does not exist.
    """

    def fill(match: re.Match[str]) -> str:
        if match["kind"] not in _TABLES:
            raise ValueError(f"no table is called '{match['kind']}'; known: {', '.join(_TABLES)}")
        documents = [json.loads((folder / name).read_text("utf8")) for name in match["files"].split()]
        return f"{match[1]}{_TABLES[match['kind']](documents)}\n{match[4]}"

    return _BLOCK.sub(fill, page)


def _cells(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for document in documents for cell in document["cells"]]


_TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {  # of the contents of files
    "results": lambda documents: table(_cells(documents)),
    "summary": lambda documents: summary(_cells(documents)),
    "detection": lambda documents: detection_table(_cells(documents)),
    "cost": lambda documents: cost_table({name: f for one in documents for name, f in one["models"].items()}),
}


def main(arguments: list[str] | None = None) -> None:
    """Render or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if a table is not up to date")
    options = parser.parse_args(arguments)
    stale = []
    for name in PAGES:
        path = REPOSITORY / name
        page = path.read_text(encoding="utf8")
        new = rendered(page, REPOSITORY)
        if new != page:
            stale.append(name)
            if not options.check:
                path.write_text(new, encoding="utf8")
    if options.check and stale:
        sys.exit(f"error: not up to date: {', '.join(stale)}; run python recipes/results_table.py")


def _value(cell: dict[str, Any], path: tuple[str, ...]) -> float | None:
    if path == ("clid_spearman",):
        return _spearman(cell.get("evaluations", []))
    value: Any = cell
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _spearman(evaluations: list[dict[str, float]]) -> float | None:
    """Rank correlation of low CLID and high test accuracy over the evaluations of a run: 1 is a perfect judge."""
    pairs = [
        (-entry["clid"], entry["test_accuracy"]) for entry in evaluations if entry.get("test_accuracy") is not None
    ]
    if len(pairs) < 3 or len({a for a, _ in pairs}) == 1 or len({b for _, b in pairs}) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _mean(runs: list[dict[str, Any]], path: tuple[str, ...]) -> float:
    found = [value for value in (_value(run, path) for run in runs) if value is not None]
    return statistics.mean(found) if found else float("-inf")


def _spread(runs: list[dict[str, Any]], path: tuple[str, ...], factor: float, digits: int) -> str:
    found = [factor * value for value in (_value(run, path) for run in runs) if value is not None]
    if not found:
        return ""
    deviation = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
