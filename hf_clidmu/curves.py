"""CLID, and what else was measured, over the steps of a run, as an image."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clidmu.files import write_whole


def draw_curves(evaluations: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw CLID, and accuracy where it was measured, over the optimiser steps.

    Args:
        evaluations: `step`, `clid`, and perhaps `accuracy`, one an evaluation.
        path: of the PNG file.

    Returns:
        Whether there is an image: not without matplotlib, nor for fewer than two evaluations.
    """
    points = [one for one in evaluations if math.isfinite(one.get("clid") or math.nan)]
    if len(points) < 2 or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    steps = [one["step"] for one in points]
    axes.plot(steps, [one["clid"] for one in points], color="tab:blue", marker=".", label="CLID (lower is better)")
    best = min(points, key=lambda one: one["clid"])
    axes.axvline(best["step"], color="grey", linestyle=":", label=f"lowest CLID: step {best['step']}")
    axes.set(xlabel="optimiser steps", ylabel="CLID")
    handles, names = axes.get_legend_handles_labels()
    scored = [one for one in points if math.isfinite(one.get("accuracy") or math.nan)]
    if scored:
        right = axes.twinx()
        accuracy = [100 * one["accuracy"] for one in scored]
        right.plot([one["step"] for one in scored], accuracy, color="tab:orange", marker=".", label="accuracy, %")
        right.set_ylabel("accuracy, %")
        more_handles, more_names = right.get_legend_handles_labels()
        handles, names = handles + more_handles, names + more_names
    axes.legend(handles, names, loc="best", fontsize="small")
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))
    return True
