"""The recipes: where arguments come from, one whole small run, and the grid of runs."""

import json
import re

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from recipe_scripts import RECIPES, recipe
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.data import load_corpus


GRIDS = sorted((RECIPES / "benchmarks").glob("*.yaml"))
CONFIGS = sorted(path for path in RECIPES.glob("*/*.yaml") if path not in GRIDS and path.parent.name != "accelerate")


arguments = recipe("arguments")
TYPES = (arguments.RunArguments, CLIDMUConfig)


def parse(*words, default=None):
    return arguments.parse(TYPES, ["--use_cpu", "true", *map(str, words)], default)


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_yaml_gives_defaults_and_the_command_line_wins(config_file):
    path = config_file(
        "dataset: here\nlearning_rate: 1e-3\nmax_steps: 7\nhflip: false\nweighting: wnet\nnoise_rate: 0.25\n"
    )
    run, config = parse("--config", path, "--max_steps", "9", "--weighting=free")
    assert (run.dataset, run.hflip, run.noise_rate, run.model) == ("here", False, 0.25, "test_resnet")
    assert (config.max_steps, config.weighting, config.temperature) == (9, "free", 0.5)
    assert isinstance(config.learning_rate, float)
    assert config.learning_rate == 1e-3
    assert config.eval_strategy == "steps"


def test_a_yaml_file_in_front_needs_no_option(config_file):
    path = config_file("learning_rate: 1e-3\nmax_steps: 5\n")
    _, config = arguments.parse(TYPES, [str(path), "--use_cpu", "true", "--max_steps", "9"], None)
    assert (config.learning_rate, config.max_steps) == (1e-3, 9)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_numbers_of_yaml_are_numbers(text, config_file):
    run, config = parse(
        "--config", config_file(f"learning_rate: {text}\ntest_size: {text}\nmeta_learning_rate: {text}")
    )
    assert config.learning_rate == config.meta_learning_rate == run.test_size == 1e-3


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("yes", True), ("'no'", False)])
def test_booleans_of_yaml_and_of_the_command_line(text, value, config_file):
    run, config = parse("--config", config_file(f"clean_meta: {text}\nkeep_ledger: {text}"))
    assert run.clean_meta is config.keep_ledger is value
    run, config = parse("--config", config_file(f"clean_meta: {text}"), "--clean_meta", str(not value).lower())
    assert run.clean_meta is not value
    assert parse("--dry_run")[0].dry_run is True


def test_null_and_empty_files(config_file):
    assert parse("--config", config_file("meta_size: null\nlabel_column: ~"))[1].meta_size is None
    assert parse("--config", config_file("# nothing\n"))[0] == arguments.RunArguments()


def test_an_unknown_name_in_a_file_names_the_nearest(config_file):
    path = config_file("learning_rat: 1e-3\nmodle: x\nweighting: none")
    with pytest.raises(SystemExit) as stopped:
        parse("--config", path)
    message = str(stopped.value)
    assert f"--config {path}" in message
    assert "unknown name 'learning_rat', did you mean 'learning_rate'?" in message
    assert "unknown name 'modle', did you mean 'model'?" in message
    assert "weighting" not in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weightng", "none"], "unknown argument '--weightng', did you mean '--weighting'?"),
        (["--weightng=none"], "unknown argument '--weightng=none', did you mean '--weighting'?"),
        (["--modle", "x", "--datset", "y"], "did you mean '--model'?; unknown argument '--datset', did you mean"),
        (["--zzzzzzzzzz"], "unknown argument '--zzzzzzzzzz'"),
        (["digits"], "digits"),
        (["--conf", "some.yaml"], "unknown argument '--conf', did you mean '--config'?"),  # else it is never read
        (["--max_step", "4"], "did you mean '--max_steps'?"),
        (["--config"], "expected one argument"),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--keep_ledger", "perhaps"], "perhaps"),
    ],
)
def test_an_unknown_argument_names_the_nearest(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold 'name: value' lines, found list"),
        ("just words", "found str"),
        ("a: [1, 2\nb: 3", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(text, message, config_file):
    with pytest.raises(SystemExit, match=message):
        parse("--config", config_file(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match=f"--config {tmp_path}/none.yaml: no such file"):
        parse(f"--config={tmp_path}/none.yaml")


def test_settings_that_do_not_go_together_are_an_error_in_one_line():
    with pytest.raises(SystemExit, match="^error: .*load_best_model_at_end"):
        parse("--load_best_model_at_end", "true", "--save_strategy", "steps", "--eval_strategy", "epoch")


def test_a_wrong_value_in_a_file_is_refused(config_file, capsys):
    with pytest.raises(SystemExit):
        parse("--config", config_file("max_steps: 2.5"))
    assert "--max_steps" in capsys.readouterr().err


def test_the_default_file_is_for_calls_that_do_not_say_what_to_run(config_file, tmp_path):
    default = config_file("dataset: default\nnoise_rate: 0.4")
    assert parse(default=default)[0].noise_rate == 0.4
    assert parse("--seed", "3", default=default)[0].dataset == "default"
    for words in (["--dataset", "other"], ["--dataset=other"], ["--model", "other"]):
        assert parse(*words, default=default)[0].noise_rate == 0.0
    other = tmp_path / "other.yaml"
    other.write_text("model: third")
    run, _ = parse("--config", other, default=default)
    assert (run.model, run.dataset, run.noise_rate) == ("third", "digits", 0.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_as_it_is_written(path):
    run, config = parse("--config", path)
    for name, value in yaml.safe_load(path.read_text()).items():
        found = getattr(run if hasattr(run, name) else config, name)
        assert found == (type(found)(value) if isinstance(found, float) else value), name
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_cell_of_every_grid_parses(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    grid = yaml.safe_load(path.read_text())
    for corpus in grid["corpora"].values():
        for method in grid["methods"].values():
            cell = {**corpus, **(method or {}), "seed": grid["seeds"][0]}
            run, config = parse(*(word for name, value in cell.items() for word in (f"--{name}", str(value))))
            for name in set(cell) & {"weighting", "clean_meta", "freeze", "max_steps", "track_test"}:
                assert getattr(run if hasattr(run, name) else config, name) == cell[name], name


# ---- train.py --------------------------------------------------------------------------------------------------------


def words(output_dir, **changes):
    values = {
        "dataset": "digits",
        "model": "test_resnet",
        "image_size": 32,
        "noise": "symmetric",
        "noise_rate": 0.4,
        "augment": "off",
        "max_train_samples": 64,
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_eval_batch_size": 256,
        "output_dir": output_dir,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value).replace("True", "true"))]


@pytest.fixture(scope="module")
def train():
    """main() of recipes/train.py; it turns the log down for its own process, not for the tests."""
    verbosity = transformers_logging.get_verbosity()
    yield recipe("train").main
    transformers_logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """One whole run: its folder and what main returned."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(words(folder))


def test_results_hold_every_row_of_the_table(run):
    folder, returned = run
    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert list(results["results"]) == ["last", "selected", "ensemble", "oracle_best"]
    for row in results["results"].values():
        assert set(row) == {"test_accuracy", "test_macro_f1"}
        assert all(0 <= value <= 1 for value in row.values())
    evaluations = results["evaluations"]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert results["results"]["last"]["test_accuracy"] == evaluations[-1]["test_accuracy"]
    best = min(evaluations, key=lambda entry: entry["clid"])
    assert results["results"]["selected"]["test_accuracy"] == best["test_accuracy"]
    assert results["results"]["oracle_best"]["test_accuracy"] == max(e["test_accuracy"] for e in evaluations)
    assert results["num_train_samples"] == 64
    assert results["noise"]["kind"] == "symmetric"
    assert 0 <= results["suspects_auroc"] <= 1
    assert results["arguments"]["max_steps"] == 4
    assert results["arguments"]["noise_rate"] == 0.4
    assert set(results["versions"]) >= {"torch", "transformers"}


def test_the_saved_model_is_the_selected_one_and_works_in_a_pipeline(run):
    folder, results = run
    classify = pipeline("image-classification", model=str(folder), top_k=1)
    corpus = load_corpus("digits", noise="symmetric", noise_rate=0.4, max_train_samples=64, seed=42)
    rows = list(range(0, len(corpus.test), 3))
    answers = classify([corpus.test["image"][row].convert("RGB") for row in rows], batch_size=64)
    assert {answer[0]["label"] for answer in answers} <= set(corpus.label_names)
    right = [a[0]["label"] == corpus.label_names[corpus.test["label"][r]] for a, r in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["results"]["selected"]["test_accuracy"], abs=0.1)
    assert classify(Image.new("L", (8, 8)))


@pytest.mark.parametrize("modality", ["text", "image"])
def test_samples_are_on_the_card_where_that_was_asked_for(modality, run, train, bert_folder, tmp_path):
    assert "believes least" not in (run[0] / "README.md").read_text()
    if modality == "text":
        rows = "".join(f"w{row} {'good' if row % 3 else 'bad'},{row % 2}\n" for row in range(60))
        (tmp_path / "films.csv").write_text(f"text,label\n{rows}")
        data = {"dataset": tmp_path / "films.csv", "model": bert_folder[0], "test_size": 0.2}
        data |= dict.fromkeys(("noise", "noise_rate", "image_size", "augment"))
    else:
        data = {}
    train(words(tmp_path / "run", card_examples=2, **data))
    card = (tmp_path / "run" / "README.md").read_text()
    lines = card.split("| sample | given | suggested |\n|---|---|---|\n")[1].split("\n")[:2]
    table = pyarrow.parquet.read_table(tmp_path / "run" / "ledger.parquet").to_pandas().sort_values("label_score")
    expected = table[table["given_label"] != table["predicted_label"]]["index"].head(2)
    for line, row in zip(lines, expected, strict=True):
        sample = line.split(" | ")[0].removeprefix("| ")
        assert re.fullmatch(r"w\d+ (good|bad)" if modality == "text" else f"row {row}", sample)


def test_the_ledger_is_beside_the_model(run):
    folder, _ = run
    table = pyarrow.parquet.read_table(folder / "ledger.parquet")
    assert {"index", "given_label", "label_score", "predicted_label"} <= set(table.column_names)
    assert 0 < table.num_rows <= 64
    assert sum(table["times_seen"].to_pylist()) == 4 * 32
    assert max(table["index"].to_pylist()) < 64


def test_a_finished_run_is_not_replaced_unasked(run, train):
    folder, _ = run
    before = (folder / "results.json").read_bytes()
    with pytest.raises(SystemExit, match=f"{folder} holds a finished run.*--overwrite true"):
        train(words(folder))
    assert (folder / "results.json").read_bytes() == before


def test_overwrite_replaces_it_and_without_a_weighting_it_is_cross_entropy(train, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    results = train(words(tmp_path, weighting="none", overwrite=True, max_steps=2, eval_steps=1))
    assert "method  cross-entropy" in capsys.readouterr().out
    assert results["arguments"]["weighting"] == "none"
    assert list(results["results"]) == ["last", "selected", "ensemble", "oracle_best"]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))


def test_a_dry_run_saves_nothing(train, tmp_path, capsys):
    assert train(words(tmp_path / "dry", dry_run=True)) == {}
    out = capsys.readouterr().out
    assert "Dry run: one step done, nothing saved." in out
    assert "64 train" in out
    assert "wrong labels: " in out
    assert not [path for path in (tmp_path / "dry").rglob("*") if path.is_file()]


@pytest.mark.parametrize("changes", [{"meta_size": 32}, {}], ids=["named", "default"])
def test_the_upper_reference_is_judged_by_true_labels(changes, train, tmp_path, capsys):
    results = train(words(tmp_path, clean_meta=True, max_steps=2, eval_steps=1, track_test="false", **changes))
    assert "objective=cross_entropy" in capsys.readouterr().out
    assert results["arguments"]["objective"] == "cross_entropy"
    assert results["arguments"]["meta_source"] == "dataset"
    assert list(results["results"]) == ["last", "selected", "ensemble"]  # nothing was tracked: no oracle


@pytest.mark.parametrize("name", ["dataset", "model"])
def test_an_environment_variable_that_is_not_set_is_named(name, train, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_CLIDMU_NOWHERE", raising=False)
    with pytest.raises(SystemExit, match=rf"error: {name}: \$\{{HF_CLIDMU_NOWHERE\}}/x names an environment variable"):
        train(words(tmp_path, **{name: "${HF_CLIDMU_NOWHERE}/x"}))


def test_without_an_output_dir_the_folder_is_named_after_the_dataset(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = words("unused", dry_run=True)
    at = given.index("--output_dir")
    train(given[:at] + given[at + 2 :])
    assert "output  outputs/digits" in capsys.readouterr().out


def test_environment_variables_and_home_are_expanded(monkeypatch):
    monkeypatch.setenv("HF_CLIDMU_DATA", "/somewhere")
    monkeypatch.setenv("HOME", "/home/nobody")
    expanded = recipe("train").expanded
    assert expanded("dataset", "${HF_CLIDMU_DATA}/x") == "/somewhere/x"
    assert expanded("dataset", "~/x") == "/home/nobody/x"


def test_a_stream_trains_from_the_command_line(train, tmp_path, capsys):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(24)]
    names = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features({"image": datasets.Image(), "label": names, "clean_label": names})
    rows = {"image": images, "label": [0, 1] * 12, "clean_label": [0, 1] * 12}
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = {
        "dataset": tmp_path / "data",
        "streaming": "true",
        "noise": None,
        "noise_rate": None,
        "max_train_samples": None,
    }
    train(words(tmp_path / "out", **given))
    assert "streamed train" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_train_samples"] is None and results["suspects_auroc"] is None
    assert set(results["results"]) >= {"last", "selected", "oracle_best"}
    with pytest.raises(SystemExit, match="noise need all rows"):
        train(words(tmp_path / "other", **{**given, "noise": "symmetric", "noise_rate": 0.2}))


def test_settings_are_chosen_on_the_validation_split(train, tmp_path, capsys):
    names = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    for split, size in (("train", 24), ("validation", 4), ("test", 10)):
        rows = {"image": [Image.new("L", (8, 8), 9 * row) for row in range(size)], "label": [0, 1] * (size // 2)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    given = {"dataset": tmp_path / "data", "noise": None, "noise_rate": None, "max_train_samples": None}
    train(words(tmp_path / "out", score_on="validation", **given))
    assert "24 train, 4 validation, 4 test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="score_on must be 'test' or 'validation', got 'train'"):
        train(words(tmp_path / "other", score_on="train", **given))
    (tmp_path / "data" / "validation.parquet").unlink()
    with pytest.raises(SystemExit, match="score_on='validation', but .* has no validation split"):
        train(words(tmp_path / "other", score_on="validation", **given))
