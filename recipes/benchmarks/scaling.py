"""What a meta step costs as one thing grows: batch, meta batch, classes, features, training set, steps between two.

    python recipes/benchmarks/scaling.py --rounds 30 --output recipes/benchmarks/scaling.json

The network is one linear layer on stored features, so what is measured is the meta step itself: the difference between
a step of ours (VRI, CLID, head scope) and a plain Trainer's, in turn in one process. A backbone adds one forward of the
meta batch (`step_cost.py`). Everything but one thing stays at the point of departure. Time is the CPU time of the
process, which other load changes little; on a GPU, that of the device.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from stepping import Samples, Stepper, facts, print_table, write
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from hf_clidmu.ledger import Ledger
from hf_clidmu.trainer import CLIDMUTrainer


DEPARTURE = {"batch": 32, "meta batch": 100, "classes": 10, "features": 384, "samples": 10_000, "meta_every": 1}
AXES = {
    "batch": (16, 32, 64, 128, 256, 512),
    "meta batch": (32, 100, 250, 500, 1000),
    "classes": (10, 100, 1_000, 10_000),
    "features": (128, 384, 768, 2_048, 4_096),
    "samples": (1_000, 10_000, 100_000, 1_000_000),
    "meta_every": (1, 2, 5, 10),
}


class Head(nn.Module):
    """A linear classifier."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.classifier = nn.Linear(features, classes)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(features)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


class Repeated(Dataset):
    """A few samples as a dataset of any size: rows come again, indices do not."""

    def __init__(self, samples: Samples, size: int):
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.samples[row % len(self.samples)]


def cost(rounds: int, **point: int) -> dict[str, float]:
    """Milliseconds and MiB that ours takes beyond a plain step, and what the ledger takes, at one point."""
    at = {**DEPARTURE, **point}
    generator = torch.Generator().manual_seed(0)
    samples = Samples({"features": torch.randn(1_000, at["features"], generator=generator)}, at["classes"])
    settings = {"per_device_train_batch_size": at["batch"]}
    ours = {"meta_batch_size": at["meta batch"], "meta_every": at["meta_every"]}
    steppers = [
        Stepper(kind, Head(at["features"], at["classes"]), Repeated(samples, at["samples"]), **settings, **changes)
        for kind, changes in ((Trainer, {}), (CLIDMUTrainer, ours))
    ]
    peaks, seconds = [], ([], [])
    for stepper in steppers:
        stepper.seconds()
        stepper.trainer.state.global_step = 0
        peaks.append(stepper.peak_bytes())
        stepper.trainer.state.global_step = 0
    for _ in range(rounds):
        for stepper, taken in zip(steppers, seconds, strict=True):
            found = stepper.seconds(at["meta_every"])
            taken.append(found.device if stepper.on_gpu else found.cpu)
    ledger = steppers[1].trainer.ledger
    return {
        "plain_step_ms": 1000 * statistics.median(seconds[0]),
        "ours_more_ms": 1000 * statistics.median(b - a for a, b in zip(*seconds, strict=True)),
        "ours_more_mib": (peaks[1] - peaks[0]) / 2**20,
        "ledger_bytes_a_sample": bytes_of(ledger) / at["samples"],
        "ledger_update_ms": 1000 * ledger_seconds(ledger, at["batch"], at["classes"], rounds),
    }


def bytes_of(ledger: Ledger) -> int:
    """Memory of a ledger."""
    tensors = [value for value in vars(ledger).values() if isinstance(value, Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def ledger_seconds(ledger: Ledger, batch: int, classes: int, rounds: int) -> float:
    """Seconds of one update with a batch of rows from all over the record."""
    taken = []
    for _ in range(rounds):
        index_B = torch.randint(0, ledger.num_samples, (batch,))
        logits_BC, labels_B = torch.randn(batch, classes), torch.randint(0, classes, (batch,))
        started = time.process_time()
        ledger.update(index_B, logits_BC, labels_B)
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def main(arguments: list[str] | None = None) -> None:
    """Measure along every axis, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="measurements of every point")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"setting": {**facts(), "rounds": options.rounds, "departure": DEPARTURE}, "axes": {}}
    figures["setting"].pop("batch_size")
    for axis in options.axes:
        costs = {value: cost(options.rounds, **{axis: value}) for value in AXES[axis]}
        figures["axes"][axis] = {
            value: {name: round(figure, 3) for name, figure in found.items()} for value, found in costs.items()
        }
        write(options.output, figures)
    names = ("plain_step_ms", "ours_more_ms", "ours_more_mib", "ledger_bytes_a_sample", "ledger_update_ms")
    print_table(
        ["", "", "plain step, ms", "ours takes more, ms", "and MiB", "ledger, bytes a sample", "its update, ms"],
        [
            [axis, f"{value:,}", *(f"{figure[name]:.3g}" for name in names)]
            for axis, values in figures["axes"].items()
            for value, figure in values.items()
        ],
    )


if __name__ == "__main__":
    main()
