"""A Trainer whose final model is the one that a judge selected: evaluation, snapshots, prediction.

An evaluation adds CLID on the judge set, and keeps the state of the model if it is among the best. After training the
model is what was selected. What is selected survives with the run it belongs to ([`hf_clidmu.resumable`]).
"""

import math
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.judge import Judge, Levels, Reading, warn_of_chance
from hf_clidmu.precompute import FrozenBackbone
from hf_clidmu.resumable import ResumableTrainer
from hf_clidmu.snapshots import Snapshots, ensemble, selection_score
from hf_clidmu.state import real_number


SNAPSHOT_FOLDER = "snapshots"


class SelectingTrainer(ResumableTrainer):
    """A [`ResumableTrainer`] with a judge; without one (None) it evaluates and predicts as Trainer does."""

    # None in a plain Trainer.
    config: CLIDMUConfig
    judge: Judge
    reading: Reading  # of the last evaluation
    snapshots: Snapshots
    backbone: FrozenBackbone | None = None
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any):
        self.judge = self.snapshots = None  # type: ignore[assignment]
        self._alignment, self._levels = math.nan, Levels()
        super().__init__(*args, **kwargs)

    def _bare(self) -> nn.Module:  # a walk over all modules
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in [`ResumableTrainer`]; at the end the model is the one that was selected."""
        self._alignment = math.nan
        result = super().train(*args, **kwargs)
        self.load_selected()
        warn_of_chance(self._alignment, self._levels.clustering)
        return result

    def load_selected(self) -> None:
        """Put the weights that CLID selected into the model (see `snapshot_mode`)."""
        if self.snapshots is not None and self.config is not None:
            self.accelerator.wait_for_everyone()
            self.snapshots.load_selected(self.model, self.config.snapshot_mode)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in Trainer, with `eval_clid`: CLID of the model on the judge set. Works without an evaluation set."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        ours = self.judge is not None and metric_key_prefix == "eval"
        metrics: dict[str, float] = {}
        with self._stored_features():
            if given is not None or not ours:
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            if not ours:
                return metrics
            if one_clid := "eval_clid" not in metrics:  # no single evaluation loop carried it
                metrics.update(self._judged())
        if one_clid:
            self.log({name: value for name, value in metrics.items() if name.startswith("eval_clid")})
            if given is None:
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_in_train and self.snapshots is not None:
            score = selection_score(metrics, self.args.metric_for_best_model, self.args.greater_is_better)
            if self._selects_by_clid() and math.isfinite(score):
                score = self._levels.see(self.reading)
            if self.snapshots.add(self.state.global_step, score, self.model) and self._selects_by_clid():
                self._alignment = metrics["eval_clid_alignment"]
            self.after_selection(metrics)
        return metrics

    def _selects_by_clid(self) -> bool:
        return (self.args.metric_for_best_model or "clid") in ("clid", "eval_clid") and not self.args.greater_is_better

    def after_selection(self, metrics: dict[str, float]) -> None:
        """Called in every process when an evaluation within training has taken its part in the selection."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, with `eval_clid` among the metrics of the evaluation set."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.judge is not None and kwargs.get("metric_key_prefix") == "eval":
            metrics: Any = output.metrics
            metrics.update(self._judged())
        return output

    def _judged(self) -> dict[str, float]:
        self.reading = self.processes.share(self.judge.read(self._bare(), self.args.device))
        metrics = {"eval_clid": self.reading.clid, "eval_clid_alignment": self.reading.alignment}
        return metrics | ({} if math.isnan(self.reading.share) else {"eval_clid_share": self.reading.share})

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As in Trainer. With `snapshot_mode="ensemble"` the predictions are log mean probabilities of the best k."""
        ensemble = self.config is not None and self.config.snapshot_mode == "ensemble" and not self.is_in_train
        if ensemble and self.snapshots is not None and len(self.snapshots.kept) > 1:
            return self.predict_ensemble(test_dataset, ignore_keys, metric_key_prefix)
        return self._predict_single(test_dataset, ignore_keys, metric_key_prefix)

    def _predict_single(self, *args: Any) -> Any:
        with self._stored_features():
            return super().predict(*args)

    def _stored_features(self) -> Any:
        """Inside, the model takes what its frozen part made of a dataset before, where it has one."""
        return nullcontext() if self.backbone is None else self.backbone.installed(self.model)

    def predict_ensemble(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Any:
        """Predictions of the best k snapshots together: log of their mean probabilities, in place of logits.

        The model keeps the weights it has. Metrics are those of `compute_metrics`, without the loss.
        """
        if self.snapshots is None or not self.snapshots.kept:
            raise ValueError("there are no snapshots to predict with: train with an eval_strategy other than 'no'")
        with closing(self.snapshots.visited(self.model)) as visits:
            outputs = [self._predict_single(test_dataset, ignore_keys, metric_key_prefix) for _ in visits]
        return ensemble(outputs, self.compute_metrics, metric_key_prefix)

    def save_values(self, folder: Path) -> dict[str, Any]:
        """Where the selection stands; the weights that are kept go into `folder`."""
        if self.snapshots is None:
            return {}
        self.snapshots.save_files(folder / SNAPSHOT_FOLDER)
        alignment = self._alignment if math.isfinite(self._alignment) else None
        kept = self.snapshots.save_kept_state()
        return {"alignment": alignment, "levels": self._levels.state(), "snapshots": kept}

    def load_values(self, folder: Path, values: dict[str, Any]) -> None:
        """Continue the selection of a checkpoint.

        Raises:
            ValueError: when what was saved is none.
        """
        if self.snapshots is None:
            return
        self._alignment = real_number(values, "alignment")
        self._levels.load(values.get("levels"))
        self.snapshots.load_files(folder / SNAPSHOT_FOLDER, values.get("snapshots"))
        self.accelerator.wait_for_everyone()
        self.snapshots.load_kept_state(values.get("snapshots"))
