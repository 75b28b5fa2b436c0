"""recipes/report.py: from a run's folder, and from a checkpoint that never saw this library's trainer."""

import json

import numpy as np
import pandas
import pytest
from recipe_scripts import recipe
from transformers import AutoConfig, BertModel

from hf_clidmu.ledger import Ledger
from hf_clidmu.report import LabelReport


report_recipe = recipe("report")
ROWS = 60


@pytest.fixture
def corpus_file(tmp_path):
    """Texts whose labels are by the word in them, some of them wrong; the second class comes first."""
    words = ["good", "bad"] * (ROWS // 2)
    labels = ["bad" if (word == "bad") != (row % 10 == 0) else "good" for row, word in enumerate(words)]
    texts = [f"a very {word} film" for word in words]
    path = tmp_path / "films.csv"
    pandas.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return path


def named(folder, *names):
    config = AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    config.save_pretrained(folder)


def test_any_checkpoint_and_corpus(bert_folder, corpus_file, tmp_path, capsys):
    folder, _ = bert_folder
    named(folder, "bad", "good")
    words = ["--model", folder, "--dataset", corpus_file, "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    report = report_recipe.main([*map(str, words), "--page", "false", "--neighbours", "3"])
    assert report.label_names == ["bad", "good"]
    assert len(report.table) == ROWS
    assert "weight" not in report.table
    assert LabelReport.load(tmp_path / "out").table.equals(report.table)
    assert not (tmp_path / "out" / "label_report.html").exists()
    assert "estimated noise rate" in capsys.readouterr().out

    # The same classes in another order are the same classes.
    named(folder, "good", "bad")
    turned = report_recipe.main([*map(str, words), "--page", "false", "--neighbours", "3"])
    np.testing.assert_allclose(turned.table["self_confidence"], 1 - report.table["self_confidence"], rtol=1e-5)


def test_a_run_brings_corpus_noise_and_ledger_along(bert_folder, corpus_file):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    folder, _ = bert_folder
    named(folder, "bad", "good")
    # The model is the one in the folder, not the one that training began with.
    arguments = {
        "model": "elsewhere",
        "dataset": str(corpus_file),
        "noise": "symmetric",
        "noise_rate": 0.2,
        "seed": 7,
        "learning_rate": 1.0,
    }
    evaluations = [{"step": 1, "clid": 4.0}, {"step": 2, "clid": 3.9}]
    (folder / "results.json").write_text(json.dumps({"arguments": arguments, "evaluations": evaluations}))
    options, run = report_recipe.parse([str(folder), "--use_cpu=true"])
    assert (run.noise, run.noise_rate, options.seed, options.output_dir) == ("symmetric", 0.2, 7, str(folder))
    labels = np.array(report_recipe.load(run, options).train["label"])
    ledger = Ledger(ROWS)
    ledger._columns["times_seen"].fill_(1)
    ledger._columns["given_label"][:] = ledger._columns["given_label"].new_tensor(labels)
    ledger.save(folder / "ledger.parquet")
    report = report_recipe.main([str(folder), "--use_cpu=true"])
    assert (report.table["given_label"] == labels).all()
    assert (report.table["weight"] == 0).all()
    written = {path.name for path in folder.glob("label_report*")}
    kinds = {"label_report.parquet", "label_report.csv", "label_report.json", "label_report.html"}
    assert written == kinds | {f"label_report_{name}.png" for name in ("confusions", "histogram", "curves")}


def test_a_run_above_a_frozen_encoder_is_reported_on_without_the_encoder(bert_folder, corpus_file, tmp_path):
    folder, _ = bert_folder
    given = {"model": folder, "dataset": corpus_file, "freeze": "backbone", "frozen_cache_dir": tmp_path / "kept"}
    given |= {"output_dir": tmp_path / "run", "max_steps": 2, "use_cpu": True, "max_length": 16}
    recipe("train").main([word for name, value in given.items() for word in (f"--{name}", str(value))])
    kept = sorted((tmp_path / "kept").iterdir())
    words = [str(tmp_path / "run"), "--use_cpu=true", "--page=false", "--neighbours=3"]
    report = report_recipe.main(words)
    assert sorted((tmp_path / "kept").iterdir()) == kept  # nothing had to be added
    again = report_recipe.main([*words, "--frozen_cache_dir", str(tmp_path / "elsewhere")])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    for name in ("p_wrong", "self_confidence", "linear_confidence"):
        np.testing.assert_allclose(again.table[name], report.table[name], rtol=1e-3, atol=1e-5)
    options, run = report_recipe.parse(words)
    seen = report_recipe.observe(report_recipe.load(run, options), run, options)
    options.frozen_cache_dir = None
    plain = report_recipe.observe(report_recipe.load(run, options), run, options)
    np.testing.assert_allclose(seen.logits_NC, plain.logits_NC, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(seen.general_ND, plain.general_ND, rtol=1e-3, atol=1e-5)
    options.frozen = False  # as a model that trained throughout: its general features are those halfway up
    trained = report_recipe.observe(report_recipe.load(run, options), run, options)
    assert plain.middle_ND is None and trained.middle_ND is not None
    np.testing.assert_array_equal(trained.general_ND, trained.middle_ND)


def test_what_cannot_be_reported_on_is_a_clean_error(bert_folder, corpus_file, tmp_path):
    folder, _ = bert_folder
    given = ["--dataset", str(corpus_file), "--output_dir", str(tmp_path / "out"), "--page", "false"]
    with pytest.raises(SystemExit, match="name the folder of a run"):
        report_recipe.main(given)
    with pytest.raises(SystemExit, match="is no finished run"):
        report_recipe.main([str(tmp_path)])
    named(folder, "cat", "dog")
    with pytest.raises(SystemExit, match="tells cat, dog apart, the corpus has bad, good"):
        report_recipe.main(["--model", str(folder), *given])
    BertModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    with pytest.raises(SystemExit, match="is no trained classifier"):
        report_recipe.main(["--model", str(tmp_path / "encoder"), *given])
    with pytest.raises(SystemExit, match="cannot read the model"):
        report_recipe.main(["--model", str(tmp_path / "nothing"), *given])


def test_the_detection_benchmark_takes_up_the_same_run_and_no_other(tmp_path, monkeypatch):
    detection = recipe("detection", "benchmarks")
    ran = []
    monkeypatch.setattr(detection.train, "main", lambda words: ran.append(words) or {"run": len(ran)})
    first = detection.run({"seed": 1}, tmp_path)
    assert detection.run({"seed": 1}, tmp_path) == first
    assert len(ran) == 1
    assert detection.run({"seed": 2}, tmp_path)[0] == {"run": 2}


def test_the_detection_benchmark_measures_the_report_anew_and_keeps_its_peers(tmp_path, monkeypatch):
    detection = recipe("detection", "benchmarks")
    grid, output = tmp_path / "grid.yaml", tmp_path / "results.json"
    grid.write_text("corpora: {a: {dataset: x}, b: {dataset: y}}\nseeds: [1]\n")
    cell = {"noise_rate": 0.0, "estimated": 0.0, "flagged": 0.0, "calibration_error": 0.0}
    cell |= {"scores": {}, "accuracy": {"given": 0.5}, "seconds": {"report": 1.0}}
    asked = []

    def run_cell(given, place, known=None):
        asked.append((given["dataset"], known and known["corpus"]))
        return {**cell, "estimated": len(asked)}

    monkeypatch.setattr(detection, "run_cell", run_cell)
    words = [str(grid), "--output", str(output)]
    detection.main(words)
    detection.main(words)
    detection.main([*words, "--again", "--only", "^b"])
    assert asked == [("x", None), ("y", None), ("y", "b")]
    assert [(c["corpus"], c["estimated"]) for c in json.loads(output.read_text())["cells"]] == [("a", 1), ("b", 3)]


def test_the_detection_benchmark_scores_and_tabulates():
    detection = recipe("detection", "benchmarks")
    wrong_N = np.array([True, True, False, False])
    figures = detection.score([0.9, 0.4, 0.6, 0.1], [True, False, False, False], wrong_N)
    assert figures == {"flagged": 0.25, "auroc": 0.75, "ap": pytest.approx(5 / 6), "f1": pytest.approx(2 / 3)}
    assert detection.score([0.1] * 4, [False] * 4, np.zeros(4, dtype=bool))["auroc"] is None
    assert detection.calibration_error(np.array([0.0, 0.0, 0.95, 0.95]), wrong_N) == pytest.approx(0.975)
    cell = {
        "corpus": "films",
        "noise_rate": 0.5,
        "estimated": 0.4,
        "flagged": 0.25,
        "calibration_error": 0.1,
        "scores": {"report": figures},
        "accuracy": {"given": 0.5, "drop": 0.6, "relabel": 0.7, "suggested": None},
        "seconds": {"report": 3.2},
    }
    text = detection.detection_table([cell, {**cell, "estimated": 0.6}])
    assert "| AUROC | films |" in text
    assert "| report | 0.750 ± 0.000 |" in text
    assert "| estimated | 50.0 ± 14.1 |" in text
    assert "| suggested |  |" in text
    assert "| report | 3 ± 0 |" in text
