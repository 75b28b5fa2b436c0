"""What a run says of itself on a card."""

import pytest
from tiny_models import tiny_classifier

import hf_clidmu
from hf_clidmu import run_facts
from hf_clidmu.run_facts import facts_of_run, versions_of


HISTORY = [{"step": step, "eval_clid": 4.0, "eval_accuracy": step / 10, "eval_runtime": 1.0} for step in (2, 4, 6)]


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ((), [("last step", 0.6, True)]),
        ([6], [("last step", 0.6, True)]),
        ([4], [("last step", 0.6, False), ("selected", 0.4, True)]),
        ([4, 6], [("last step", 0.6, False)]),  # a mean of states, which nobody measured
    ],
)
def test_a_card_has_the_scores_of_its_weights_and_of_no_others(selected, expected):
    facts = facts_of_run(model=tiny_classifier("bert"), config=None, history=HISTORY, selected=selected)
    assert [(row.name, row.scores["accuracy"], row.is_this_model) for row in facts["results"]] == expected
    assert [entry["step"] for entry in facts["evaluations"]] == [2, 4, 6]


def test_without_an_evaluation_set_nothing_was_measured():
    history = [{"step": 2, "eval_clid": 4.0}]
    assert facts_of_run(model=tiny_classifier("bert"), config=None, history=history)["results"] == []


def test_versions_from_a_folder_that_was_never_installed(monkeypatch):
    def only_torch(name):
        if name != "torch":
            raise run_facts.PackageNotFoundError(name)
        return "2.0"

    monkeypatch.setattr(run_facts, "version", only_torch)
    assert versions_of(("hf_clidmu", "torch", "timm")) == {"hf_clidmu": hf_clidmu.__version__, "torch": "2.0"}
