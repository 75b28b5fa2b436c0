"""What a step costs: ours, and the published algorithm, against a plain Trainer's.

    python recipes/benchmarks/step_cost.py --rounds 15 --output recipes/benchmarks/step_cost.json
    python recipes/benchmarks/step_cost.py --batch_size 128 --models resnet50@224 bert_base@128  # on a GPU
    python recipes/benchmarks/step_cost.py --profile --models minilm@32 --modes "head, subset"

All of them step in turn in one process, round after round; a ratio is the median over the rounds of the ratios within
a round, so that whatever else the machine does falls on both sides. Time is the wall's, by CUDA events on a GPU; beside
it stands the CPU time of the process, which other load changes little, and peak memory, which is that of the tensors
of one step.
"""

import argparse
import cProfile
import os
import pstats
import statistics
import sys
from pathlib import Path
from typing import Any


if "--profile" in sys.argv:  # before CUDA starts: else a call returns before its kernels have run
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")

from published import PublishedTrainer
from stepping import BATCH_SIZE, SUBJECTS, Seconds, Stepper, Subject, facts, print_table, write
from transformers import Trainer

from hf_clidmu.trainer import CLIDMUTrainer


PLAIN, PUBLISHED, DEFAULT, EVERYTHING = "plain Trainer", "published", "head, subset", "all, finite_difference"
MODES: dict[str, dict[str, Any]] = {
    "head, batch": {"scope": "head", "meta_source": "batch"},
    DEFAULT: {},
    "head, subset, every 5th": {"meta_every": 5},
    EVERYTHING: {"scope": "all", "tangent": "finite_difference"},
    "all, forward": {"scope": "all", "tangent": "forward"},
    "all, finite_difference, every 5th": {"scope": "all", "tangent": "finite_difference", "meta_every": 5},
    PUBLISHED: {},
}


def stepper(subject: Subject, mode: str, batch_size: int = BATCH_SIZE) -> Stepper:
    """The trainer of a mode, in the middle of a run."""
    kind = {PLAIN: Trainer, PUBLISHED: PublishedTrainer}.get(mode, CLIDMUTrainer)
    settings = {**subject.settings, **MODES.get(mode, {}), "per_device_train_batch_size": batch_size}
    return Stepper(kind, subject.build(), subject.samples(), **settings)


def measure(subject: Subject, modes: list[str], rounds: int, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Seconds and peak bytes of every mode, stepping in turn."""
    steppers = {mode: stepper(subject, mode, batch_size) for mode in (PLAIN, *modes)}
    peaks = {}
    for mode, one in steppers.items():
        one.seconds()  # the optimisers' state appears in the first step
        one.trainer.state.global_step = 0  # a meta step is due
        peaks[mode] = one.peak_bytes()
        one.trainer.state.global_step = 0
    taken: dict[str, list[Seconds]] = {mode: [] for mode in steppers}
    for _ in range(rounds):
        for mode, one in steppers.items():  # a mode that acts every k-th step: over k steps
            taken[mode].append(one.seconds(MODES.get(mode, {}).get("meta_every", 1)))
    return summary(taken, peaks)


def summary(taken: dict[str, list[Seconds]], peaks: dict[str, int]) -> dict[str, Any]:
    """Paired ratios to the plain step, and of the published algorithm to ours.

    Args:
        taken: seconds of every mode and round.
        peaks: bytes of every mode.
    """
    plain = taken[PLAIN]
    figures: dict[str, Any] = {
        "plain_step_ms": round(1000 * statistics.median(seconds.device for seconds in plain), 1),
        "plain_step_cpu_ms": round(1000 * statistics.median(seconds.cpu for seconds in plain), 1),
        "plain_peak_mib": round(peaks[PLAIN] / 2**20, 1),
        "modes": {
            mode: {**_ratios(values, plain), "peak_memory": round(peaks[mode] / peaks[PLAIN], 3)}
            for mode, values in taken.items()
            if mode != PLAIN
        },
    }
    if PUBLISHED in taken:
        figures["published_over_ours"] = {
            mode: _ratios(taken[PUBLISHED], taken[mode]) for mode in (DEFAULT, EVERYTHING) if mode in taken
        }
    return figures


def _ratios(values: list[Seconds], references: list[Seconds]) -> dict[str, Any]:
    pairs = list(zip(values, references, strict=True))
    return {
        "time": _spread([value.device / reference.device for value, reference in pairs]),
        "cpu_time": _spread([value.cpu / reference.cpu for value, reference in pairs]),
    }


def _spread(ratios: list[float]) -> dict[str, Any]:
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")[::2] if len(ratios) > 1 else ratios * 2
    return {"median": round(statistics.median(ratios), 3), "quartiles": [round(value, 3) for value in quartiles]}


def rows(models: dict[str, Any]) -> list[list[str]]:
    """The table of the figures, a line a model and mode."""
    lines = []
    for model, figures in models.items():
        plain = [f"{figures['plain_step_ms']} ms", "", f"{figures['plain_step_cpu_ms']} ms", ""]
        lines.append([model, PLAIN, *plain, f"{figures['plain_peak_mib']} MiB"])
        for mode, figure in figures["modes"].items():
            lines.append([model, mode, *_texts(figure), f"{figure['peak_memory']:.2f}"])
        for mode, figure in figures.get("published_over_ours", {}).items():
            lines.append([model, f"{PUBLISHED} against '{mode}'", *_texts(figure), ""])
    return lines


def _texts(figure: dict[str, Any]) -> list[str]:
    return [
        text
        for kind in ("time", "cpu_time")
        for text in (
            f"{figure[kind]['median']:.2f}",
            " to ".join(f"{value:.2f}" for value in figure[kind]["quartiles"]),
        )
    ]


def profiled(one: Stepper, steps: int) -> list[list[str]]:
    """Where the time of a step goes: what `training_step` calls, longest first, and what the longer of them call."""
    one.seconds()
    one.trainer.state.global_step = 0
    recorder = cProfile.Profile()
    recorder.enable()
    taken = sum(one.seconds().device for _ in range(steps))
    recorder.disable()
    found: Any = pstats.Stats(recorder)
    calls: dict[Any, dict[Any, float]] = {}  # of a function: seconds in each of those that it calls
    callers_of = {function: callers for function, (*_, callers) in found.stats.items()}
    for function, callers in callers_of.items():
        for caller, (*_, cumulative) in callers.items():
            calls.setdefault(caller, {})[function] = cumulative

    lines = []

    def add(name: str, seconds: float) -> None:
        if seconds >= 0.001 * taken:
            lines.append([name, f"{1000 * seconds / steps:.2f}", f"{100 * seconds / taken:.1f} %"])

    def parts(function: Any, indent: str) -> None:
        for part, seconds in sorted(calls.get(function, {}).items(), key=lambda item: -item[1]):
            add(f"{indent}{Path(part[0]).stem}.{part[2]}", seconds)
            # A function with several callers does not say what it did for which of them.
            if "hf_clidmu" in part[0] and seconds > 0.1 * taken and len(callers_of[part]) == 1:
                parts(part, indent + "  ")

    (step,) = [function for function in calls if function[2] == "training_step" and "hf_clidmu" in function[0]]
    parts(step, "")
    add("the optimiser and all else", taken - sum(calls[step].values()))
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure every mode on every model, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="measurements of every mode")
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="samples a step, and a meta batch")
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--profile", action="store_true", help="show where the time of our steps goes; writes nothing")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {
        "setting": {**facts(), "batch_size": options.batch_size, "rounds": options.rounds},
        "models": {},
    }
    for name in options.models:
        if options.profile:
            for mode in [mode for mode in options.modes if mode != PUBLISHED]:
                print(f"\n{name}, {mode}: milliseconds a step (the profiler slows Python code down)")
                print_table(
                    ["part", "ms", "share"], profiled(stepper(SUBJECTS[name], mode, options.batch_size), options.rounds)
                )
            continue
        figures["models"][name] = measure(SUBJECTS[name], options.modes, options.rounds, options.batch_size)
        write(options.output, figures)  # after every model: a long run may be stopped
    if not options.profile:
        header = ["model", "mode", "time", "quartiles", "CPU time", "quartiles", "peak memory"]
        print_table(header, rows(figures["models"]))


if __name__ == "__main__":
    main()
