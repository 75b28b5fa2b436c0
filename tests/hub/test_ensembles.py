"""An ensemble as one repository: pushed, loaded, and averaging as the trainer does."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import CLASSES, WORDS, inputs, logits_of, tiny_run
from transformers import pipeline

from hf_clidmu.ensembles import EnsemblePipeline


pytestmark = pytest.mark.parametrize("transport", ["lfs"], indirect=True)


def test_what_is_pushed_is_what_the_trainer_predicts_with(hub, tmp_path):
    trainer = tiny_run("bert", tmp_path / "run", snapshot_mode="ensemble")
    trainer.train()
    expected = np.exp(trainer.predict(inputs("bert", 4)).predictions)
    best = logits_of(trainer.model, "bert")
    trainer.push_to_hub()
    steps = [snapshot.step for snapshot in trainer.snapshots.kept]
    shutil.rmtree(tmp_path / "run")
    files = hub.repositories["alice/run"].head.files
    assert json.loads(files["ensemble.json"].read()) == {"version": 1, "members": 3, "steps": steps}
    assert {name.split("/")[0] for name in files if "/" in name} == {"clidmu", "member-0", "member-1", "member-2"}

    classify = EnsemblePipeline("alice/run", "text-classification")
    texts = [" ".join(WORDS[token] for token in sample["input_ids"]) for sample in inputs("bert", 4)]
    found = classify(texts)
    by_class = np.array([[{one["label"]: one["score"] for one in row}[name] for name in CLASSES] for row in found])
    np.testing.assert_allclose(by_class, expected, atol=1e-6)
    assert all(row[0]["score"] >= row[1]["score"] for row in found)
    assert classify(texts[0]) == found[0]
    assert classify(texts, top_k=1) == [row[:1] for row in found]

    single = pipeline("text-classification", model="alice/run").model  # nobody needs to know that it is an ensemble
    assert (logits_of(single, "bert") == best).all()


def test_what_is_no_ensemble_is_refused(hub, tmp_path):
    (tmp_path / "ensemble.json").write_text('{"version": 1, "members": 1000000}')
    with pytest.raises(ValueError, match="lists no members"):
        EnsemblePipeline(tmp_path, "text-classification")
    with pytest.raises(ValueError, match="task must be one of text-classification, image-classification"):
        EnsemblePipeline(tmp_path, "summarization")
