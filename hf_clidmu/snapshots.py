"""Which state of the model to keep: snapshots ranked by a score, CLID by default, and what to make of the best.

A snapshot holds what training can change (trainable parameters and buffers), as safetensors. The mean of the states
that stand level with the best is kept as they come: one more file, however many they are.
"""

import logging
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from hf_clidmu.files import (
    disk_refused,
    inside,
    link_or_copy,
    read_tensors,
    remove_unfinished,
    write_json,
    write_tensors,
)
from hf_clidmu.sharding import spread_like, whole


logger = logging.getLogger(__name__)

SNAPSHOT_MODES = ("single", "soup", "ensemble")
_INDEX_NAME = "snapshots.json"
_MEAN_NAME = "mean.safetensors"
_FILE_NAME = re.compile(r"step-\d{1,18}\.safetensors")


@dataclass
class Snapshot:
    """One evaluated state of a run.

    Attributes:
        step: optimiser steps taken.
        score: lower is better: Cross-Layer Information Divergence on the judge set, unless another metric was named;
            that of the best state where nothing but chance may lie between them (`selection_tolerance`).
        file: name of the weights in the snapshot folder, or None where they were not kept.
    """

    step: int
    score: float
    file: str | None = None


class Snapshots:
    """The best k states of a run by their score, and the mean of those with the best score.

    Args:
        folder: where the weights are kept; made when the first snapshot comes.
        top_k: how many to keep.
        writes: whether this process writes files (one process of a distributed run does).
        share: what the first process says, told to all; None for a single process.
        later: of states with the same score, whether the later one ranks first.
        averages: keep the mean of the states that have the best score, which `soup` loads.
    """

    def __init__(
        self,
        folder: str | Path,
        top_k: int,
        writes: bool = True,
        share: Callable[[Any], Any] | None = None,
        later: bool = False,
        averages: bool = False,
    ):
        if top_k < 1:
            raise ValueError(f"snapshot_top_k must be at least 1, got {top_k}")
        self.folder = Path(folder)
        self.top_k = top_k
        self.writes = writes
        self.share = share or (lambda value: value)
        self.later = later
        self.averages = averages
        self.history: list[Snapshot] = []

    def add(self, step: int, score: float, model: nn.Module) -> bool:
        """Record an evaluated state, and keep its weights if it is among the best k so far.

        A score that is not finite ranks last and is never kept. Weights that the disk does not take are not kept
        either: the run goes on with those it has, and a warning says so.

        Returns:
            Whether it is the best so far.
        """
        judged_again = step in [snapshot.step for snapshot in self.level]
        self.history = [snapshot for snapshot in self.history if snapshot.step != step]
        snapshot = Snapshot(step, float(self.share(score)))
        self.history.append(snapshot)
        ranked, level = self.ranked(), self.level
        stays = snapshot in ranked[: self.top_k]
        joins = self.averages and snapshot in level and not (judged_again and len(level) > 1)
        state = changing_state(model, self.writes) if stays or joins else {}
        if stays:
            name = f"step-{step}.safetensors"
            snapshot.file = name if self.share(self._write(name, state)) else None
        if joins:
            self._take_in(state, len(level))
        for dropped in self.kept[self.top_k :]:
            dropped.file = None
        self._remove_others()
        self._write_index()
        return bool(ranked) and ranked[0] is snapshot

    def ranked(self) -> list[Snapshot]:
        """All finite snapshots, best first; of equal ones the earlier, or the later where that was asked for."""
        finite = [snapshot for snapshot in self.history if math.isfinite(snapshot.score)]
        return sorted(finite, key=lambda snapshot: (snapshot.score, -snapshot.step if self.later else snapshot.step))

    @property
    def best(self) -> Snapshot | None:
        """The snapshot with the lowest score, or None before the first evaluation."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    @property
    def level(self) -> list[Snapshot]:
        """The snapshots that have the best score, in the order in which they came."""
        best = self.best
        return [] if best is None else [snapshot for snapshot in self.history if snapshot.score == best.score]

    @property
    def members(self) -> list[Snapshot]:
        """The snapshots whose mean `soup` loads; a single one where no mean is kept."""
        return self.level if self._has_mean else self.kept[:1]

    @property
    def kept(self) -> list[Snapshot]:
        """The snapshots whose weights are there, best first."""
        return [snapshot for snapshot in self.ranked() if snapshot.file is not None]

    def weights(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """The weights of a snapshot, on the CPU.

        Raises:
            FileNotFoundError: when they were not kept, or the file is gone.
            ValueError: when the file cannot be read.
        """
        if snapshot.file is None or not (self.folder / snapshot.file).is_file():
            raise FileNotFoundError(
                f"the weights of the snapshot at step {snapshot.step} are not in {self.folder}: only the best "
                f"{self.top_k} by score are kept"
            )
        return read_tensors(self.folder / snapshot.file)

    def visited(self, model: nn.Module) -> Generator[Snapshot, None, None]:
        """Each kept snapshot, best first, while the model holds its weights; then the model gets its own back."""
        before = changing_state(model)
        try:
            for snapshot in self.kept:
                load_changing_state(model, self.weights(snapshot))
                yield snapshot
        finally:
            load_changing_state(model, before)

    def load_selected(self, model: nn.Module, mode: str = "single") -> None:
        """Put the selected weights into the model: the best snapshot's, or for `soup` the mean of all with its score.

        An ensemble has no single set of weights: the model then holds the best member's.
        """
        if mode == "soup" and self._has_mean:
            load_changing_state(model, read_tensors(self.folder / _MEAN_NAME))
        elif self.kept:
            load_changing_state(model, self.weights(self.kept[0]))

    def save_kept_state(self) -> list[dict]:
        """The history as JSON values, for a checkpoint."""
        return [{**asdict(s), "score": s.score if math.isfinite(s.score) else None} for s in self.history]

    def load_kept_state(self, history: Any) -> None:
        """Continue a history. Snapshots made after it are forgotten; a kept one whose file is gone is not kept.

        Raises:
            ValueError: when it is no history of snapshots.
        """
        self.history = [_snapshot(values) for values in _list(history)]
        for snapshot in self.history:
            if snapshot.file is not None and not (self.folder / snapshot.file).is_file():
                snapshot.file = None

    def save_files(self, folder: str | Path) -> None:
        """Keep the weights in a checkpoint's folder as well: a later snapshot of this run may push them out here."""
        for name in self._files(self.history) if self.writes else ():
            if (self.folder / name).is_file():
                link_or_copy(self.folder / name, Path(folder) / name)

    def load_files(self, folder: str | Path, history: Any) -> None:
        """Put back the weights that [`save_files`] kept for this history."""
        for name in self._files([_snapshot(values) for values in _list(history)]) if self.writes else ():
            if (kept := inside(folder, name)).is_file():
                link_or_copy(kept, self.folder / name)

    def _files(self, history: Sequence[Snapshot]) -> list[str]:
        named = [snapshot.file for snapshot in history if snapshot.file is not None]
        return [*named, _MEAN_NAME] if self.averages else named

    @property
    def _has_mean(self) -> bool:
        return self.averages and len(self.level) > 1 and (self.folder / _MEAN_NAME).is_file()

    def _take_in(self, state: dict[str, Tensor], count: int) -> None:
        """Let a state into the mean, as the last of so many; the first one takes the place of the mean before."""
        mean = self.folder / _MEAN_NAME
        if not self.writes or (count > 1 and not mean.is_file()):
            return
        if count > 1:
            state = running_mean(read_tensors(mean), state, count)
        if not self._write(_MEAN_NAME, state):
            mean.unlink(missing_ok=True)  # the mean of fewer states than are told

    def _remove_others(self) -> None:
        """Delete weights that no snapshot of this run holds: dropped ones, and those of an earlier run here."""
        if not self.writes:
            return
        held = self._files(self.history)
        for path in (*self.folder.glob("step-*.safetensors"), self.folder / _MEAN_NAME):
            if path.name not in held:
                path.unlink(missing_ok=True)
        remove_unfinished(self.folder)

    def _write(self, name: str, state: dict[str, Tensor]) -> bool:
        if not self.writes:
            return True
        try:
            write_tensors(self.folder / name, state)
        except Exception as error:
            if not disk_refused(error):
                raise
            logger.warning("The snapshot %s could not be written and is not kept: %s", self.folder / name, error)
            return False
        return True

    def _write_index(self) -> None:
        if not self.writes:
            return
        try:
            write_json(self.folder / _INDEX_NAME, self.save_kept_state(), indent=1)
        except OSError as error:
            logger.warning("The list of snapshots %s could not be written: %s", self.folder / _INDEX_NAME, error)


def _list(history: Any) -> list[Any]:
    if not isinstance(history, list):
        raise ValueError(f"the saved history of snapshots is {history!r}, where a list belongs")
    return history


def _snapshot(values: Any) -> Snapshot:
    """A snapshot of saved values, which may come from anywhere."""
    if isinstance(values, dict) and set(values) == {"step", "score", "file"}:
        step, score, file = values["step"], values["score"], values["file"]
        real = score is None or (type(score) in (int, float) and abs(score) < 1e300)
        named = file is None or (isinstance(file, str) and _FILE_NAME.fullmatch(file) is not None)
        if type(step) is int and step >= 0 and real and named:
            return Snapshot(step, math.nan if score is None else float(score), file)
    raise ValueError(f"the saved history holds {values!r}, which is no snapshot: step, score and file of its weights")


def selection_score(metrics: Mapping[str, float], metric: str | None, greater_is_better: bool | None) -> float:
    """What ranks an evaluated state, lower is better.

    Args:
        metrics: of the evaluation, named `eval_...`.
        metric: `metric_for_best_model` of the arguments; None means `clid`.
        greater_is_better: whether the metric's sign is turned.

    Raises:
        ValueError: when the evaluation has no such metric; the message lists those it has.
    """
    name = "eval_" + (metric or "clid").removeprefix("eval_")
    if name not in metrics:
        raise ValueError(
            f"metric_for_best_model='{metric}' is not among the metrics of an evaluation: {', '.join(metrics)}"
        )
    return -metrics[name] if greater_is_better else metrics[name]


def changing_state(model: nn.Module, keeps: bool = True) -> dict[str, Tensor]:
    """Everything that training can change: trainable parameters and buffers, copied to the CPU.

    Args:
        model: the bare model. Of one that is spread over processes all must ask at once; tensors are gathered singly.
        keeps: whether this process needs the state; otherwise it only takes part in gathering, and gets nothing.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in frozen:
            gathered = whole(tensor.detach())
            if keeps:
                state[name] = gathered.cpu().clone(memory_format=torch.contiguous_format)
    return state


def load_changing_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what [`changing_state`] took.

    Raises:
        ValueError: when the state belongs to another model.
    """
    own = model.state_dict()
    try:
        state = {name: spread_like(tensor, own.get(name)) for name, tensor in state.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape that differs
        raise ValueError(f"the snapshot does not fit the model: {' '.join(str(error).split())}") from error
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lost = sorted(trainable & set(missing))
    if lost or unexpected:
        raise ValueError(f"the snapshot does not fit the model: missing {lost[:5]}, unexpected {list(unexpected)[:5]}")


def ensemble(outputs: Sequence[Any], compute_metrics: Callable[[Any], dict] | None, prefix: str) -> Any:
    """What several members predict together, in place of the last one's output.

    Args:
        outputs: the members' `PredictionOutput`s, of the same samples.
        compute_metrics: of Trainer, or None.
        prefix: of the names of metrics.

    Returns:
        A `PredictionOutput` with log mean probabilities in place of logits, and metrics without the loss.
    """
    members = [output.predictions for output in outputs]
    log_probability_NC = mean_log_probability(
        [logits[0] if isinstance(logits, tuple) else logits for logits in members]
    )
    metrics = {key: value for key, value in outputs[-1].metrics.items() if not key.endswith("_loss")}
    if compute_metrics is not None and outputs[-1].label_ids is not None:
        scores = compute_metrics(EvalPrediction(log_probability_NC, outputs[-1].label_ids))
        metrics.update({f"{prefix}_{key}": value for key, value in scores.items()})
    return outputs[-1]._replace(predictions=log_probability_NC, metrics=metrics)


def mean_log_probability(members: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the members' mean probabilities, (N, C) float32, from their logits: the prediction of an ensemble."""
    probability_NC = np.zeros(members[0].shape)
    for logits_NC in members:
        shifted_NC = np.exp(logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True))
        probability_NC += shifted_NC / shifted_NC.sum(axis=1, keepdims=True) / len(members)
    return np.log(np.clip(probability_NC, np.finfo(np.float32).tiny, None)).astype(np.float32)


def running_mean(mean: dict[str, Tensor], state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The average of several states (a model soup, arXiv 2203.05482) that another one joins, as the last of `count`.

    Integers are those of the last. Half precision becomes float32, for it is rounded each time.
    """
    return {
        name: mean[name].double().lerp(last.double(), 1 / count).to(torch.promote_types(last.dtype, torch.float32))
        if last.is_floating_point()
        else last
        for name, last in state.items()
    }
