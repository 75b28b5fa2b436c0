"""Comparisons: a grid is run once, its tables and figures say what its file says."""

import json
import os

import pytest
from recipe_scripts import RECIPES, recipe


compare, results_table = recipe("compare"), recipe("results_table")


def results(last, selected, auroc=0.75, seconds=10.0, **more):
    rows = {"last": last, "selected": selected, **more}
    return {
        "results": {name: {"test_accuracy": value} for name, value in rows.items() if value is not None},
        "suspects_auroc": auroc,
        "train_seconds": seconds,
    }


def cell(corpus, method, seed, *values, **more):
    return {"corpus": corpus, "method": method, "seed": seed, **results(*values, **more)}


# ---- tables ----------------------------------------------------------------------------------------------------------


CELLS = [
    cell("A", "CE", 0, 0.5, 0.70, 0.80, 10.0, ensemble=0.71, oracle_best=0.9),
    cell("A", "CE", 1, 0.6, 0.74, 0.90, 13.0, ensemble=0.75, oracle_best=0.9),
    cell("A", "CE", 2, 0.7, 0.78, 1.00, 16.0, ensemble=0.79, oracle_best=0.9),
    cell("A", "ours", 0, 0.5, 0.80, None, 20.0),
    cell("B | x", "CE", 0, 0.25, None, None, 7.4),
]


def test_the_table_shows_mean_and_deviation_over_seeds():
    lines = results_table.table(CELLS).split("\n")
    names = ["last step", "selected", "ensemble", "oracle best", "wrong labels found, AUROC", "seconds"]
    assert lines[0] == f"| corpus | method | seeds | {' | '.join(names)} |"
    assert lines[2] == "| A | CE | 3 | 60.0 ± 10.0 | 74.0 ± 4.0 | 75.0 ± 4.0 | 90.0 ± 0.0 | 0.900 ± 0.100 | 13 ± 3 |"
    assert lines[3] == "|  | ours | 1 | 50.0 | **80.0** |  |  |  | 20 |"
    assert len(lines) == 5


def test_the_rank_correlation_of_clid_and_accuracy():
    rows = [{"clid": clid, "test_accuracy": score} for clid, score in ((4.0, 0.1), (3.0, 0.3), (2.0, 0.2), (1.0, 0.9))]
    text = results_table.table([{**CELLS[0], "evaluations": rows}, {**CELLS[1], "evaluations": rows[::-1]}])
    assert "CLID and accuracy, Spearman" in text and "| 0.80 ± 0.00 |" in text
    untracked = results_table.table([{**CELLS[0], "evaluations": [{"clid": 1.0}] * 5}])
    assert "Spearman" not in untracked


def run_of(method, seed, last, selected, corpus="films"):
    scores = {"last": {"test_accuracy": last}, "selected": {"test_accuracy": selected}}
    return {"corpus": corpus, "method": method, "seed": seed, "results": scores}


def test_the_summary_sets_our_selected_state_against_the_last_of_cross_entropy_and_the_best_rival(tmp_path):
    cells = [
        *(run_of("cross-entropy", seed, last, 0.9) for seed, last in enumerate((0.5, 0.6))),
        *(run_of("GCE, stopped early", seed, 0.99, 0.61) for seed in range(2)),
        *(run_of("ELR, stopped early", seed, 0.1, value) for seed, value in enumerate((0.6, 0.64))),
        *(run_of("CLID-MU (vri)", seed, 0.2, value) for seed, value in enumerate((0.7, 0.8))),
    ]
    page = "<!-- summary: a.json b.json -->\n<!-- /summary -->"
    (tmp_path / "a.json").write_text(json.dumps({"cells": cells}))
    (tmp_path / "b.json").write_text(json.dumps({"cells": [run_of("cross-entropy", 0, 0.3, 0.4, "news")]}))
    new = results_table.rendered(page, tmp_path)
    assert new.split("\n")[1:-1] == [
        "| corpus | seeds | cross-entropy, last step | best of those stopped early | CLID-MU, selected "
        "| against cross-entropy |",
        "| --- | --- | --- | --- | --- | --- |",
        "| films | 2 | 55.0 ± 7.1 | 62.0 ± 2.8 (ELR) | 75.0 ± 7.1 | +20.0 |",
        "| news | 0 | 30.0 |  |  |  |",
    ]
    assert results_table.rendered(new, tmp_path) == new


def test_a_page_is_rendered_from_the_files_it_names(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"cells": CELLS[:1]}))
    page = "Before\n<!-- results: a.json -->\nold\n<!-- /results -->\nafter\n"
    new = results_table.rendered(page, tmp_path)
    assert new == f"Before\n<!-- results: a.json -->\n{results_table.table(CELLS[:1])}\n<!-- /results -->\nafter\n"
    assert results_table.rendered(new, tmp_path) == new


def test_costs_are_a_line_a_mode_and_a_column_a_model(tmp_path):
    def figures(**modes):
        values = {"cpu_time": {"median": 1.234}, "peak_memory": 1.5}
        return {"modes": {mode.replace("_", ", "): values for mode in modes}}

    document = {"models": {"small": figures(head_batch=1, new=1), "large": figures(new=1)}}
    (tmp_path / "a.json").write_text(json.dumps(document))
    lines = results_table.rendered("<!-- cost: a.json -->\n<!-- /cost -->", tmp_path).split("\n")
    assert lines[1:-1] == [
        "| mode | small | large |",
        "| --- | --- | --- |",
        '| head, judged on the running batch (`meta_source="batch"`) | 1.23 (1.50) |  |',
        "| new | 1.23 (1.50) | 1.23 (1.50) |",
    ]


def test_a_table_of_an_unknown_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no table is called 'reslts'; known: results, "):
        results_table.rendered("<!-- reslts: a.json -->\n<!-- /reslts -->", tmp_path)


def test_the_tables_of_the_pages_are_up_to_date():
    results_table.main(["--check"])


def test_every_results_file_names_its_command_and_its_grid_is_there():
    for path in sorted((RECIPES / "benchmarks").glob("*.json")):
        document = json.loads(path.read_text())
        if "cells" in document:
            assert (RECIPES.parent / document["command"].split()[2]).is_file(), path
            assert all(len(entry["versions"]) >= 4 for entry in document["cells"]), path


# ---- grids -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "corpora:\n  A: {dataset: a, max_steps: 5}\nmethods:\n  CE: {weighting: none}\n  ours:\nseeds: [0, 1]\n"
    )
    return path


def faked(monkeypatch, ran, fails=()):
    def run_cell(given, kept, jobs):
        ran.append((given["method"], given["seed"]))
        if ran[-1] in fails:
            raise compare.CellFailed("it broke")
        return {**given, **results(0.5, 0.5 + given["seed"] / 10), "versions": {}}

    monkeypatch.setattr(compare, "run_cell", run_cell)


def test_a_finished_cell_is_never_run_again(grid, tmp_path, monkeypatch, capsys):
    output, ran = tmp_path / "results.json", []
    faked(monkeypatch, ran, fails=[("CE", 1)])
    with pytest.raises(SystemExit, match="it broke"):
        compare.main([str(grid), "--output", str(output)])
    kept = json.loads(output.read_text())
    assert [(entry["method"], entry["seed"]) for entry in kept["cells"]] == [("CE", 0), ("ours", 0), ("ours", 1)]
    assert kept["cells"][0]["arguments"] == {"dataset": "a", "max_steps": 5, "weighting": "none", "seed": 0}
    ran.clear()
    faked(monkeypatch, ran)
    compare.main([str(grid), "--output", str(output)])
    assert ran == [("CE", 1)]
    before = output.read_bytes()
    compare.main([str(grid), "--output", str(output)])
    assert len(ran) == 1 and output.read_bytes() == before
    assert "|  | ours | 2 | 50.0 ± 0.0 | **55.0 ± 7.1** |" in capsys.readouterr().out
    assert kept["command"] == f"python recipes/compare.py {grid}"


def test_pairs_that_make_no_sense_are_left_out(grid, tmp_path, monkeypatch):
    grid.write_text(grid.read_text() + "skip: [[A, CE]]\n")
    ran = []
    faked(monkeypatch, ran)
    compare.main([str(grid), "--output", str(tmp_path / "results.json")])
    assert ran == [("ours", 0), ("ours", 1)]


def test_only_the_cells_that_were_asked_for_run(grid, tmp_path, monkeypatch):
    ran = []
    faked(monkeypatch, ran)
    compare.main([str(grid), "--output", str(tmp_path / "results.json"), "--only", "A / (CE|none) / [1-9]"])
    assert ran == [("CE", 1)]
    compare.main([str(grid), "--output", str(tmp_path / "results.json")])
    assert sorted(ran) == [("CE", 0), ("CE", 1), ("ours", 0), ("ours", 1)]


def test_a_grid_without_seeds_is_an_error(grid, tmp_path):
    grid.write_text("corpora: {A: {}}\nmethods: {CE: {}}\n")
    with pytest.raises(SystemExit, match="lacks seeds"):
        compare.main([str(grid), "--output", str(tmp_path / "results.json")])


def test_a_cell_is_one_run_of_the_recipe_with_these_arguments(monkeypatch):
    runs = []
    kept = {
        **results(0.5, 0.6),
        "weights": "step 1",
        "peak_memory_mib": 1.0,
        "num_train_samples": 3,
        "noise": None,
        "versions": {},
    }
    kept["evaluations"] = [{"step": 1, "clid": 4.123456789}]

    def run_apart(words, said):
        runs.append((words, os.environ["OMP_NUM_THREADS"]))
        (said.parent / "results.json").write_text(json.dumps({**kept, "secret": 1}))
        return 0

    monkeypatch.setattr(compare, "run_apart", run_apart)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    given = {"corpus": "A", "method": "B", "seed": 1, "arguments": {"config": "x.yaml", "freeze": "", "seed": 1}}
    found = compare.run_cell(given, "kept", jobs=10**6)
    assert found == {**given, **kept, "evaluations": [{"step": 1, "clid": 4.12346}]}
    words, threads = runs[0]
    assert threads == "1"
    assert "--frozen_cache_dir kept --config x.yaml --freeze  --seed 1 --output_dir" in " ".join(words)


def test_a_cell_that_fails_says_which_it_is_and_why(tmp_path):
    given = {"corpus": "A", "method": "B", "seed": 1, "arguments": {"config": str(tmp_path / "none.yaml")}}
    with pytest.raises(compare.CellFailed, match=r"(?s)A, B, seed 1 ended with status 1: .*none\.yaml"):
        compare.run_cell(given, "kept")


def test_a_cell_sees_the_environment_of_its_own_moment(monkeypatch):
    """Runs are forked from a server that has started before."""
    for value in ("first_of_two", "second_of_two"):
        monkeypatch.setenv("HF_CLIDMU_SOME_DATA", f"/nowhere/{value}")
        given = {"corpus": "A", "method": "B", "seed": 1, "arguments": {"dataset": "${HF_CLIDMU_SOME_DATA}/x.csv"}}
        with pytest.raises(compare.CellFailed, match=f"/nowhere/{value}/x.csv"):
            compare.run_cell(given, "kept")


@pytest.mark.parametrize("path", sorted((RECIPES / "benchmarks").glob("*.yaml")), ids=lambda path: path.name)
def test_the_grids_of_the_repository_have_seeds_enough(path):
    assert len({entry["seed"] for entry in compare.cells_of(compare.read_grid(path))}) >= 3


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_a_figure_per_corpus(tmp_path):
    pytest.importorskip("matplotlib")
    figures = recipe("figures")
    rows = [{"step": step, "clid": 4.0 - step / 10, "test_accuracy": step / 10} for step in (5, 10)]
    cells = [
        {"corpus": name, "method": method, "seed": seed, "evaluations": rows}
        for name in ("A, 40 %", "B")
        for method in ("CE", "ours")
        for seed in (0, 1)
    ]
    paths = figures.figures(cells, tmp_path)
    assert [path.name for path in paths] == ["a_40.png", "b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    share, value_SE = figures.curves(cells[:2], "clid")
    assert share.tolist() == [0.5, 1.0] and value_SE.tolist() == [[3.5, 3.0]] * 2
    assert figures.curves(cells[:2], "weight_wrong")[1].size == 0
