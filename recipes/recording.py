"""What a run did to right and to wrong labels, step by step: for the figures of a comparison, where both are known."""

import resource
import sys
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from hf_clidmu.data import Corpus
from hf_clidmu.data.streams import is_stream
from hf_clidmu.trainer import CLIDMUTrainer


class Recording(TrainerCallback):
    """Mean probability and weight of the given labels between evaluations, right and wrong ones apart.

    Read from the ledger, so it costs nothing. Clean labels are for reporting: the run does not see them.
    """

    def __init__(self, trainer: CLIDMUTrainer, corpus: Corpus):
        self.trainer = trainer
        self.wrong: np.ndarray | None = None
        if "clean_label" in (corpus.train.column_names or ()) and not is_stream(corpus.train):
            given, clean = (np.asarray(corpus.train[name]) for name in ("label", "clean_label"))
            self.known, self.wrong = clean >= 0, given != clean
        self._rows: dict[int, dict[str, float]] = {}
        self._before: dict[str, np.ndarray] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        ledger = self.trainer.ledger
        if not self.trainer.is_in_train or self.wrong is None or ledger is None:
            return
        totals = {name: values.numpy().astype(np.float64) for name, values in ledger.state_dict().items()}
        since = {name: totals[name] - self._before.get(name, 0) for name in ("times_seen", "probability", "weight")}
        self._before = totals
        row = {}
        for group, members in (("right", self.known & ~self.wrong), ("wrong", self.known & self.wrong)):
            seen = since["times_seen"][members].sum()
            for name in ("probability", "weight"):
                if seen:
                    row[f"{name}_{group}"] = float(since[name][members].sum() / seen)
        self._rows[state.global_step] = row

    def at(self, step: int) -> dict[str, float]:
        """What was recorded up to this evaluation; empty where clean labels are not known."""
        return self._rows.get(step, {})


def peak_memory_mib() -> float:
    """The most memory that was in use, in MiB: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes on macOS, KiB elsewhere
