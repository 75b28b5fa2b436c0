"""The card: the whole text, its metadata, and what must never stand in it."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from recipe_scripts import recipe

from hf_clidmu.curves import draw_curves
from hf_clidmu.model_card import (
    CardFacts,
    Scores,
    add_results,
    eval_results,
    of_the_model,
    plain,
    render_card,
    write_card,
)


REPOSITORY = Path(__file__).resolve().parents[1]
cards = recipe("cards")


def facts(**changes):
    given = {
        "model_name": "films", "repo_id": "alice/films", "weights": "step 12, selected by CLID",
        "base_model": "google-bert/bert-base-uncased", "datasets": ["alice/reviews"], "dataset_name": "Film reviews",
        "license": "mit", "language": "en", "labels": ["bad", "good"], "num_train_samples": 12345,
        "noise_kind": "symmetric", "noise_rate": 0.4, "noise_estimate": 0.385, "confused": [("bad", "good", 2345)],
        "settings": {"learning_rate": 1e-3}, "method": "CLID-MU.", "label_free": True,
        "results": [Scores("last step", {"accuracy": 0.7, "macro_f1": 0.69}),
                    Scores("selected by CLID", {"accuracy": 0.8, "macro_f1": 0.79}, True)],
        "evaluations": [{"step": 6, "clid": 4.5, "accuracy": 0.7}, {"step": 12, "clid": 4.4, "accuracy": 0.8}],
        "versions": {"torch": "2.11"},
    }  # fmt: skip
    return CardFacts(**{**given, **changes})


EXPECTED = """\
---
base_model: google-bert/bert-base-uncased
datasets:
- alice/reviews
language: en
library_name: transformers
license: mit
metrics:
- accuracy
- f1
pipeline_tag: text-classification
tags:
- hf_clidmu
- clid-mu
- noisy-labels
model-index:
- name: films
  results:
  - task:
      type: text-classification
    dataset:
      name: Film reviews
      type: alice/reviews
      split: test
    metrics:
    - type: accuracy
      value: 0.8
      name: Accuracy
    - type: f1
      value: 0.79
      name: Macro F1
---

# films

A text classifier of 2 classes, trained with
[hf_clidmu](https://arxiv.org/abs/2507.11807) on labels that are partly wrong.
No clean label was used to train it or to choose it.
These are the weights of step 12, selected by CLID.

## Use

```python
from transformers import pipeline
classify = pipeline("text-classification", model="alice/films")
print(classify("some text"))
```

Classes: bad, good.

## The labels

| | |
|---|---|
| data | Film reviews |
| training samples | 12,345 |
| wrong labels, known | 40.0 % (symmetric) |
| labels that the run does not believe | 38.5 % |

Most often the run believes another class than the one that was given:

| given | believed | samples |
|---|---|---|
| bad | good | 2,345 |

## What was done

CLID-MU.
It starts from `google-bert/bert-base-uncased`.

<details><summary>Settings other than the defaults</summary>

| setting | value |
|---|---|
| learning\\_rate | 0.001 |

</details>

## Results

On the test split.

| state of the run | Accuracy | Macro F1 |
|---|---|---|
| last step | 0.7000 | 0.6900 |
| selected by CLID (this model) | 0.8000 | 0.7900 |

![CLID and accuracy over the steps of the run](clidmu/curves.png)

## Limits
"""


def test_the_whole_card():
    card = str(render_card(facts(), has_curves=True))
    assert card.startswith(EXPECTED)
    rest = card[len(EXPECTED) :]
    assert rest.endswith("  note      = {arXiv:2507.11807}\n}\n```\n")
    assert re.findall("^## .*", rest, re.MULTILINE) == ["## Versions", "## Citation"]
    assert "torch 2.11" in rest


def test_a_card_of_nothing_says_nothing_that_is_not_known():
    card = render_card(CardFacts())
    text = str(card)
    assert card.data.eval_results is None
    assert "model-index" not in text
    assert "Nothing was measured on labels that were held out." in text
    assert "nobody knows how many" in text
    for absent in ("None", "nan", "No clean label", "weights of", "Classes:", "Cost", "![", "Settings", "It starts"):
        assert absent not in text.split("## Citation")[0], absent


@pytest.mark.parametrize("name", cards.EXAMPLES)
def test_the_examples_are_up_to_date_and_whole(name, monkeypatch):
    monkeypatch.setenv("HF_CLIDMU_MINILM", "")
    text = (REPOSITORY / "model_cards" / name).read_text(encoding="utf8")
    assert text == str(render_card(cards.example(name))), "run python recipes/cards.py"
    card = ModelCard(text)
    assert card.data.pipeline_tag == name.removesuffix(".md")
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "f1"}
    assert all(math.isfinite(result.metric_value) for result in card.data.eval_results)
    assert "/home" not in text
    assert "/work" not in text


def test_metadata_survives_a_round_trip():
    card = render_card(facts())
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.eval_results == eval_results(facts())
    front = yaml.safe_load(str(card).split("---")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.8


def test_only_what_was_measured_of_this_model_is_in_the_metadata():
    odd = {"accuracy": np.float32(0.5), "macro_f1": math.nan, "loss": 1.0}
    (result,) = eval_results(facts(results=[Scores("a", {"accuracy": 0.9}), Scores("b", odd, True)]))
    assert (result.metric_type, result.metric_value, type(result.metric_value)) == ("accuracy", 0.5, float)
    assert "!!python" not in str(render_card(facts(results=[Scores("b", odd, True)])))
    assert eval_results(facts(results=[Scores("a", {"accuracy": 0.9})])) == []


def test_text_of_others_cannot_change_the_card():
    evil = "</td><script>alert(1)</script> | [x](http://y) `code` {{ 7 * 7 }} {% raw %}\n## Results\n"
    text = str(
        render_card(facts(labels=[evil], examples=[(evil, evil, evil)], dataset_name=evil, settings={evil: evil}))
    )
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "49" not in body
    assert body.count("\n## Results") == 1
    assert "\\[x\\]" in body
    (row,) = [line for line in body.split("\n") if line.startswith("| \\<") and line.count(" | ") == 4 - 2]
    assert re.sub(r"\\\|", "", row).count("|") == 4
    assert len(plain("x" * 1000)) == 200


def test_settings_of_the_machine_stay_here():
    settings = {
        "output_dir": "/home/me/run", "frozen_cache_dir": "cache", "hub_token": "<HUB_TOKEN>", "logging_steps": 3,
        "report_to": ["wandb"], "dataset": "/home/me/data.csv", "noise_map": "/home/me/map", "learning_rate": 1e-3,
        "weighting": "wnet", "freeze": "backbone", "run_name": "mine", "use_cpu": True, "lookahead_lr": None,
    }  # fmt: skip
    assert of_the_model(settings) == {"learning_rate": 1e-3, "weighting": "wnet", "freeze": "backbone"}


def test_a_base_model_of_this_machine_is_not_named(tmp_path):
    card = render_card(facts(base_model=str(tmp_path)))
    assert card.data.base_model is None


def test_a_choice_that_is_not_to_be_trusted_is_marked():
    assert "not to be trusted" in str(render_card(facts(alignment=0.4)))
    assert "not to be trusted" not in str(render_card(facts(alignment=5.0)))
    assert "have 31 % of" in str(render_card(facts(clustering=0.312)))
    assert "CLID did not choose" not in str(render_card(facts()))


def test_card_curves_and_facts_are_written_together(tmp_path):
    pytest.importorskip("matplotlib")
    write_card(facts(peak_memory_mib=math.nan, noise_rate=np.float64(0.25)), tmp_path)
    assert sorted(os.listdir(tmp_path / "clidmu")) == ["curves.png", "results.json"]
    assert (tmp_path / "clidmu" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](clidmu/curves.png)" in (tmp_path / "README.md").read_text()
    values = json.loads((tmp_path / "clidmu" / "results.json").read_text())
    assert (values["peak_memory_mib"], values["noise_rate"]) == (None, 0.25)
    assert CardFacts.from_dict(values).results == facts().results
    assert draw_curves([{"step": 1, "clid": 4.0}], tmp_path / "one.png") is False


def test_figures_are_added_to_a_card_that_is_there():
    card = ModelCard(str(render_card(facts())))
    new = EvalResult("text-classification", "alice/other", "Other", "f1", 0.5, dataset_split="test")
    add_results(card, [new], "Other | test | 100 | f1 0.5")
    add_results(card, [new], "Other | test | 100 | f1 0.5")  # once more is the same
    same = EvalResult(
        "text-classification", "alice/reviews", "Film reviews", "accuracy", 0.81, dataset_split="test",
        metric_name="Accuracy",
    )  # fmt: skip
    add_results(card, [same], "Film reviews | test | 50 | accuracy 0.81")
    again = ModelCard(str(card))
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in again.data.eval_results}
    assert found == {("Film reviews", "accuracy"): 0.81, ("Film reviews", "f1"): 0.79, ("Other", "f1"): 0.5}
    assert str(again).count("| Other | test | 100 | f1 0.5 |") == 1
    assert str(again).count("## Evaluated later") == 1


def test_the_template_ships_with_the_package():
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf8")
    assert '"model_cards/template.md" = "hf_clidmu/model_cards/template.md"' in pyproject
    assert (REPOSITORY / "model_cards" / "template.md").is_file()
