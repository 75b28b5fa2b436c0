"""The arguments of a run: those of `transformers.TrainingArguments`, and what CLID-MU adds to them."""

from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from hf_clidmu.lookahead import PRECONDITIONERS, TANGENTS
from hf_clidmu.objectives import available_objectives
from hf_clidmu.snapshots import SNAPSHOT_MODES
from hf_clidmu.weighting import Weighting, available_weightings, get_weighting


META_SOURCES = ("subset", "batch", "dataset")
JUDGE_FEATURES = ("auto", "own", "pretrained")
JUDGE_PREDICTIONS = ("classes", "probabilities")
JUDGE_SOURCES = ("auto", "train", "eval")
HEAD_LEARNING_RATE = 1e-3
_HEAD_SHARE = 0.5
_WARMUP_SHARE = 0.1
# What TrainingArguments fills in where nothing was given.
_FILLED_IN = ("accelerator_config", "disable_tqdm", "do_eval", "greater_is_better", "hub_token", "report_to")


@dataclass
class CLIDMUConfig(TrainingArguments):
    r"""
    Configuration of [`CLIDMUTrainer`].

    Holds only what CLID-MU adds; for everything else see [`~transformers.TrainingArguments`].

    > Parameters that control the weighting of the given labels

        weighting (`str`, *optional*, defaults to `"vri"`):
            Who says how much a given label counts: `vri` (rectified logits), `wnet` (weight from the loss), `context`
            (weight from features, label, loss and margin), `free` (no network), or `none` for plain cross-entropy, in
            which case training is that of [`~transformers.Trainer`], bit for bit.
        meta_learning_rate (`float`, *optional*, defaults to `1e-3`):
            Learning rate of the weighting's own optimiser.
        meta_optim (`str`, *optional*, defaults to `"adam"`):
            That optimiser: `adam` or `sgd`.
        meta_weight_decay (`float`, *optional*, defaults to `5e-4`):
            Its weight decay, as published.
        meta_every (`int`, *optional*, defaults to `1`):
            Take a meta step in every k-th optimiser step only.
        meta_warmup_steps (`float`, *optional*):
            Plain cross-entropy for so many optimiser steps first; a number below 1 is a share of all steps. Defaults
            to 0.1 where CLID judges by pretrained features. A network with random weights has to learn its features
            first: plain cross-entropy then lasts until CLID of evaluation samples has risen (the mean of
            three evaluations has found no new minimum four times, and lies above it by three standard errors and
            three tenths of the fall), and training goes on from the selected state.
            Without an evaluation set it is 0.1 there, too.
        hold_features (`bool`, *optional*, defaults to `True`):
            After a warm-up that CLID ended, train the head alone, and keep the features of the state that training
            went back to: a network that has begun to memorise wrong labels otherwise goes on with it, whatever the
            weighting does. `False` trains everything.
        meta_patience (`int`, *optional*, defaults to `10`):
            Leave the weighting out, and train on with plain cross-entropy, after so many steps in a row in which the
            meta step was not finite or the weights collapsed (all zero, or one sample takes all).
        kl_weight (`float`, *optional*, defaults to `0.0`):
            Weight of VRI's KL term in the outer loss.
        loss_q (`float`, *optional*, defaults to `0.35`):
            What is weighted is the generalised cross-entropy `(1 - p_y^q) / q` of each given label, in which labels
            that the model finds unlikely pull less: between cross-entropy (0, as published) and `1 - p_y` (1). The
            warm-up is plain cross-entropy; `gce`, `sce` and `elr` have losses of their own.

    > Parameters that control the look-ahead

        scope (`str`, *optional*, defaults to `"head"`):
            Which parameters look ahead: `head` (the last layer), `all`, or a regular expression over names.
        tangent (`str`, *optional*, defaults to `"auto"`):
            How the logit tangent is computed: `closed_form` (head only), `finite_difference` (one more forward),
            `forward` (forward-mode differentiation, exact), or `auto`: the closed form for the head; beyond it finite
            differences, and forward mode under `bf16`, `fp16` or with weights in half precision.
        lookahead (`bool`, *optional*, defaults to `True`):
            Judge the classifier one step ahead; `False` judges it where it is.
        lookahead_lr (`float`, *optional*):
            Step size of the look-ahead. Defaults to 0.1 for `scope="head"` and to the current learning rate otherwise.
        preconditioner (`str`, *optional*, defaults to `"none"`):
            `adam` scales the look-ahead like the main optimiser does; `none` is a plain gradient step, as published.

    > Parameters that control the judge

        objective (`str`, *optional*, defaults to `"clid"`):
            What the look-ahead is judged by: `clid` (no labels), `cross_entropy` (clean meta labels), `mae`.
        temperature (`float`, *optional*, defaults to `0.5`):
            Temperature of CLID's feature graph.
        detach_normaliser (`bool`, *optional*, defaults to `False`):
            Stop the gradient of the prediction graph's row sums. The published method does; predictions are then only
            ever pushed apart. Without it neighbours are pulled together, too, which selected better models on every
            set it was compared on (`recipes/benchmarks/README.md`).
        judge_features (`str`, *optional*, defaults to `"auto"`):
            Features of CLID's feature graph where it *selects*: the model's `own`, or those of the `pretrained` model
            (computed once, before training: the mean token state of a text encoder, the last layer's inputs of other
            models). `auto` takes `pretrained` for a model that was loaded from a checkpoint, `own` for one with random
            weights.
        judge_predictions (`str`, *optional*, defaults to `"classes"`):
            What CLID compares with the feature graph where it *selects*: the predicted `classes`, or `probabilities`
            as published. Probabilities grow confident while wrong labels are memorised, and CLID falls with
            confidence: on five noisy text sets (`recipes/benchmarks/README.md`), classes selected states that are
            3 points better in the mean, whatever the method.
        judge_centred (`bool`, *optional*, defaults to `True`):
            Take the mean over the judge set off the features of the graph that *selects*. What all samples of a task
            have in common says nothing about which are alike, and makes every similarity large: without their mean,
            68.5 instead of 67.3 in the mean of the same five sets. `False` is as published.
        objective_features (`str`, *optional*, defaults to `"own"`):
            The same choice for the CLID *objective*, which guides the weighting; `own` as published.
        meta_source (`str`, *optional*, defaults to `"subset"`):
            Where meta batches come from: a fixed random `subset` of the training samples, the running `batch` (head
            scope only, no extra forward), or the `dataset` given to the trainer as `meta_dataset`.
        meta_size (`int`, *optional*):
            Samples that take part in meta batches. Defaults to 1000 for `subset` (all of a smaller training set) and
            to the whole set for `dataset`.
        meta_batch_size (`int`, *optional*):
            Samples a meta batch. Defaults to the training batch size.
        clid_across_processes (`bool`, *optional*, defaults to `False`):
            Judge the meta samples of all processes together, as one large meta batch (features and predictions are
            gathered, with gradient); otherwise each process judges its own and the gradients are averaged. With one
            process there is no difference.
        judge_source (`str`, *optional*, defaults to `"auto"`):
            Where `eval_clid` is measured, on `judge_size` samples: `train` takes those of the training set, `eval`
            those of the evaluation set, whose labels are not read. `auto` takes `train` for pretrained features, and
            `eval` for the model's own where there is an evaluation set of 200 samples or more: features that train
            along put samples with memorised labels where their labels say, so that CLID of *training* samples falls
            to the end.
        judge_size (`int`, *optional*):
            Samples `eval_clid` is measured on; a smaller set is used whole. Defaults to 1000, and to 4000 where the
            outputs of a frozen encoder are stored, which leaves little to compute.
        selection_tolerance (`float`, *optional*, defaults to `1.0`):
            Of the states whose CLID lies above the lowest by no more than so many standard errors (of the difference,
            chunk by chunk of the judge set), nothing but chance tells one from another; see `snapshot_mode` for what
            becomes of them. Where the classes are not what the features are about (`eval_clid_share` below 0.4), these
            are all states of the run. Where features train along, a rise by three tenths of what CLID has fallen by
            does not count either. `0` leaves the lowest alone, but for that.

    > Parameters that control what is kept

        snapshot_mode (`str`, *optional*, defaults to `"single"`):
            What the trained model is: of the states that CLID cannot tell from the lowest (`selection_tolerance`) the
            latest alone, `single`, or the average of their weights, a `soup`; or an `ensemble` (mean of probabilities)
            of the best k.
        snapshot_top_k (`int`, *optional*, defaults to `3`):
            How many snapshots are kept.
        keep_ledger (`bool`, *optional*, defaults to `True`):
            Record loss, margin and agreement of every training sample.

    > Parameters that control what is pushed to the Hub (`push_to_hub`)

        hub_label_report (`bool`, *optional*, defaults to `False`):
            Push the record of every training sample as well; a new repository is then private by default.
        hub_resume_state (`bool`, *optional*, defaults to `False`):
            With `hub_strategy="checkpoint"` or `"all_checkpoints"`, push all that a resume needs: optimiser, scheduler
            and random states, which are pickles, and what is remembered of every training sample. Without it those
            strategies push model and weighting.

    > Parameters that control the model

        head_steps (`float`, *optional*):
            Optimiser steps in which only what lies above the encoder trains, first; a number below 1 is a share of all
            steps. The encoder keeps the features that CLID judges by until there is a head worth following. Defaults
            to half of the steps where there is a weighting and a whole pretrained model trains (no `freeze`), and to 0
            otherwise. See `recipes/benchmarks/README.md` for what it gives.
        head_learning_rate (`float`, *optional*):
            Learning rate of what lies above the encoder (a pooler, a dense layer, the last layer): in its own steps
            (`head_steps`, default 1e-3, falling linearly to zero), or, where there are none, throughout, on the
            schedule of the rest (default `learning_rate`). New layers above an encoder need larger steps than it bears.
        freeze (`str`, *optional*):
            `backbone` trains only what lies above the encoder; a regular expression freezes the parameters it matches.
        cache_frozen (`bool`, *optional*, defaults to `True`):
            Compute the output of a frozen text backbone once and train from it.
        frozen_cache_dir (`str`, *optional*):
            Folder that keeps those outputs between runs, sample by sample: other labels, folds and subsets of the same
            samples are not encoded again. What is found there is used only if every frozen weight is the same. Nothing
            is kept without it.
        classifier_module (`str`, *optional*):
            Dotted name of the last layer, where it cannot be found.

    <Tip>

    Defaults that differ from [`~transformers.TrainingArguments`]: `eval_strategy="steps"` with `eval_steps=0.05`
    (twenty evaluations a run, whatever its length: the best state comes early on wrong labels), `save_strategy="no"`
    (snapshots are kept instead), `logging_steps=0.05`, `metric_for_best_model="clid"`,
    `per_device_train_batch_size=32` (CLID compares the samples of a batch) and `per_device_eval_batch_size=64`.

    </Tip>
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS

    # Defaults that differ from TrainingArguments
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: 'no', 'steps' or 'epoch'."})
    eval_steps: float | None = field(
        default=0.05, metadata={"help": "Steps between evaluations; a number below 1 is a share of all steps."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training samples a device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation samples a device and step."})
    save_strategy: str = field(default="no", metadata={"help": "When to save: 'no', 'steps', 'epoch' or 'best'."})
    logging_steps: float = field(
        default=0.05, metadata={"help": "Steps between logs; a number below 1 is a share of all steps."}
    )
    metric_for_best_model: str | None = field(
        default="clid", metadata={"help": "The metric that ranks checkpoints; 'clid' reads no label."}
    )

    # The weighting of the given labels
    weighting: str = field(
        default="vri", metadata={"help": "Who says how much a label counts: vri, wnet, context, free or none."}
    )
    meta_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the weighting."})
    meta_optim: str = field(default="adam", metadata={"help": "Optimiser of the weighting: adam or sgd."})
    meta_weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of the weighting."})
    meta_every: int = field(default=1, metadata={"help": "Take a meta step in every k-th optimiser step."})
    meta_warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps of plain cross-entropy first; below 1 it is a share of all steps (default: 0.1, or, for "
            "random weights, until CLID stops falling)."
        },
    )
    hold_features: bool = field(
        default=True, metadata={"help": "Train the head alone after a warm-up that CLID ended."}
    )
    meta_patience: int = field(
        default=10, metadata={"help": "Bad meta steps in a row before the weighting is left out."}
    )
    kl_weight: float = field(default=0.0, metadata={"help": "Weight of VRI's KL term in the outer loss."})
    loss_q: float = field(
        default=0.35, metadata={"help": "Exponent of the generalised cross-entropy that is weighted; 0: cross-entropy."}
    )

    # The look-ahead
    scope: str = field(
        default="head", metadata={"help": "Parameters that look ahead: head, all, or a regular expression."}
    )
    tangent: str = field(
        default="auto", metadata={"help": "auto, closed_form (head only), finite_difference or forward."}
    )
    lookahead: bool = field(default=True, metadata={"help": "Judge the classifier one step ahead."})
    lookahead_lr: float | None = field(
        default=None, metadata={"help": "Step size of the look-ahead; 0.1 for scope=head, else the learning rate."}
    )
    preconditioner: str = field(default="none", metadata={"help": "Scale of the look-ahead: none or adam."})

    # The judge
    objective: str = field(
        default="clid", metadata={"help": "What judges the look-ahead: clid, cross_entropy (clean labels) or mae."}
    )
    temperature: float = field(default=0.5, metadata={"help": "Temperature of CLID's feature graph."})
    detach_normaliser: bool = field(
        default=False, metadata={"help": "Stop the gradient of the prediction graph's row sums."}
    )
    judge_features: str = field(
        default="auto", metadata={"help": "Features of the graph that selects: own, pretrained or auto."}
    )
    judge_predictions: str = field(
        default="classes", metadata={"help": "What CLID compares where it selects: classes or probabilities."}
    )
    judge_centred: bool = field(
        default=True, metadata={"help": "Take their mean off the features of the graph that selects."}
    )
    objective_features: str = field(
        default="own", metadata={"help": "Features of the CLID objective's feature graph: own, pretrained or auto."}
    )
    meta_source: str = field(
        default="subset", metadata={"help": "Where meta batches come from: subset, batch or dataset."}
    )
    meta_size: int | None = field(
        default=None, metadata={"help": "Training samples in the subset (default: 1000, or all of fewer)."}
    )
    meta_batch_size: int | None = field(
        default=None, metadata={"help": "Samples a meta batch (default: the training batch size)."}
    )
    clid_across_processes: bool = field(
        default=False, metadata={"help": "Judge the meta samples of all processes as one large meta batch."}
    )
    judge_source: str = field(
        default="auto", metadata={"help": "Where eval_clid is measured: train, eval (labels are not read) or auto."}
    )
    judge_size: int | None = field(
        default=None,
        metadata={"help": "Samples that eval_clid is measured on (default: 1000, or 4000 above a frozen encoder)."},
    )
    selection_tolerance: float = field(
        default=1.0, metadata={"help": "Standard errors of CLID within which a later state is as good as the lowest."}
    )

    # What is kept
    snapshot_mode: str = field(default="single", metadata={"help": "single, soup or ensemble of the best snapshots."})
    snapshot_top_k: int = field(default=3, metadata={"help": "How many snapshots are kept, by lowest CLID."})
    keep_ledger: bool = field(default=True, metadata={"help": "Record loss, margin and agreement of every sample."})

    # What is pushed
    hub_label_report: bool = field(
        default=False, metadata={"help": "Push the record of every training sample as well, privately by default."}
    )
    hub_resume_state: bool = field(
        default=False, metadata={"help": "Push all that a resume needs with checkpoints, pickles included."}
    )

    # The model
    head_steps: float | None = field(
        default=None,
        metadata={"help": "Steps in which only what lies above the encoder trains, first; below 1 it is a share."},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate above the encoder: in head_steps, or throughout without them."}
    )
    freeze: str | None = field(
        default=None, metadata={"help": "'backbone', or a regular expression over names of parameters to freeze."}
    )
    cache_frozen: bool = field(default=True, metadata={"help": "Compute the output of a frozen text backbone once."})
    frozen_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder that keeps the outputs of a frozen text backbone between runs."}
    )
    classifier_module: str | None = field(
        default=None, metadata={"help": "Dotted name of the model's last layer, where it cannot be found."}
    )

    def __post_init__(self) -> None:
        if self.metric_for_best_model in ("clid", "eval_clid") and self.greater_is_better is None:
            self.greater_is_better = False
        super().__post_init__()
        _one_of("weighting", self.weighting, available_weightings())
        _one_of("objective", self.objective, available_objectives())
        _one_of("tangent", self.tangent, TANGENTS)
        _one_of("preconditioner", self.preconditioner, PRECONDITIONERS)
        _one_of("meta_source", self.meta_source, META_SOURCES)
        _one_of("judge_features", self.judge_features, JUDGE_FEATURES)
        _one_of("judge_predictions", self.judge_predictions, JUDGE_PREDICTIONS)
        _one_of("objective_features", self.objective_features, JUDGE_FEATURES)
        _one_of("judge_source", self.judge_source, JUDGE_SOURCES)
        _one_of("snapshot_mode", self.snapshot_mode, SNAPSHOT_MODES)
        _one_of("meta_optim", self.meta_optim, ("adam", "sgd"))
        counts = ("meta_every", "meta_patience", "snapshot_top_k")
        for name in ("temperature", "meta_learning_rate", *counts):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("meta_size", "meta_batch_size", "judge_size", "lookahead_lr", "head_learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("meta_warmup_steps", "kl_weight", "meta_weight_decay", "head_steps", "selection_tolerance"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.tangent == "closed_form" and self.scope != "head":
            raise ValueError(f"tangent='closed_form' exists for scope='head' only, not for scope='{self.scope}'")
        if self.meta_source == "batch" and self.scope != "head":
            raise ValueError(f"meta_source='batch' needs scope='head', not scope='{self.scope}'")
        if self.head_steps and self.freeze == "backbone":
            raise ValueError("freeze='backbone' trains nothing but the head: leave head_steps out")
        if not 0 <= self.loss_q <= 1:
            raise ValueError(f"loss_q must be in [0, 1], got {self.loss_q}")
        if self.kl_weight and self.weighting != "vri":
            raise ValueError(f"kl_weight is a term of weighting='vri', not of '{self.weighting}'")

    def non_default(self) -> dict[str, Any]:
        """The settings that differ from what their fields say, secrets masked.

        No second instance is made to compare with: that would end the running process group of accelerate.
        """
        values = self.to_dict()
        declared = {
            one.name: one.default if one.default_factory is MISSING else one.default_factory()
            for one in fields(self)
            if one.init and one.name not in _FILLED_IN
        }
        return {
            name: values[name]
            for name, default in declared.items()
            if values[name] != _as_value(default) and not (_is_nothing(default) and _is_nothing(values[name]))
        }

    def build_weighting(self, num_labels: int, feature_size: int) -> Weighting:
        """A fresh weighting as these settings describe it, for a classifier of C classes and D features."""
        return get_weighting(self.weighting, num_labels, feature_size, self.kl_weight, self.loss_q)

    def warmup_of_meta(self, max_steps: int) -> int:
        """Steps of plain cross-entropy before the first meta step, in a run of `max_steps`."""
        return _steps(_WARMUP_SHARE if self.meta_warmup_steps is None else self.meta_warmup_steps, max_steps)

    def steps_of_head(self, max_steps: int, follows_encoder: bool) -> int:
        """Steps of the head alone in a run of `max_steps`; `follows_encoder` says whether it is wanted by default."""
        if self.head_steps is None:
            composes = self.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy")  # no functions of the step
            return _steps(_HEAD_SHARE, max_steps) if follows_encoder and composes and not self.freeze else 0
        return _steps(self.head_steps, max_steps)


def _is_nothing(value: Any) -> bool:
    """None, False or empty: forms of nothing that TrainingArguments turns into one another; 0 is a number."""
    return value is None or value is False or (isinstance(value, (str, list, dict)) and not value)


def _as_value(default: Any) -> Any:
    return default.value if isinstance(default, Enum) else default


def _steps(given: float, max_steps: int) -> int:
    return int(given * max_steps if given < 1 else min(given, max_steps))


def _checkpoints_reentrantly(config: TrainingArguments) -> bool:
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # which of them, depends on transformers
        options = getattr(config, f"{name}_kwargs", None)
        if getattr(config, name, False) and options and options.get("use_reentrant"):
            return True
    return False


def _one_of(name: str, value: str, known: object) -> None:
    if value not in known:  # type: ignore[operator]
        raise ValueError(f"unknown {name} '{value}'; known: {', '.join(known)}")  # type: ignore[arg-type]


def refuse_unsupported(config: CLIDMUConfig, *, reweights: bool, streams: bool, uneven: bool = False) -> None:
    """Refuse launches and data that a run of these settings cannot have.

    Args:
        config: the settings.
        reweights: whether there is a weighting.
        streams: whether the training data is a stream.
        uneven: whether processes may get batches of different sizes.

    Raises:
        ValueError: with what to do instead.
    """
    if config.n_gpu > 1:
        raise ValueError(
            f"{config.n_gpu} GPUs without a launcher would run nn.DataParallel, which is not supported: start the "
            "script with 'accelerate launch' or 'torchrun', or make one GPU visible (CUDA_VISIBLE_DEVICES=0)"
        )
    if not reweights:
        return
    if uneven:
        raise ValueError(
            "even_batches=False gives processes batches of different sizes, which cannot be gathered: leave it out of "
            "accelerator_config"
        )
    repeats_backward = config.scope != "head" or config.tangent not in ("auto", "closed_form")
    if repeats_backward and _checkpoints_reentrantly(config):
        raise ValueError(
            "activation checkpointing with use_reentrant=True runs backward once only, and the look-ahead needs it "
            "before: leave use_reentrant out, or use scope='head'"
        )
    if streams and config.meta_source == "subset":
        raise ValueError(
            "a streaming training dataset has no rows to draw meta batches from: use meta_source='batch' or "
            "meta_source='dataset'"
        )
