"""A figure per corpus of a comparison: accuracy and CLID over a run, and what becomes of right and wrong labels."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


_PANELS = (
    ("test accuracy", ("test_accuracy",)),
    ("CLID, where it selects", ("clid",)),
    ("probability of the given label: right (solid), wrong (dashed)", ("probability_right", "probability_wrong")),
    ("weight of the given label: right (solid), wrong (dashed)", ("weight_right", "weight_wrong")),
)


def figures(cells: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw one PNG per corpus, means over seeds with their range; returns the files.

    Args:
        cells: of a comparison, with their `evaluations`.
        folder: made where it is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for corpus in dict.fromkeys(cell["corpus"] for cell in cells):
        runs = [cell for cell in cells if cell["corpus"] == corpus]
        figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
        for axis, (title, names) in zip(axes.flat, _PANELS, strict=True):
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("share of the run")
            for number, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
                for style, name in zip(("-", "--"), names, strict=False):
                    share, value_SE = curves([run for run in runs if run["method"] == method], name)
                    if value_SE.size:
                        colour = f"C{number}"
                        label = method if style == "-" else None
                        axis.plot(share, value_SE.mean(axis=0), style, color=colour, label=label)
                        axis.fill_between(share, value_SE.min(axis=0), value_SE.max(axis=0), color=colour, alpha=0.12)
        axes.flat[0].legend(fontsize=8)
        figure.suptitle(corpus)
        paths.append(folder / f"{re.sub(r'[^a-z0-9]+', '_', corpus.lower()).strip('_')}.png")
        drawn = BytesIO()
        figure.savefig(drawn, dpi=90)
        Image.open(drawn).convert("RGB").quantize(96).save(paths[-1], optimize=True)  # a third of the bytes
        pyplot.close(figure)
    return paths


def curves(runs: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A value over the runs' evaluations: the share of the run, (E,), and the value, (runs, E)."""
    rows = [[entry.get(name) for entry in run["evaluations"]] for run in runs]
    length = min((len(row) for row in rows), default=0)
    kept = [row[:length] for row in rows if length and all(value is not None for value in row[:length])]
    if not kept:
        return np.empty(0), np.empty((0, 0))
    steps = np.array([entry["step"] for entry in runs[0]["evaluations"][:length]], dtype=float)
    return steps / runs[0]["evaluations"][-1]["step"], np.array(kept, dtype=float)
