"""What a step costs: ours against a plain Trainer's, in turn in one process, medians of paired ratios.

python recipes/benchmarks/step_cost.py --pairs 15 --output recipes/benchmarks/step_cost.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_clidmu.backbones import load_classifier
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.trainer import CLIDMUTrainer


NUM_LABELS, BATCH_SIZE, TOKENS, VOCABULARY = 10, 32, 32, 30522
MODES = {
    "head, batch": {"scope": "head", "meta_source": "batch"},
    "head, subset": {"scope": "head", "meta_source": "subset"},
    "head, subset, every 5th": {"scope": "head", "meta_source": "subset", "meta_every": 5},
    "all, finite_difference": {"scope": "all", "tangent": "finite_difference"},
    "all, finite_difference, every 5th": {"scope": "all", "tangent": "finite_difference", "meta_every": 5},
}


class Samples(Dataset):
    """Random inputs in memory: only the step is measured, not the loading."""

    def __init__(self, images: bool, size: int = 256):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, NUM_LABELS, (size,), generator=generator)
        if images:
            self.inputs = {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator)}
        else:
            tokens = torch.randint(5, VOCABULARY, (size, TOKENS), generator=generator)
            self.inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**{name: values[row] for name, values in self.inputs.items()}, "labels": self.labels[row]}


def resnet18() -> nn.Module:
    """ResNet-18 at 32x32."""
    return load_classifier("resnet18", [str(i) for i in range(NUM_LABELS)], image_size=32)[0]


def minilm() -> nn.Module:
    """A 6-layer, 384-wide encoder at 32 tokens."""
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=NUM_LABELS,
    )
    return AutoModelForSequenceClassification.from_config(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "resnet18@32": (resnet18, True),
    "minilm@32": (minilm, False),
}


class Stepper:
    """A trainer in the middle of a run, one whole step at a time: forward to optimiser."""

    def __init__(self, kind: type[Trainer], model: nn.Module, images: bool, changes: dict[str, Any]):
        config = CLIDMUConfig if kind is CLIDMUTrainer else TrainingArguments
        args = config(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=10_000,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **changes,
        )
        self.trainer = kind(model, args, default_data_collator, Samples(images))
        self.trainer.is_in_train = True
        self.loader = self.trainer.get_train_dataloader()
        self.trainer.state.max_steps = args.max_steps
        self.model, self.loader = self.trainer._prepare_for_training(args.max_steps, self.loader, None)
        self.trainer.current_gradient_accumulation_steps = 1
        self.batches: Any = iter(())

    def step(self) -> float:
        """Seconds of one step."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        _wait()
        started = time.perf_counter()
        self.trainer.training_step(self.model, batch)
        self.trainer.optimizer.step()
        self.model.zero_grad()
        self.trainer.state.global_step += 1
        _wait()
        return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measure every mode on every model, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=15, help="paired measurements a mode")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.models:
        build, images = MODELS[name]
        figures[name] = {}
        plain = Stepper(Trainer, build(), images, {})
        for mode in options.modes:
            ours = Stepper(CLIDMUTrainer, build(), images, MODES[mode])
            # A mode that acts every k-th step is measured over whole rounds of k.
            round_length = MODES[mode].get("meta_every", 1)
            for stepper in (plain, ours):
                stepper.step()
            ours.trainer.state.global_step = 0
            ratios, seconds = [], []
            for _ in range(options.pairs):
                reference = sum(plain.step() for _ in range(round_length))
                measured = sum(ours.step() for _ in range(round_length))
                ratios.append(measured / reference)
                seconds.append(reference / round_length)
            figures[name][mode] = {
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
                "plain_step_ms": round(1000 * statistics.median(seconds), 1),
            }
            print(f"{name:<14}{mode:<36}{figures[name][mode]['ratio_median']:.3f}  of a plain step", flush=True)
    if options.output:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        facts = {
            "device": device,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        facts["batch_size"] = BATCH_SIZE
        options.output.write_text(json.dumps({"setting": facts, "ratios": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
