"""A Trainer whose runs survive: kills at any moment, full disks, damaged files.

What is added to a checkpoint, when it counts as whole ([`hf_clidmu.checkpoints`]), and how a run goes on from one so
that it ends where the unbroken run would have. This room knows Trainer and files; what else a run is made of, a
subclass says in [`ResumableTrainer.stateful_parts`].

Shape suffixes: W processes.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME_BIN, SCHEDULER_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from hf_clidmu.checkpoints import choose, discard, rotate, seal, unseal
from hf_clidmu.files import disk_refused
from hf_clidmu.meters import Meters
from hf_clidmu.processes import Processes
from hf_clidmu.sharding import spread_like
from hf_clidmu.state import FOLDER, load_state, save_state, whole_number


logger = logging.getLogger(__name__)

_SINCE_LOG = "since_log"
_LOSS = "training_loss"


class SaveWhenTold(TrainerCallback):
    """The checkpoint of a run that is told to end (SIGTERM, `enable_jit_checkpoint`), as part of its last step.

    Trainer's own callback may save within a step, when the weighting has moved and the model has not, or before the
    evaluation that is due; and each process would stop at a moment of its own, while others wait for it. Here a
    signal to any process ends all of them after the same step, with the checkpoint that `save_strategy` would write.

    Args:
        listener: Trainer's callback, which listens for the signal.
        processes: those that train together.
    """

    def __init__(self, listener: Any, processes: Processes):
        self.listener = listener
        self.processes = processes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        manager = self.listener.jit_manager
        goes_on = torch.tensor(manager is None or not manager.is_checkpoint_requested, device=args.device)
        if not bool(self.processes.everywhere(goes_on)):
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.listener.on_train_end(args, state, control, **kwargs)


class ResumableTrainer(Trainer):
    """A Trainer with state of its own in checkpoints that are whole or do not count.

    With `resumable = False` it is a Trainer and nothing else.
    """

    resumable = False
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.processes = Processes(self.accelerator)
        self._meters = Meters()
        self._since_log: dict[str, Tensor] | None = None
        self._saving, self._sealed = False, False
        self._save_error: Exception | None = None

    # ---- what a subclass adds ------------------------------------------------------------------------------------

    def stateful_parts(self) -> dict[str, Any]:
        """What a run is made of beside the model: parts with `state_dict()` and `load_state_dict()`, or None."""
        return {}

    def save_values(self, folder: Path) -> dict[str, Any]:
        """What else there is to remember, as JSON values. Asked in the process that saves; files go into `folder`."""
        return {}

    def load_values(self, folder: Path, values: dict[str, Any]) -> None:
        """Put back what [`save_values`] gave, after the parts were."""

    def before_saving(self) -> None:
        """Called in every process before a checkpoint is written."""

    # ---- going on ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, but an unfinished or damaged checkpoint is never loaded.

        In its place the newest whole one before it is used, and a warning says so.

        Raises:
            ValueError: when there is no whole checkpoint to continue from.
        """
        self._since_log = None
        if self.resumable and (listener := self.pop_callback(JITCheckpointCallback)) is not None:
            self.add_callback(SaveWhenTold(listener, self.processes))
        if self.resumable and resume_from_checkpoint:
            asked, output_dir = resume_from_checkpoint, str(self.args.output_dir)
            resume_from_checkpoint, passed_over = self.processes.from_first(lambda: choose(asked, output_dir))
            if passed_over:
                logger.warning(
                    "Continuing from %s, the newest whole checkpoint. Passed over: %s",
                    resume_from_checkpoint,
                    "; ".join(passed_over),
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.resumable:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if self.accelerator.is_fsdp2:
            self._load_spread(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        tensors, values = load_state(checkpoint)
        since_log = tensors.pop(_SINCE_LOG, {})
        self._last_logged = whole_number(values, "last_logged")
        for name, part in self.stateful_parts().items():
            if part is not None and name in tensors:
                part.load_state_dict(tensors[name])
        self.load_values(Path(checkpoint) / FOLDER, values)
        if all(value.shape[:1] == (self.processes.count,) for value in since_log.values()):
            self._since_log = since_log
        else:
            logger.warning("The checkpoint was made by another number of processes: the next log covers less.")
        if self.state.global_step >= self.state.max_steps:  # nothing is left to do that would load it
            self._load_rng_state(checkpoint)

    def _load_spread(self, checkpoint: Path) -> None:
        """What [`_save_spread`] wrote of optimiser and scheduler.

        A parameter that has not been trained yet has no state. `torch.distributed.checkpoint`, which wrote the file,
        would not read it then, or make up one.
        """
        saved = torch.load(checkpoint / OPTIMIZER_NAME_BIN, map_location="cpu", weights_only=True, mmap=True)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        state, groups = {}, self.optimizer.state_dict()["param_groups"]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            slots = saved["state"].get(names[parameter], {})
            whole_ones = {key for key, value in slots.items() if getattr(value, "shape", None) == parameter.shape}
            state[number] = {key: spread_like(v, parameter) if key in whole_ones else v for key, v in slots.items()}
        for group, before in zip(groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in before.items() if key != "params"})
        self.optimizer.load_state_dict(
            {"state": {number: slots for number, slots in state.items() if slots}, "param_groups": groups}
        )
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.resumable and self.state.global_step >= self.state.max_steps > 0:
            self.control.should_training_stop = True  # a finished run was resumed: not one step more
            return
        self._continue_log()
        super()._run_epoch(*args, **kwargs)

    def _continue_log(self) -> None:
        """The first log after a resume covers the steps since the last log, not since the checkpoint."""
        if self._since_log is None:
            return
        own, self._since_log = {name: value[self.processes.index] for name, value in self._since_log.items()}, None
        if _LOSS in own:
            self._tr_loss += own.pop(_LOSS).to(self._tr_loss)
            self._total_loss_scalar -= self._tr_loss.item()  # the mean at the end is over the steps of this call
        self._globalstep_last_logged = self._last_logged
        self._meters.load_state_dict(own, self.args.device)

    # ---- saving --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.resumable:
            super()._save_checkpoint(model, trial)
            return
        self.before_saving()
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        own = {_LOSS: self._tr_loss.detach(), **self._meters.state_dict()}
        self._log_state = {name: self.processes.gather(value[None]).cpu() for name, value in own.items()}
        if self.args.should_save:
            unseal(folder)
        best, limit, self.args.save_total_limit = self.state.best_model_checkpoint, self.args.save_total_limit, None
        self._saving, self._save_error, self._sealed = True, None, False
        try:
            with self._noting_refusal():
                super()._save_checkpoint(model, trial)
            self._seal(folder)
        finally:
            self._saving, self.args.save_total_limit = False, limit
        if not self._sealed:
            self.state.best_model_checkpoint = best
        elif self.args.should_save:
            rotate(folder.parent, limit, folder, self.state.best_model_checkpoint)

    def _seal(self, folder: Path) -> None:
        """Every process has written its part: the checkpoint is finished, or it is dropped."""
        if self._sealed or self.args.save_only_model:
            self._sealed = True
            return
        self.accelerator.wait_for_everyone()
        with self._noting_refusal():
            if self.args.should_save and self._save_error is None:
                seal(folder)
        error = self.processes.first_of(None if self._save_error is None else str(self._save_error))
        self._sealed = error is None
        if error is not None:
            if self.args.should_save:
                discard(folder)
            logger.warning(
                "The checkpoint %s could not be written and was dropped (%s). Training goes on; earlier checkpoints "
                "are as they were. Make room on the disk before the next one is due.",
                folder,
                error,
            )
            self.accelerator.wait_for_everyone()

    @contextmanager
    def _noting_refusal(self) -> Iterator[None]:
        """A disk that takes nothing more ends neither the run nor the wait of other processes: it is noted."""
        try:
            yield
        except Exception as error:
            if not (self._saving and disk_refused(error)):
                raise
            self._save_error = self._save_error or error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer."""
        with self._noting_refusal():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.resumable and self.accelerator.is_fsdp2:
            self._save_spread(output_dir)
        else:
            with self._noting_refusal():
                super()._save_optimizer_and_scheduler(output_dir)
        with self._noting_refusal():
            if self.resumable and self.args.should_save:
                tensors: dict[str, Mapping[str, Tensor]] = {_SINCE_LOG: self._log_state}
                for name, part in self.stateful_parts().items():
                    tensors[name] = {} if part is None else part.state_dict()
                values = self.save_values(Path(output_dir) / FOLDER)
                save_state(output_dir, tensors, {**values, "last_logged": self._globalstep_last_logged})

    def _save_spread(self, output_dir: str) -> None:
        """What Trainer writes of a model that is spread over processes (FSDP2), file by file.

        For each file all processes gather: one that the disk does not take must not keep its writer from the next.
        """
        plugin = self.accelerator.state.fsdp_plugin
        with self._noting_refusal():
            save_fsdp_model(plugin, self.accelerator, self.model, output_dir, adapter_only=True)
        with self._noting_refusal():
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        with self._noting_refusal():
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_scaler(self, output_dir: str) -> None:
        with self._noting_refusal():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._noting_refusal():
            super()._save_rng_state(output_dir)

    def is_whole(self, checkpoint: str) -> bool:
        """Whether a checkpoint has been finished, or can be now; to be asked while it is saved, before it is used."""
        if self._saving:
            self._seal(Path(checkpoint))
            return self._sealed
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_whole(checkpoint_folder):
            super()._push_from_checkpoint(checkpoint_folder)
