"""What the cost benchmarks share: random samples, the networks, and a trainer that is led one step at a time."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
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


NUM_LABELS, BATCH_SIZE, VOCABULARY = 10, 32, 30522


class Samples(Dataset):
    """Random inputs in memory: the step is measured, not the loading."""

    def __init__(self, inputs: dict[str, Tensor], num_labels: int = NUM_LABELS):
        self.inputs = inputs
        self.labels = torch.randint(0, num_labels, (len(next(iter(inputs.values()))),), generator=_generator())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**{name: values[row] for name, values in self.inputs.items()}, "labels": self.labels[row]}


def images(pixels: int, size: int = 256) -> Samples:
    return Samples({"pixel_values": torch.randn(size, 3, pixels, pixels, generator=_generator())})


def texts(tokens: int, size: int = 256) -> Samples:
    ids = torch.randint(5, VOCABULARY, (size, tokens), generator=_generator())
    return Samples({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def timm_classifier(name: str, pixels: int) -> nn.Module:
    return load_classifier(name, [str(label) for label in range(NUM_LABELS)], image_size=pixels)[0]


def encoder(**sizes: int) -> nn.Module:
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, num_labels=NUM_LABELS, **sizes)
    return AutoModelForSequenceClassification.from_config(config)


@dataclass(frozen=True)
class Subject:
    """A network with samples that fit it; `settings` go to every trainer of it."""

    build: Callable[[], nn.Module]
    samples: Callable[[], Samples]
    settings: dict[str, Any] = field(default_factory=dict)


_MINI = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SUBJECTS = {
    "resnet18@32": Subject(lambda: timm_classifier("resnet18", 32), lambda: images(32)),
    "vit_tiny@64": Subject(lambda: timm_classifier("vit_tiny_patch16_224", 64), lambda: images(64)),
    "minilm@32": Subject(lambda: encoder(**_MINI), lambda: texts(32)),
}
if torch.cuda.is_available():
    _HALF = {"bf16": True, "dataloader_num_workers": 4}
    SUBJECTS |= {
        "resnet50@224": Subject(lambda: timm_classifier("resnet50", 224), lambda: images(224), _HALF),
        "bert_base@128": Subject(encoder, lambda: texts(128), _HALF),
    }


class Seconds(NamedTuple):
    """What a step takes: time of the device (events on a GPU, the wall otherwise), and CPU time of this process.

    On a shared machine the CPU time says more: other programs take turns with ours, and that is not counted.
    """

    device: float
    cpu: float


class Stepper:
    """A trainer in the middle of a run, one whole step at a time: from the batch to the optimiser.

    Args:
        kind: the class of the trainer.
        model: a new one.
        samples: what it trains on.
        settings: arguments of the trainer. There is no warm-up: every meta step that is due is taken.
    """

    def __init__(self, kind: type[Trainer], model: nn.Module, samples: Samples, **settings: Any):
        config, ours = TrainingArguments, {}
        if issubclass(kind, CLIDMUTrainer):
            config, ours = CLIDMUConfig, {"meta_warmup_steps": 0}
        values = {
            "output_dir": tempfile.mkdtemp(),
            "per_device_train_batch_size": BATCH_SIZE,
            "max_steps": 10_000,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        args = config(**{**values, **ours, **settings})
        self.trainer: Any = kind(model, args, default_data_collator, samples)
        self.trainer.is_in_train = True
        loader = self.trainer.get_train_dataloader()
        self.trainer.state.max_steps = args.max_steps
        self.model, self.loader = self.trainer._prepare_for_training(args.max_steps, loader, None)
        self.trainer.current_gradient_accumulation_steps = 1
        self.on_gpu = args.device.type == "cuda"
        self.batches: Any = iter(())

    def seconds(self, steps: int = 1) -> Seconds:
        """Seconds a step, the mean over so many steps. Loading the training batch is not counted."""
        taken = [self._step(self._batch()) for _ in range(steps)]
        return Seconds(*(sum(times) / steps for times in zip(*taken, strict=True)))

    def peak_bytes(self) -> int:
        """The most bytes of tensors in one step: what stays (weights, optimisers, records) and what comes and goes."""
        batch = self._batch()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._step(batch)
            return self._staying_bytes() + torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self._step(batch)
        with tempfile.TemporaryDirectory() as folder:
            record.export_chrome_trace(f"{folder}/trace.json")
            events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
        held = peak = 0
        for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda event: event["ts"]):
            held += event["args"]["Bytes"]
            peak = max(peak, held)
        return self._staying_bytes() + peak

    def _batch(self) -> dict[str, Any]:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return batch

    def _step(self, batch: dict[str, Any]) -> Seconds:
        clock = _Clock(self.on_gpu)
        self.trainer.training_step(self.model, batch)
        self.trainer.optimizer.step()
        self.model.zero_grad()
        self.trainer.state.global_step += 1
        return clock.seconds()

    def _staying_bytes(self) -> int:
        weighting, ledger = getattr(self.trainer, "weighting", None), getattr(self.trainer, "ledger", None)
        modules = [module for module in (self.model, weighting) if module is not None]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        optimizers = (self.trainer.optimizer, getattr(weighting, "optimizer", None))
        for optimizer in optimizers:
            state = {} if optimizer is None else getattr(optimizer, "optimizer", optimizer).state
            tensors += [value for moments in state.values() for value in moments.values() if isinstance(value, Tensor)]
        tensors += [value for value in vars(ledger).values() if isinstance(value, Tensor)] if ledger else []
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())


class _Clock:
    """Runs from its making."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        if on_gpu:
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            torch.cuda.synchronize()
            self.start.record()
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def seconds(self) -> Seconds:
        """Since it was made."""
        cpu = time.process_time() - self.cpu_started
        if not self.on_gpu:
            return Seconds(time.perf_counter() - self.started, cpu)
        self.end.record()
        torch.cuda.synchronize()
        return Seconds(self.start.elapsed_time(self.end) / 1000, cpu)


def facts() -> dict[str, Any]:
    """The machine and the setting of the figures."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # what else the machine was doing when it began
        "torch": torch.__version__,
        "batch_size": BATCH_SIZE,
    }


def write(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")


def print_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A Markdown table that is aligned on the screen, too."""
    lines = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        print("| " + " | ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)
