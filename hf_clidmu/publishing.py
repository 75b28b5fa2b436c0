"""A Trainer whose models reach the Hub: what was selected, with a card, and nothing else.

What is pushed when, under which name, and what becomes of failures. Which files may leave is decided in
[`hf_clidmu.staging`], how they get there in [`hf_clidmu.hub`], how the card looks in [`hf_clidmu.model_card`].
"""

import math
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from hf_clidmu.checkpoints import seal
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.ensembles import save_members
from hf_clidmu.hub import Push, PushQueue, Repository
from hf_clidmu.model_card import CardFacts, write_card
from hf_clidmu.reloading import load_run
from hf_clidmu.run_facts import facts_of_run, modality_of
from hf_clidmu.selecting import SelectingTrainer
from hf_clidmu.staging import (
    PushError,
    SecretToken,
    prune,
    publishable,
    remove_staged,
    require_complete,
    stage,
    staging_folder,
)
from hf_clidmu.state import FOLDER


_TRAINERS_MESSAGES = (None, "End of training", "Model save")  # what Trainer says, which names no step


class PublishingTrainer(SelectingTrainer):
    """A [`SelectingTrainer`] that pushes when Trainer does, and whose commits hold what they say.

    Attributes:
        card: what the model card is to say beside what the trainer knows itself; set its fields before pushing.
    """

    hub_model_id: Any
    train_dataset: Any
    ledger: Any = None
    _ledger_so_far: Any = None

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **kwargs: Any):
        self.card = CardFacts()
        self._repository: Repository | None = None
        self._pushes = PushQueue(self._push)
        self._holds_selected = False
        if args is not None:  # Trainer pickles its arguments beside every model that it saves
            args.hub_token = SecretToken.of(args.hub_token)
        super().__init__(model, args, *rest, **kwargs)

    @classmethod
    def from_run(
        cls,
        path_or_repo: str | Path,
        args: CLIDMUConfig,
        *,
        revision: str | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A trainer that goes on with a saved or pushed model: its weights, processor, weighting and ledger.

        It is a new run, with an optimiser and a schedule of its own; to continue one that was interrupted, use
        `train(resume_from_checkpoint=...)`.

        Args:
            path_or_repo: the folder of a saved model or of a checkpoint, or an id on the Hub.
            args: the settings to go on with.
            revision: branch, tag or commit on the Hub.
            token: of the Hub; defaults to the one that the user is logged in with.
            kwargs: what the trainer takes beside model and processor: datasets, metrics and so on. The record of
                samples goes on where it was saved or pushed, and `train_dataset` must then be the same one.

        Raises:
            ValueError: when the saved weighting is of another kind than `args.weighting`.
            OSError: when there is no such folder or repository.
        """
        saved = load_run(path_or_repo, args, revision=revision, token=token)
        given = {"processing_class": saved.processor, "weighting": saved.weighting, **kwargs}
        trainer = cls(saved.model, args, **given)
        trainer._ledger_so_far = saved.ledger
        return trainer

    # ---- what a subclass adds ------------------------------------------------------------------------------------

    def save_beside(self, folder: Path, labels: bool) -> None:
        """Write into `folder` what belongs to a model beside itself; the record of every sample only with `labels`."""

    # ---- on request ----------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in Trainer; a push that nobody could use, or that would show what is private, is refused here.

        Raises:
            PushError: when there is no processor, when the repository is public although the label report is to go
                there, or when the Hub does not let us.
        """
        if not self.is_world_process_zero():
            return
        if self.processing_class is None:
            raise PushError(
                "a model without its processor cannot be loaded from the Hub by anybody: give the trainer the "
                "tokenizer or image processor as processing_class (the second value that load_classifier returns)"
            )
        if self._repository is None:
            remove_staged(str(self.args.output_dir))
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        private = self.args.hub_private_repo if private is None else private
        if private is None and self._pushes_labels:
            private = True
        repository = Repository(name, token or self.args.hub_token, self.args.hub_revision)
        repository.create(private)
        if private and self._pushes_labels and not repository.is_private():
            raise PushError(
                f"{repository.name} is public, and the label report says something of every training sample: choose a "
                "private repository, leave hub_label_report and hub_resume_state out, or set hub_private_repo=False"
            )
        self._repository, self.hub_model_id = repository, repository.name

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the model as it is, after training the one that was selected, with its processor and its card.

        Args:
            commit_message: defaults to one that names the step of the weights.
            blocking: wait for it, and return the commit; otherwise return a future of it.
            token: defaults to `hub_token` of the arguments, or the one that the user is logged in with.
            revision: branch to push to; defaults to `hub_revision`.
            private: whether a new repository is. Defaults to `hub_private_repo`, and to True where the label report
                goes along.
            kwargs: of [`create_model_card`].

        Raises:
            PushError: when the model could not be used by anybody, or did not get through.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self._repository is None or token is not None:
            self.init_hf_repo(token, private)
        folder = Path(self.processes.from_first(lambda: str(staging_folder(str(self.args.output_dir)))))
        self.save_model(str(folder), _internal_call=True)
        if not self.is_world_process_zero():
            return None
        weights = self.held_weights()
        if commit_message in _TRAINERS_MESSAGES:
            commit_message = f"{commit_message or 'End of training'}: {weights}"
        prune(folder)  # of what Trainer saves beside a model
        if self._holds_selected and self.config.snapshot_mode == "ensemble" and len(self.snapshots.kept) > 1:
            save_members(folder, self._bare(), self.snapshots)
        self.create_model_card(**kwargs)
        push = self._staged(folder, str(commit_message), weights)
        push.revision = revision
        if not blocking:
            return self._pushes.add(push)
        self._pushes.join()
        try:
            commit = self._push(push)
        finally:
            push.discard()
        self._pushes.replaced_by(push)
        return commit

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the model card into `output_dir`. Arguments as in Trainer; they win over what is found."""
        if not self.is_world_process_zero():
            return
        as_list = [tags] if isinstance(tags, str) else list(tags or ())
        self.card.tags = [*self.card.tags, *(tag for tag in as_list if tag not in self.card.tags)]
        given = {
            "language": language,
            "license": license,
            "model_name": model_name,
            "base_model": finetuned_from,
            "datasets": [dataset_tags] if isinstance(dataset_tags, str) else dataset_tags,
            "dataset_name": ", ".join(dataset) if isinstance(dataset, list) else dataset,
        }
        for name, value in given.items():
            if value is not None:
                setattr(self.card, name, value)
        write_card(self.card_facts(self.held_weights()), Path(str(self.args.output_dir)))

    def held_weights(self) -> str:
        """Which weights the model holds: those of a step, or what was selected."""
        steps = self._selected_steps()
        if not steps:
            return f"step {self.state.global_step}"
        judge = (self.args.metric_for_best_model or "clid").removeprefix("eval_")
        by = f"selected by {'CLID' if judge == 'clid' else judge}"
        blind = "CLID knows nothing of these classes" if self._levels.is_blind else ""
        if len(steps) == 1:
            return f"step {steps[0]}, " + (f"the latest, for {blind}" if blind else by)
        return f"mean of {len(steps)} states, steps {steps[0]} to {steps[-1]}: " + (
            blind or f"{by}, which cannot tell them apart"
        )

    def _selected_steps(self) -> list[int]:
        """The steps whose weights, or the mean of them, the model holds; empty unless they were selected."""
        if not self._holds_selected or self.snapshots is None:
            return []
        return [snapshot.step for snapshot in self.snapshots.members]

    def card_facts(self, weights: str) -> CardFacts:
        """What the card says of these weights: what was set in [`card`], and what is known here where nothing was."""
        known = facts_of_run(
            model=self.model,
            config=self.config,
            history=self.state.log_history,
            ledger=self.ledger,
            selected=self._selected_steps(),
        )
        name = self.hub_model_id or str(self.args.output_dir)
        known |= {"repo_id": self.hub_model_id, "model_name": name.rstrip("/").split("/")[-1], "weights": weights}
        known["num_train_samples"] = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        known["alignment"] = self._alignment if self._holds_selected and math.isfinite(self._alignment) else None
        known["clustering"] = self._levels.clustering if self._holds_selected and self._levels.is_blind else None
        always = ("modality", "repo_id", "weights")
        given = {name: value for name, value in vars(self.card).items() if value not in (None, [], {}, "")}
        return CardFacts(**{**known, **{name: value for name, value in given.items() if name not in always}})

    # ---- while it trains -----------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in [`SelectingTrainer`]; pushes that failed are tried once more at the end, and then raised.

        Raises:
            PushError: after training. The model is the one that was selected, and lies in `output_dir` as well.
        """
        self._holds_selected = False
        result = super().train(*args, **kwargs)
        failures = "; ".join(str(error) for error in self._pushes.wait())
        failure = self.processes.first_of(failures or None)
        if failure is not None:
            self.save_model(_internal_call=True)
            raise PushError(
                f"training is complete and the model lies in {self.args.output_dir}, but not everything is on the "
                f"Hub: {failure}. trainer.push_to_hub() pushes the model again"
            )
        return result

    def load_selected(self) -> None:
        super().load_selected()
        self._holds_selected = self.snapshots is not None and self.config is not None

    def publish_checkpoint(self, checkpoint: str) -> None:
        """Push a whole checkpoint in the background.

        One that comes while others wait takes their place, unless `hub_always_push` or `hub_strategy="all_checkpoints"`
        asks for every one.
        """
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        weights, folder = f"step {self.state.global_step}", staging_folder(str(self.args.output_dir))
        self._stage_model(Path(checkpoint), folder)
        push = self._staged(folder, f"Training in progress, {weights}", f"{weights}, in training")
        every = strategy == HubStrategy.ALL_CHECKPOINTS
        if every or strategy == HubStrategy.CHECKPOINT:
            name = Path(checkpoint).name if every else "last-checkpoint"
            self._stage_checkpoint(Path(checkpoint), folder / name)
            push.replaces = (f"{name}/",)
        self._pushes.add(push, newest_only=not (self.args.hub_always_push or every))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_whole(checkpoint_folder):
            self.publish_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        """Trainer waits here, and loses what failed; [`train`] waits, and raises it."""

    # ---- staging -------------------------------------------------------------------------------------------------

    @property
    def _pushes_labels(self) -> bool:
        return self.config is not None and (self.config.hub_label_report or self.config.hub_resume_state)

    def _stage_model(self, checkpoint: Path, folder: Path) -> None:
        """The model of a checkpoint; what belongs to it is written as it now is, without what remembers samples."""
        files = publishable(checkpoint)
        stage({name: path for name, path in files.items() if not name.startswith(f"{FOLDER}/")}, folder)

    def _stage_checkpoint(self, checkpoint: Path, folder: Path) -> None:
        if self.config is None or not self.config.hub_resume_state:
            self._stage_model(checkpoint, folder)
            self.save_beside(folder / FOLDER, self._pushes_labels)
            return
        stage(publishable(checkpoint, labels=True, resume=True), folder)
        seal(folder)  # a whole one again, without what never leaves

    def _staged(self, folder: Path, message: str, weights: str) -> Push:
        try:
            require_complete(folder, modality_of(self.model))
            self.save_beside(folder / FOLDER, self._pushes_labels)
            write_card(self.card_facts(weights), folder)
        except BaseException:
            Push(folder, message).discard()
            raise
        return Push(folder, message)

    def _push(self, push: Push) -> Any:
        assert self._repository is not None
        return self._repository.push(push)
