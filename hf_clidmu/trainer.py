"""`CLIDMUTrainer`: a `transformers.Trainer` whose training step also asks how much each given label counts.

Orchestration only. A batch walks through [`CLIDMUTrainer.training_step`] once: tap (one forward), look-ahead (an
objective judges theta+), weighting (learns, then gives the loss), backward; the ledger listens.
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_clidmu.batches import (
    INDEX_COLUMN,
    IndexedDataset,
    MetaBatches,
    SampleCollator,
    derive_seed,
    is_stream,
    labels_of,
    model_inputs,
    random_rows,
    sent,
)
from hf_clidmu.classifier import ClassifierTap, forked_random_state, model_logits
from hf_clidmu.config import HEAD_LEARNING_RATE, CLIDMUConfig, refuse_unsupported
from hf_clidmu.encodings import Encodings
from hf_clidmu.engines import refuse_engine
from hf_clidmu.files import write_tensors
from hf_clidmu.guard import Guard
from hf_clidmu.head_first import HeadFirst
from hf_clidmu.judge import JUDGES, LEARNING_SHARE, MORE_JUDGES, Judge, Levels, judges_evaluation_samples
from hf_clidmu.ledger import Ledger
from hf_clidmu.lookahead import LookAhead, MetaBatch
from hf_clidmu.meters import Meters
from hf_clidmu.objectives import get_objective
from hf_clidmu.optimizers import set_apart
from hf_clidmu.precompute import FeatureTable, FrozenBackbone, backbone_names, freeze_parameters, frozen_modules
from hf_clidmu.publishing import PublishingTrainer
from hf_clidmu.reloading import LEDGER_STATE_NAME, WEIGHTING_NAME
from hf_clidmu.selecting import SNAPSHOT_FOLDER
from hf_clidmu.sharding import Shares, is_spread
from hf_clidmu.snapshots import Snapshots
from hf_clidmu.state import FOLDER, OptimizerState, whole_number
from hf_clidmu.warmup import FEWEST_EVALUATIONS, WarmUp
from hf_clidmu.weighting import Weighting, WeightingBatch


logger = logging.getLogger(__name__)

LEDGER_NAME = "ledger.parquet"
_DEFAULT_META_SIZE = 1000
_HEAD_STEP_SIZE = 0.1
# Streams of derived seeds, one per purpose.
_WEIGHTING, _DRAWS, _META, _MASKS, _JUDGE, _AUGMENTATION = range(6)


class CLIDMUTrainer(PublishingTrainer):
    """Fine-tunes a classifier on labels that are partly wrong (CLID-MU, arXiv 2507.11807).

    Everything a [`~transformers.Trainer`] does, it does. With plain `TrainingArguments`, or `weighting="none"`, it
    trains like one, bit for bit.

    Args:
        model: a classifier of transformers (timm networks through `TimmWrapperForImageClassification`).
        args: a [`CLIDMUConfig`]; plain `TrainingArguments` mean a plain Trainer.
        data_collator, train_dataset, eval_dataset, processing_class: as in Trainer. Without an evaluation set, CLID is
            still measured on training samples.
        meta_dataset: samples that judge the look-ahead with `meta_source="dataset"`, without labels for CLID.
        weighting: a [`Weighting`] of your own, with its own `loss_q`; None builds the one that `args.weighting` names.
        kwargs: everything else that Trainer takes.

    Raises:
        ValueError: for models, datasets and launches that it cannot train; the message says what to do.
    """

    # What the methods below rely on; None in a plain Trainer, where they are not reached.
    model: Any
    train_dataset: Any
    eval_dataset: Any
    tap: ClassifierTap
    guard: Guard
    weighting: Weighting

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        meta_dataset: Any = None,
        weighting: Weighting | None = None,
        **kwargs: Any,
    ):
        self.config = args if isinstance(args, CLIDMUConfig) else None  # type: ignore[assignment]
        self.reweights = weighting is not None or (self.config is not None and self.config.weighting != "none")
        if self.reweights and self.config is None:
            raise ValueError("a weighting needs its settings: pass args=CLIDMUConfig(...) instead of TrainingArguments")
        # The judge needs no evaluation set, but Trainer insists on one where eval_strategy is not 'no'.
        stand_in = train_dataset if self.config is not None and eval_dataset is None else eval_dataset
        super().__init__(model, args, data_collator, train_dataset, stand_in, processing_class, **kwargs)
        self.eval_dataset = eval_dataset
        self.meta_dataset = meta_dataset
        self._given_weighting = weighting
        self.weighting = weighting  # type: ignore[assignment]
        self.tap = self.guard = None  # type: ignore[assignment]
        self.ledger: Ledger | None = None
        self._judge_table: FeatureTable | None = None
        self._encodings: Encodings | None = None
        self._frozen_modules: list[nn.Module] = []
        self._head_first = HeadFirst()
        self._meta_steps = 0
        self._warmup = WarmUp()
        self._prepared = False
        if self.config is None:
            return

        self.resumable = True
        refuse_engine(
            self.accelerator,
            loaded_spread=getattr(self.model, "is_distributed_loading_by_transformers", False),
            forward_mode=self.reweights and self.config.tangent == "forward",
        )
        refuse_unsupported(
            self.config,
            reweights=self.reweights,
            streams=is_stream(train_dataset),
            uneven=self.processes.several and not self.accelerator.even_batches,
        )
        try:
            self.tap = ClassifierTap(self.model, self.config.classifier_module)
        except ValueError:
            if self.reweights or self.config.freeze:
                raise
            logger.warning("The model is not a classifier that CLID can judge: no CLID, no snapshots, no ledger.")
            return
        if self.reweights:  # our loss is a mean over the batch, whatever the model would do with the batch's size
            self.loss_is_scaled_for_ga = False
            self.model_accepts_loss_kwargs = False
        if self.config.freeze:
            freeze_parameters(self.model, self.tap, self.config.freeze)
        self.add_callback(self._head_first)
        # Only labels that a loss of ours will see are checked: a plain Trainer may have uses for others.
        self.data_collator = SampleCollator(self.data_collator, self.tap.num_labels if self.reweights else None)
        self.snapshots = Snapshots(
            Path(str(self.args.output_dir)) / SNAPSHOT_FOLDER,
            self.config.snapshot_top_k,
            self.args.should_save,
            self.processes.share,
            later=self._selects_by_clid(),
            averages=self.config.snapshot_mode == "soup",
        )

    # ---- one step ------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward of the batch, a look-ahead judged on the meta batch, one backward of the weighted loss."""
        if not self.reweights:
            return super().training_step(model, inputs, num_items_in_batch)
        if not (model.training and self.model.training):  # an evaluation tells the bare model alone
            model.train()
        inputs, labels_B, index_B = self._split(inputs)

        output = self.tap.forward(model, inputs, remember_random_state=self.lookahead.repeats_forward)
        batch = WeightingBatch(output.logits_BC, output.features_BD, labels_B, index_B)
        if self._meta_step_is_due():
            batch = self.weighting.prepare(batch, self._draws(0))
            meta, step_size = self._next_meta_batch(batch), self._step_size()
            module, gradient_BC = self._module, self.weighting.loss_gradient(batch)
            judged = self.lookahead(module, inputs, output, gradient_BC.detach(), meta, step_size, self.optimizer)
            meta_loss, tangent_BC = judged.meta_loss, judged.logit_tangent_BC
            average = self.guard.screen(meta_loss, tangent_BC, self.weighting.optimizer)
            batch = self.weighting.learn(batch, gradient_BC, tangent_BC, step_size, average)
            self._meters.add("meta_loss", meta_loss)
        batch = self.weighting.prepare(batch, self._draws(1))
        loss, weight_B = self._loss(batch)
        loss = loss / self.current_gradient_accumulation_steps
        self._listen(batch, weight_B)
        self.accelerator.backward(loss)
        return loss.detach()

    def _split(self, inputs: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        index_B = inputs.get(INDEX_COLUMN)
        inputs = self._prepare_inputs(inputs)
        labels_B = labels_of(inputs)
        if labels_B is None:
            raise ValueError(
                f"the training data has no column 'labels', only {', '.join(inputs)}; rename the column that holds the "
                "given labels to 'labels'"
            )
        return model_inputs(inputs), labels_B, None if index_B is None else index_B.to(labels_B.device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._index_B = inputs.get(INDEX_COLUMN)  # for compute_loss, which gets what the model gets
        inputs = super()._prepare_inputs({key: value for key, value in inputs.items() if key != INDEX_COLUMN})
        for module in (*self._frozen_modules, *self._head_first.still) if self.model.training else ():
            if module.training:
                module.eval()
        return inputs

    def _meta_step_is_due(self) -> bool:
        return self._weighting_learns() and self.state.global_step % self.config.meta_every == 0

    def _weighting_learns(self) -> bool:
        warmed_up = self._warmup.is_over(self.state.global_step)
        return self.weighting.learns and warmed_up and not self.guard.is_broken

    def _loss(self, batch: WeightingBatch) -> tuple[Tensor, Tensor]:
        """The loss to go down, and how much each label counts in it."""
        if self.weighting.learns and not self._weighting_learns():
            loss = nn.functional.cross_entropy(batch.logits_BC, batch.labels_B)
            return loss, torch.ones_like(batch.logits_BC[:, 0])
        return self.guard.loss(batch, self.weighting.real_loss)

    def _step_size(self) -> float:
        if self.config.lookahead_lr is not None:
            return self.config.lookahead_lr
        return _HEAD_STEP_SIZE if self.config.scope == "head" else self._get_learning_rate()

    def _next_meta_batch(self, batch: WeightingBatch) -> MetaBatch:
        """The samples that judge this step; which ones depends on the seed and the number of the meta step alone."""
        number, self._meta_steps = self._meta_steps, self._meta_steps + 1
        if self.config.meta_source == "batch":
            labels_M = batch.labels_B if self.lookahead.objective.needs_labels else None
            return MetaBatch(None, labels_M, self._judge_features(batch.index_B))
        raw = self.meta_batches.batch(number)
        labels_M = labels_of(raw) if self.lookahead.objective.needs_labels else None
        return MetaBatch(
            inputs=model_inputs(raw, self.args.device),
            labels_M=None if labels_M is None else sent(labels_M, self.args.device),
            judge_features_MD=self._judge_features(raw.get(INDEX_COLUMN)),
            seed=derive_seed(self.args.seed, _MASKS, number, self.args.process_index),
        )

    def _judge_features(self, index_M: Tensor | None) -> Tensor | None:
        if self._judge_table is None or index_M is None:
            return None
        return sent(self._judge_table.lookup(index_M), self.args.device)

    def _draws(self, purpose: int) -> torch.Generator:
        """Random numbers of the weighting: a function of seed and step, so that a resumed run repeats them."""
        micro_step = self._micro_step = self._micro_step + 1 if self._drawn_at == self.state.global_step else 0
        self._drawn_at = self.state.global_step
        seed = derive_seed(self.args.seed, _DRAWS, purpose, self.state.global_step, micro_step)
        return torch.Generator(device=self.args.device).manual_seed(seed)

    @torch.no_grad()
    def _listen(self, batch: WeightingBatch, weight_B: Tensor) -> None:
        used_B = self.guard.used(weight_B)
        if self._weighting_learns():
            self.guard.count(self.processes.gather(weight_B))
        self._meters.add("weight_mean", used_B.mean())
        self._meters.add("weight_std", used_B.std(correction=0))
        self._record(batch.index_B, batch.logits_BC, batch.labels_B, used_B)

    def _record(self, index_B: Tensor | None, logits_BC: Tensor, labels_B: Tensor, weight_B: Tensor) -> None:
        """The ledger hears of the samples of all processes, without those that the sampler repeats to fill up."""
        if self.ledger is None or index_B is None:
            return
        drops = self.args.dataloader_drop_last
        self.ledger.update(*self.processes.samples([index_B, logits_BC, labels_B, weight_B], len(self.ledger), drops))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in Trainer; in plain training the ledger listens here."""
        labels_B = labels_of(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        index_B = getattr(self, "_index_B", None)
        if self.ledger is not None and index_B is not None and labels_B is not None and self.model.training:
            logits = model_logits({"logits": outputs[1]} if isinstance(outputs, tuple) else outputs)
            if logits.ndim == 2 and labels_B.ndim == 1:
                ones_B = torch.ones(len(labels_B), device=labels_B.device)
                self._record(index_B.to(labels_B.device), logits, labels_B, ones_B)
        return (loss, outputs) if return_outputs else loss

    # ---- what a run needs ----------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; at the end the model is the one that CLID selected. Arguments and result are Trainer's."""
        self._prepared = False
        with ExitStack() as self._run_scope:
            self._run_scope.callback(self._head_first.release)
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer, over samples that carry their index."""
        if self.tap is None or self.train_dataset is None:
            return super().get_train_dataloader()
        if self.is_in_train and not self._prepared:
            self._prepare_run()
        given, self.train_dataset = self.train_dataset, self._run_dataset
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = given

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in Trainer; the frozen part of the model runs over a dataset once."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(self._stored(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in Trainer; the frozen part of the model runs over a dataset once."""
        return super().get_test_dataloader(self._stored(test_dataset))

    def _prepare_run(self) -> None:
        """Everything that is computed once, before the first step, from the model as it then is."""
        self._prepared = True
        if self.is_fsdp_enabled and not is_spread(self.model):
            self.model.to(self.args.device)  # Trainer leaves it where it is until it is spread; here it computes before
        self.tap = ClassifierTap(self.model, self.config.classifier_module)  # model_init may have made a new one
        self._frozen_modules = frozen_modules(self.model) if self.config.freeze else []
        dataset = self.train_dataset
        if not (streams := is_stream(dataset)):
            if len(dataset) == 0:
                raise ValueError("the training dataset is empty")
            dataset = IndexedDataset(dataset, derive_seed(self.args.seed, _AUGMENTATION))
        self.backbone = None if streams else self._find_backbone(dataset)
        self._encodings = Encodings(
            self._bare(),
            self.tap,
            self.backbone,
            self.data_collator,
            self.args.per_device_eval_batch_size,
            self.args.device,
            self.config.frozen_cache_dir,
        )
        self._run_dataset = self._stored(dataset)
        self.ledger = Ledger(len(dataset), self.args.device) if self.config.keep_ledger and not streams else None
        if not streams or self._judges_evaluation_samples():
            self._prepare_judge(dataset)
        if self.reweights:
            self._prepare_meta_batches(dataset)

    def _find_backbone(self, dataset: IndexedDataset) -> FrozenBackbone | None:
        if not (self.config.freeze and self.config.cache_frozen) or self.is_fsdp_enabled:
            return None  # FSDP2 spreads the frozen part, and what replaces it would not be gathered
        probe = self.data_collator([dataset[row] for row in range(min(2, len(dataset)))])
        backbone = FrozenBackbone.find(self.model, self.tap, model_inputs(probe, self.args.device))
        if backbone is not None:
            self._run_scope.enter_context(backbone.installed(self.model))
        return backbone

    def _stored(self, dataset: Any) -> Any:
        return dataset if self._encodings is None else self._encodings.stored(dataset)

    def _prepare_judge(self, dataset: IndexedDataset) -> None:
        config = self.config
        source = self.eval_dataset if self._judges_evaluation_samples() else dataset
        if source is None or isinstance(source, dict):
            raise ValueError("judge_source='eval' needs one eval_dataset (its labels are not read)")
        size = config.judge_size or (MORE_JUDGES if self.backbone is not None else JUDGES)
        rows = random_rows(len(source), min(size, len(source)), derive_seed(self.args.seed, _JUDGE), "judge_size")
        assert self._encodings is not None
        by_pretrained = self._by_pretrained(config.judge_features)
        self.judge = Judge(
            tap=self.tap,
            dataset=self._stored(source),
            rows=rows,
            collate=self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            temperature=config.temperature,
            features_ND=self._encodings.general_features(source, rows) if by_pretrained else None,
            by_class=config.judge_predictions == "classes",
            centred=config.judge_centred,
        )

    def _judges_evaluation_samples(self) -> bool:
        by_pretrained = self._by_pretrained(self.config.judge_features)
        return judges_evaluation_samples(self.config.judge_source, self.eval_dataset, by_pretrained)

    def _prepare_meta_batches(self, dataset: IndexedDataset) -> None:
        config = self.config
        source, size = dataset, config.meta_size
        if config.meta_source == "dataset":
            if self.meta_dataset is None:
                raise ValueError("meta_source='dataset' needs a meta_dataset (for objective='clid' it needs no labels)")
            source = IndexedDataset(self.meta_dataset)
        elif config.meta_source == "subset" and size is None:
            size = min(_DEFAULT_META_SIZE, len(dataset))
        batch_size = config.meta_batch_size or self._train_batch_size
        workers = self.args.dataloader_num_workers
        rows: list[int] | None = None
        if config.meta_source != "batch":
            self.meta_batches = MetaBatches(
                self._stored(source),
                size,
                batch_size,
                self.data_collator,
                derive_seed(self.args.seed, _META),
                workers,
                self.processes.index,
                self.processes.count,
                self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            )
            rows = self.meta_batches.rows
        if self._by_pretrained(config.objective_features):
            rows = list(range(len(source))) if rows is None else rows
            assert self._encodings is not None
            self._judge_table = FeatureTable(rows, self._encodings.general_features(source, rows))

    def _by_pretrained(self, features: str) -> bool:
        return self._is_pretrained() if features == "auto" else features == "pretrained"

    def _is_pretrained(self) -> bool:
        return bool(getattr(getattr(self.model, "config", None), "_name_or_path", ""))  # it was loaded, not made

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in Trainer; what lies above the encoder has a rate of its own where `head_learning_rate` says so."""
        fresh, rate = self.optimizer is None, None if self.config is None else self.config.head_learning_rate
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self._head_first.steps:
            set_apart(optimizer, self._above(), self.args.learning_rate)
        elif fresh and rate is not None:
            set_apart(optimizer, self._above(), rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As in Trainer; with `head_steps` it begins after them, and what lies above the encoder has its own before."""
        fresh, head_first = self.lr_scheduler is None, self._head_first
        scheduler = super().create_scheduler(num_training_steps - head_first.steps, optimizer)
        if fresh and head_first.steps:
            rate = self.config.head_learning_rate or HEAD_LEARNING_RATE
            self.lr_scheduler = head_first.schedule(scheduler.optimizer, scheduler, self._above(), rate)
        return self.lr_scheduler

    def _above(self) -> list[nn.Parameter]:
        """The parameters above the encoder."""
        below = set(backbone_names(self.model, self.tap))
        return [parameter for name, parameter in self.model.named_parameters() if name not in below]

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # Before super(): it loads the checkpoint's state into what is built here. The loop may be entered again, with a
        # batch size that fits (auto_find_batch_size): nothing of the last attempt counts.
        self._meta_steps, self._meters = 0, Meters()
        if self.snapshots is not None:
            self.snapshots.history = []
        if self.ledger is not None:
            self.ledger = Ledger(self.ledger.num_samples, self.args.device)
            if self._ledger_so_far is not None:
                self.ledger.load_state_dict(self._ledger_so_far)
        if self.reweights:
            if self.config.meta_source != "batch":
                self.meta_batches.restart(self.config.meta_batch_size or self._train_batch_size)
            self._build_weighting()
        if self.config is not None and self.tap is not None:
            steps = self.state.max_steps
            share = LEARNING_SHARE if self._judges_learning_features() else 0.0
            self._levels = Levels(self.config.selection_tolerance, share)
            self._warmup = WarmUp(None if self._waits_for_clid() else self.config.warmup_of_meta(steps), share)
            below = backbone_names(self.model, self.tap)
            by_default = self.reweights and self._is_pretrained() and self._head_first.applies(self.model, below)
            rests = self._warmup.has_turned if self.config.hold_features else None
            self._head_first.bind(self.model, below, self.config.steps_of_head(steps, by_default), rests)
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.reweights and is_spread(self._module):
            self.lookahead.shares = Shares(self._module)
            # A look-ahead's backward must not find gradients of earlier micro-batches that were not averaged yet.
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        return prepared

    def _waits_for_clid(self) -> bool:
        """Whether the warm-up lasts until CLID of samples that the model does not train on has turned."""
        if self.config.meta_warmup_steps is not None or self.judge is None or not self.reweights:
            return False
        evaluations = {
            "no": 0,
            "steps": self.state.max_steps / max(self.state.eval_steps or 1, 1),
            "epoch": self.args.num_train_epochs,
        }[self.args.eval_strategy]
        selects = self.config.metric_for_best_model in ("clid", "eval_clid") and evaluations >= FEWEST_EVALUATIONS
        return self._judges_learning_features() and selects and self.weighting.learns

    def _judges_learning_features(self) -> bool:
        """Whether CLID is measured by features that train along, on samples that do not train."""
        return self.judge is not None and self.judge.features_ND is None and self._judges_evaluation_samples()

    def after_selection(self, metrics: dict[str, float]) -> None:
        if self.reweights and self._warmup.see(self.state.global_step, self.reading.clid_K):
            logger.info("CLID has risen: back to the selected state, and on with the weighting.")
            self.load_selected()

    _micro_step, _drawn_at = 0, -1

    def _build_weighting(self) -> None:
        config, tap = self.config, self.tap
        same_everywhere = derive_seed(self.args.seed, _WEIGHTING)
        with forked_random_state(self.args.device, same_everywhere):
            if self._given_weighting is None:
                self.weighting = config.build_weighting(tap.num_labels, tap.feature_size)
        self.weighting.to(self.args.device, tap.weight_CD.dtype if tap.weight_CD.dtype == torch.float64 else None)
        self.weighting.processes = self.processes
        self.processes.check_identical("the weighting", self.weighting.state_dict())
        self.guard = Guard(config.meta_patience, self.args.device, self.processes)
        self.weighting.bind(None if is_stream(self.train_dataset) else len(self.train_dataset))
        self.weighting.configure_optimizer(config.meta_optim, config.meta_learning_rate, config.meta_weight_decay)
        self._module = module = self._bare()
        casts_to = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        self.lookahead = LookAhead(
            tap=tap,
            objective=get_objective(config.objective, config.temperature, config.detach_normaliser),
            scope=config.scope,
            tangent=config.tangent,
            lookahead=config.lookahead,
            preconditioner=config.preconditioner,
            autocast=casts_to if self.accelerator.native_amp else None,  # fp16 on a CPU is float32
            central=module is not self.model or self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
            average=self.processes.average if self.processes.several else None,
            gather=self.processes.gather_with_gradient if config.clid_across_processes else None,
        )
        self.lookahead.settle(module)  # what cannot work fails now, not later

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if not isinstance(data_collator, SampleCollator):
            return super()._get_collator_with_removed_columns(data_collator, description)
        users = super()._get_collator_with_removed_columns(data_collator.collator, description)
        return SampleCollator(users, data_collator.num_labels)  # outermost: it knows the columns that we add

    # ---- logging and state ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in Trainer, with what happened since the last log.

        Means: `meta_loss` (`clid`), `weight_mean`, `weight_std`; a count: `meta_skipped`, meta steps that were not
        finite.
        """
        if "loss" in logs:
            logs.update(self._meters.take(self.processes.average))
            if self.guard is not None and self.weighting.learns:
                logs["meta_skipped"] = self.guard.look(self.state.global_step)
            if "meta_loss" in logs and self.config.objective == "clid":
                logs["clid"] = logs["meta_loss"]
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer; weighting and ledger are written beside a model that is saved for use."""
        try:
            super().save_model(output_dir, _internal_call)
        finally:  # a push that fails costs no ledger
            if not _internal_call and self.args.should_save:
                folder = Path(str(output_dir or self.args.output_dir))
                self.save_beside(folder / FOLDER, labels=True)
                if self.ledger is not None:
                    self.ledger.save(folder / LEDGER_NAME)

    def save_beside(self, folder: Path, labels: bool) -> None:
        if self.weighting is not None and (phi := dict(self.weighting.named_parameters())):  # buffers remember samples
            write_tensors(folder / WEIGHTING_NAME, phi)
        if self.ledger is not None and labels:
            write_tensors(folder / LEDGER_STATE_NAME, self.ledger.state_dict())

    def before_saving(self) -> None:
        if self.reweights:
            self.processes.check_identical("the weighting", self.weighting.state_dict())
            self.guard.look(self.state.global_step)

    def stateful_parts(self) -> dict[str, Any]:
        optimizer = None if self.weighting is None else OptimizerState(self.weighting.optimizer)
        return {
            "weighting": self.weighting,
            "weighting_optimizer": optimizer,
            "guard": self.guard,
            "ledger": self.ledger,
            "judge": self.judge,
            "meta_features": self._judge_table,
        }

    def save_values(self, folder: Path) -> dict[str, Any]:
        return {**super().save_values(folder), "meta_steps": self._meta_steps, "warmup": self._warmup.state()}

    def load_values(self, folder: Path, values: dict[str, Any]) -> None:
        super().load_values(folder, values)
        self._meta_steps = whole_number(values, "meta_steps")
        self._warmup.load(values.get("warmup"))
        if self.guard is not None:
            self.guard.look(self.state.global_step)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.tap is not None and isinstance(self._run_dataset, IndexedDataset):
            self._run_dataset.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)
