"""A dataset after a report: marked, thinned or relabelled, and people have the last word."""

import datasets
import numpy as np
import pandas
import pytest
from known_labels import NAMES

from hf_clidmu.report import apply_report


HEAD = "index,given_label,decision,new_label\n"


@pytest.fixture(scope="module")
def dataset(noisy):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"text": [f"sample {row}" for row in range(len(noisy.given_N))], "label": noisy.given_N.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def decided(table, **marks):
    """Decisions as the page writes them: row -> (decision, new label)."""
    rows = [int(row[1:]) for row in marks]
    words, new = zip(*marks.values(), strict=True)
    given = table["given_label"].to_numpy()[rows]
    return pandas.DataFrame({"index": rows, "given_label": given, "decision": words, "new_label": list(new)})


def test_annotating_changes_no_row_and_no_label(dataset, noisy_report):
    marked = apply_report(dataset, noisy_report)
    assert marked["label"][:] == dataset["label"][:]
    assert marked["text"][:] == dataset["text"][:]
    assert marked.features["label"] == dataset.features["label"]
    assert marked["is_label_issue"][:] == noisy_report.table["is_label_issue"].tolist()
    np.testing.assert_allclose(marked["p_wrong"][:], noisy_report.table["p_wrong"])


def test_dropping_and_relabelling_mend_labels(dataset, noisy, noisy_report):
    wrong_before = noisy.wrong_N.mean()
    dropped = apply_report(dataset, noisy_report, "drop")
    rows = [int(text.split()[1]) for text in dropped["text"]]
    assert len(dropped) == len(dataset) - noisy_report.table["is_label_issue"].sum()
    assert noisy.wrong_N[rows].mean() < wrong_before / 4
    relabelled = apply_report(dataset, noisy_report, "relabel")
    assert len(relabelled) == len(dataset)
    assert relabelled.features == dataset.features
    assert (np.array(relabelled["label"][:]) != noisy.true_N).mean() < wrong_before / 3


def test_suggested_relabels_what_is_clear_and_leaves_out_the_rest(dataset, noisy_report):
    counts = noisy_report.table["suggestion"].value_counts()
    mended = apply_report(dataset, noisy_report, "suggested")
    assert len(mended) == len(dataset) - counts.get("review", 0)
    rows = [int(text.split()[1]) for text in mended["text"]]
    assert mended["label"][:] == noisy_report.table["suggested_label"].to_numpy()[rows].tolist()


@pytest.mark.parametrize(("budget", "rows"), [(10, 10), (0.25, 300), (0, 0), (10**6, 1200)])
def test_a_budget_takes_the_most_suspect(dataset, noisy_report, budget, rows):
    kept = apply_report(dataset, noisy_report, "drop", budget=budget)
    assert len(kept) == len(dataset) - rows
    left_out = set(range(len(dataset))) - {int(text.split()[1]) for text in kept["text"]}
    assert left_out == set(noisy_report.suspects(rows)["index"])


def test_threshold_and_budget_both_limit(dataset, noisy_report):
    above = int((noisy_report.table["p_wrong"] > 0.9).sum())
    assert len(apply_report(dataset, noisy_report, "drop", threshold=0.9)) == len(dataset) - above
    assert len(apply_report(dataset, noisy_report, "drop", threshold=0.9, budget=5)) == len(dataset) - 5
    assert len(apply_report(dataset, noisy_report, "drop", threshold=0.9, budget=0.9)) == len(dataset) - above


def test_decisions_win(dataset, noisy_report):
    table = noisy_report.table
    issue = table.index[table["is_label_issue"]][:3].tolist()
    fine = table.index[~table["is_label_issue"]][:2].tolist()
    new = (int(table["given_label"][fine[0]]) + 1) % 4
    marks = {
        f"r{issue[0]}": ("right", ""),
        f"r{issue[1]}": ("unsure", ""),
        f"r{fine[0]}": ("wrong", str(new)),
        f"r{fine[1]}": ("wrong", ""),
    }
    decisions = decided(table, **marks)
    kept = {int(text.split()[1]) for text in apply_report(dataset, noisy_report, "drop", decisions=decisions)["text"]}
    assert {issue[0], issue[1]} <= kept
    assert not {fine[0], fine[1], issue[2]} & kept
    mended = apply_report(dataset, noisy_report, "suggested", decisions=decisions)
    labels = dict(zip([int(text.split()[1]) for text in mended["text"]], mended["label"][:], strict=True))
    assert labels[fine[0]] == new
    assert fine[1] not in labels  # wrong, and nobody knows what else
    assert labels[issue[0]] == table["given_label"][issue[0]]


def test_reports_are_read_from_files(dataset, noisy_report, tmp_path):
    noisy_report.save(tmp_path)
    want = len(apply_report(dataset, noisy_report, "drop"))
    for source in (tmp_path, tmp_path / "label_report.csv", str(tmp_path / "label_report.parquet"), noisy_report.table):
        assert len(apply_report(dataset, source, "drop")) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "delete"}, "policy must be one of 'annotate', 'drop', 'relabel', 'suggested', got 'delete'"),
        ({"threshold": 1.5}, r"threshold must lie in 0\.\.1"),
        ({"budget": -1}, "budget must be a number of rows"),
        ({"budget": 2.5}, "budget must be a number of rows"),
        ({"label_column": "labels"}, "no column 'labels'; its columns: 'text', 'label'"),
        ({"rows": 7}, "the report is of 1200 rows, the dataset has 7"),
        ({"shift": True}, "the report saw other labels in rows 0"),
    ],
)
def test_what_makes_no_sense_is_an_error(dataset, noisy_report, change, message):
    change = dict(change)
    if "rows" in change:
        dataset = dataset.select(range(change.pop("rows")))
    if change.pop("shift", False):
        labels = [(label + 1) % 4 for label in dataset["label"]]
        dataset = dataset.remove_columns("label").add_column("label", labels)
    with pytest.raises(ValueError, match=message):
        apply_report(dataset, noisy_report, **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,given_label\n0,0\n", "lacks decision, new_label"),
        (HEAD + "0,{0},perhaps,\n", "found 'perhaps'"),
        (
            HEAD + "0,{0},wrong,9\n",
            r"new_label must lie in 0\.\.3; it does not in row 0",
        ),
        (
            HEAD + "0,{0},wrong,cat\n",
            "new_label holds no whole number in row 0, but 'cat'",
        ),
        (HEAD + "5000,0,wrong,\n", "row 5000 of a dataset of 1200 rows"),
        (HEAD + "0,{0},wrong,\n0,{0},right,\n", "speak twice of row 0"),
        (HEAD + "0,{1},wrong,\n", "other labels in row 0"),
    ],
)
def test_decisions_that_do_not_fit_are_errors(dataset, noisy, noisy_report, tmp_path, text, message):
    given = int(noisy.given_N[0])
    path = tmp_path / "decisions.csv"
    path.write_text(text.format(given, (given + 1) % 4))
    with pytest.raises(ValueError, match=message):
        apply_report(dataset, noisy_report, "drop", decisions=path)
