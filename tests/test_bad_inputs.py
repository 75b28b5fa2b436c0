"""What users get wrong, and what they are told: every bad input gives one clean error that says what to do.

A row: a name, what is done, the error's type, and a part of its message. More are in the tests of each room.
"""

import pytest
import torch
from test_trainer import Samples, Stream, UniformWeighting, settings
from tiny_models import NUM_LABELS, tiny_classifier
from torch import nn
from transformers import TrainingArguments, default_data_collator

from hf_clidmu.batches import SampleCollator, random_rows
from hf_clidmu.divergence import clid, feature_graph, prediction_graph
from hf_clidmu.files import inside, read_json, read_tensors
from hf_clidmu.ledger import Ledger
from hf_clidmu.objectives import get_objective, register_objective
from hf_clidmu.snapshots import Snapshots, load_changing_state, selection_score
from hf_clidmu.state import load_state
from hf_clidmu.trainer import CLIDMUTrainer
from hf_clidmu.weighting import get_weighting, register_weighting


def config(**changes):
    return lambda tmp_path: settings(tmp_path, **changes)


def trainer(model=None, dataset=None, given=None, resume=None, collator=default_data_collator, **changes):
    """A run that is built and started."""

    def run(tmp_path):
        args = settings(tmp_path, **{"max_steps": 2, "eval_strategy": "no", **changes})
        data = Samples("bert") if dataset is None else dataset()
        model_ = tiny_classifier("bert") if model is None else model()
        CLIDMUTrainer(model_, args, collator, data, **(given or {})).train(resume_from_checkpoint=resume)

    return run


def with_label(value, row=7):
    return lambda: [{**sample, "labels": value if i == row else sample["labels"]} for i, sample in enumerate(SAMPLES)]


def with_head(problem_type=None, num_labels=NUM_LABELS):
    def build():
        model = tiny_classifier("bert", **({} if num_labels == NUM_LABELS else {"num_labels": num_labels}))
        model.config.problem_type = problem_type
        return model

    return build


class TwoHeads(nn.Module):
    """Nobody can know which of its layers is the last."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_labels": 3})()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, labels=None):
        return {"logits": self.one(x) + self.two(x)}


def plain_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    trainer(resume=str(folder))(tmp_path)


def file_of(content, read):
    def run(tmp_path):
        (tmp_path / "file").write_bytes(content)
        read(tmp_path / "file")

    return run


SAMPLES = [Samples("bert")[row] for row in range(40)]
MATRIX = torch.zeros(4, 3)
BAD = [
    # settings
    ("weighting unknown", config(weighting="best"), "unknown weighting 'best'; known: context, elr, free, gce, none"),
    ("objective unknown", config(objective="f1"), "unknown objective 'f1'; known: clid, cross_entropy, mae"),
    ("tangent unknown", config(tangent="reverse"), "unknown tangent 'reverse'; known: auto, closed_form"),
    ("preconditioner unknown", config(preconditioner="kfac"), "unknown preconditioner 'kfac'; known: none, adam"),
    ("meta_source unknown", config(meta_source="web"), "unknown meta_source 'web'; known: subset, batch, dataset"),
    ("judge_features unknown", config(judge_features="x"), "unknown judge_features 'x'; known: auto, own, pretrained"),
    ("judge_source unknown", config(judge_source="test"), "unknown judge_source 'test'; known: auto, train, eval"),
    ("snapshot_mode unknown", config(snapshot_mode="all"), "unknown snapshot_mode 'all'; known: single, soup"),
    ("meta_optim unknown", config(meta_optim="lion"), "unknown meta_optim 'lion'; known: adam, sgd"),
    ("temperature zero", config(temperature=0.0), "temperature must be positive, got 0.0"),
    ("temperature no number", config(temperature=float("nan")), "temperature must be positive, got nan"),
    ("meta_every zero", config(meta_every=0), "meta_every must be positive, got 0"),
    ("meta_patience zero", config(meta_patience=0), "meta_patience must be positive, got 0"),
    ("meta_size negative", config(meta_size=-3), "meta_size must be positive, got -3"),
    ("judge_size zero", config(judge_size=0), "judge_size must be positive, got 0"),
    ("loss_q beyond one", config(loss_q=1.5), "loss_q must be in [0, 1], got 1.5"),
    ("loss_q not a number", config(loss_q=float("nan")), "loss_q must be in [0, 1], got nan"),
    ("lookahead_lr zero", config(lookahead_lr=0.0), "lookahead_lr must be positive, got 0.0"),
    ("warm-up negative", config(meta_warmup_steps=-1), "meta_warmup_steps must not be negative, got -1"),
    ("closed form of all", config(tangent="closed_form", scope="all"), "closed_form' exists for scope='head' only"),
    ("running batch for all", config(meta_source="batch", scope="all"), "meta_source='batch' needs scope='head'"),
    (
        "KL without VRI",
        config(kl_weight=0.1, weighting="wnet"),
        "kl_weight is a term of weighting='vri', not of 'wnet'",
    ),
    ("head alone, twice", config(head_steps=5, freeze="backbone"), "trains nothing but the head: leave head_steps out"),
    # what only a run can know
    ("meta subset too large", trainer(meta_size=41), "meta_size=41 is larger than the dataset, which has 40 rows"),
    ("scope matches nothing", trainer(scope="no_such_layer"), "scope='no_such_layer' matches none of the"),
    ("no meta dataset", trainer(meta_source="dataset"), "meta_source='dataset' needs a meta_dataset"),
    ("no eval dataset", trainer(judge_source="eval"), "judge_source='eval' needs one eval_dataset"),
    (
        "meta set without labels",
        trainer(
            meta_source="dataset",
            objective="cross_entropy",
            meta_warmup_steps=0,
            given={"meta_dataset": Samples("bert", labels=False)},
        ),
        "objective 'cross_entropy' compares predictions with labels, but the meta set has none",
    ),
    ("freeze matches nothing", trainer(freeze="nowhere"), "freeze='nowhere' matches no parameter; use 'backbone'"),
    ("freeze matches all", trainer(freeze="."), "freeze='.' matches every parameter: nothing would be trained"),
    (
        "a metric nobody computes",
        trainer(eval_strategy="steps", eval_steps=1, metric_for_best_model="f1"),
        "metric_for_best_model='f1' is not among the metrics of an evaluation: eval_clid",
    ),
    (
        "a weighting without settings",
        lambda tmp_path: CLIDMUTrainer(
            tiny_classifier("bert"), settings(tmp_path, TrainingArguments), weighting=UniformWeighting()
        ),
        "a weighting needs its settings: pass args=CLIDMUConfig(...)",
    ),
    ("a stream has no rows", trainer(dataset=lambda: Stream([])), "has no rows to draw meta batches from"),
    (
        "a stream cannot be remembered",
        trainer(weighting="elr", meta_source="batch", judge_source="eval", dataset=lambda: Stream(SAMPLES)),
        "needs one eval_dataset|weighting='elr' remembers every training sample: it cannot train on a stream",
    ),
    # data
    ("no labels", trainer(dataset=lambda: Samples("bert", labels=False)), "has no column 'labels', only"),
    ("label too large", trainer(dataset=with_label(NUM_LABELS), max_steps=10), "row 7: label 5 is outside 0..4"),
    ("label negative", trainer(dataset=with_label(-100), max_steps=10), "row 7: label -100 is outside 0..4"),
    ("labels are reals", trainer(dataset=lambda: [{**s, "labels": 1.0} for s in SAMPLES]), "labels must be integers"),
    (
        "labels are boolean",
        lambda _: SampleCollator(lambda samples: {"labels": torch.tensor([True, False])}, 2)([{}, {}]),
        "holds torch.bool values; labels must be integers (cast the column)",
    ),
    (
        "several labels a sample",
        trainer(dataset=lambda: [{**s, "labels": [0.0, 1.0]} for s in SAMPLES]),
        "multi-label and soft targets are not supported",
    ),
    ("an empty batch", lambda _: SampleCollator(default_data_collator)([]), "cannot collate an empty batch"),
    ("an empty dataset", lambda _: random_rows(0, None, 0, "meta_size"), "the dataset is empty: there are no rows"),
    # models
    ("a regression model", trainer(model=with_head(num_labels=1)), "num_labels=1 is a regression model"),
    (
        "a multi-label model",
        trainer(model=with_head("multi_label_classification")),
        "problem_type='multi_label_classification' is not supported",
    ),
    (
        "no such last layer",
        trainer(classifier_module="fc9"),
        "classifier_module='fc9' is not an nn.Linear or nn.Conv2d",
    ),
    ("two last layers", trainer(model=TwoHeads), "several could be meant (one, two). Name it with the argument"),
    # maths
    ("features of others", lambda _: clid(MATRIX, MATRIX[:3]), "must describe the same samples, got 4 and 3 rows"),
    ("no samples", lambda _: clid(MATRIX[:0], MATRIX[:0]), "features_BD is empty: CLID needs at least one sample"),
    ("a vector of logits", lambda _: prediction_graph(MATRIX[0]), "logits_NC must have two dimensions"),
    ("a cold graph", lambda _: feature_graph(MATRIX, 0.0), "temperature must be a positive number, got 0.0"),
    (
        "an objective twice",
        lambda _: register_objective("clid")(None),
        "an objective named 'clid' is already registered",
    ),
    ("no such objective", lambda _: get_objective("auc"), "unknown objective 'auc'; known: clid, cross_entropy, mae"),
    ("a weighting named none", lambda _: register_weighting("none")(None), "named 'none' is already registered"),
    ("no such weighting", lambda _: get_weighting("x", 2, 3), "unknown weighting 'x'; known: context, elr, free"),
    # saved state
    ("nothing to resume", trainer(resume=True), "there is no whole checkpoint in"),
    ("a checkpoint nowhere", trainer(resume="nowhere/checkpoint-2"), "there is no such folder"),
    ("another trainer's checkpoint", plain_checkpoint, "it was not written by CLIDMUTrainer, or not completely"),
    ("no state", lambda tmp_path: load_state(tmp_path), "it was not written by CLIDMUTrainer, or not completely"),
    ("no JSON", file_of(b"{'a': 1}", read_json), "cannot be read as JSON"),
    ("no tensors", file_of(b"PK\x03\x04", read_tensors), "cannot be read as safetensors"),
    ("a path that leaves", lambda tmp_path: inside(tmp_path, "../../.ssh/id"), "is not the name of a file inside"),
    (
        "a history that leaves",
        lambda tmp_path: Snapshots(tmp_path, 1).load_kept_state([{"step": 1, "score": 0.1, "file": "../x"}]),
        "which is no snapshot: step, score and file of its weights",
    ),
    (
        "another dataset's ledger",
        lambda _: Ledger(3).load_state_dict(Ledger(4).state_dict()),
        "of 3 samples, found .*; was the checkpoint made with another training dataset?",
    ),
    (
        "another model's snapshot",
        lambda _: load_changing_state(nn.Linear(2, 3), nn.Linear(3, 3).state_dict()),
        "the snapshot does not fit the model",
    ),
    ("no snapshots to keep", lambda tmp_path: Snapshots(tmp_path, 0), "snapshot_top_k must be at least 1, got 0"),
    (
        "no such metric",
        lambda _: selection_score({"eval_a": 1.0}, "b", False),
        "metric_for_best_model='b' is not among",
    ),
]


def test_the_table_is_long_enough_and_says_something_else_in_every_row():
    assert len(BAD) >= 40
    names = [row[0] for row in BAD]
    assert len(set(names)) == len(names)
    assert all(len(message) > 15 for _, _, message in BAD)


@pytest.mark.parametrize(("do", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_input_is_told(do, message, tmp_path):
    with pytest.raises(ValueError) as raised:
        do(tmp_path)
    text = str(raised.value)
    assert any(all(part in text for part in either.split(".*")) for either in message.split("|")), text
    assert "Traceback" not in text and "\n" not in text.strip()
