"""The table: its columns, its files, and that others can read it."""

import numpy as np
import pandas
import pytest
from known_labels import NAMES, known

from hf_clidmu.report import LabelReport, label_report
from hf_clidmu.report.labels import COLUMNS, read_table


def test_columns_agree_with_one_another(noisy, noisy_report):
    table = noisy_report.table
    assert list(table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert (table["index"] == np.arange(len(noisy.given_N))).all()
    assert (table["given_label"] == noisy.given_N).all()
    np.testing.assert_allclose(table["label_score"], 1 - table["p_wrong"])
    assert ((table["p_wrong"] > 0.5) == table["is_label_issue"]).all()
    assert ((table["suggestion"] == "keep") == ~table["is_label_issue"]).all()
    assert ((table["suggested_label"] != table["given_label"]) == table["is_label_issue"]).all()
    for kind in ("given", "predicted", "suggested"):
        assert (table[f"{kind}_name"] == np.array(NAMES)[table[f"{kind}_label"]]).all()
    assert (noisy_report.suspects(5)["p_wrong"].diff().dropna() <= 0).all()
    assert noisy_report.suspects(1)["p_wrong"].item() == table["p_wrong"].max()
    np.testing.assert_allclose(np.sum(noisy_report.transition, axis=1), 1)
    assert noisy_report.noise_rate.low < noisy_report.noise_rate.value < noisy_report.noise_rate.high


def test_what_is_saved_is_what_is_loaded(noisy_report, tmp_path):
    noisy_report.save(tmp_path)
    loaded = LabelReport.load(tmp_path)
    assert loaded.table.equals(noisy_report.table)
    assert loaded.summary() == noisy_report.summary()
    from_csv = read_table(tmp_path / "label_report.csv")
    pandas.testing.assert_frame_equal(from_csv, noisy_report.table, rtol=1e-12)


def test_odd_names_and_unseen_samples_survive_csv(tmp_path):
    data = known(0.2, size=100)
    names = ["NA", "", 'a,"b', "line\nbreak"]
    ledger = data.ledger().iloc[1:]
    report = label_report(data.given_N, data.logits_NC, data.features_ND, names, ledger=ledger)
    report.save(tmp_path)
    table = read_table(tmp_path / "label_report.csv")
    assert (table["given_name"] == np.array(names, dtype=object)[data.given_N]).all()
    assert np.isnan(table["weight"][0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label_report.parquet", "no table", "cannot be read as a label report"),
        ("label_report.json", "{", "cannot be read as JSON"),
        ("label_report.json", '{"label_names": []}', "of another version"),
        ("label_report.csv", "index,given_label\n0,1\n", "lacks given_name"),
    ],
)
def test_damaged_files_are_clean_errors(noisy_report, tmp_path, name, content, message):
    noisy_report.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name) if name.endswith("csv") else LabelReport.load(tmp_path)


def test_a_folder_without_a_report_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipes/report\.py makes one"):
        LabelReport.load(tmp_path)


def test_names_must_fit():
    data = known(0.1, size=30)
    with pytest.raises(ValueError, match="3 names, but the logits are of 4 classes"):
        label_report(data.given_N, data.logits_NC, data.features_ND, NAMES[:3])


def test_cleanlab_reads_it(noisy, noisy_report):
    cleanlab = pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    # Its own names for the same columns, and its trainer leaves out what our table calls wrong.
    own = cleanlab.filter.find_label_issues(noisy.given_N, np.full((len(noisy.given_N), 4), 0.25))
    assert own.dtype == noisy_report.table["is_label_issue"].dtype
    learner = CleanLearning(LogisticRegression(max_iter=500))
    learner.fit(noisy.features_ND, noisy.given_N, label_issues=noisy_report.table)
    plain = LogisticRegression(max_iter=500).fit(noisy.features_ND, noisy.given_N)
    right = (learner.predict(noisy.features_ND) == noisy.true_N).mean()
    assert right >= (plain.predict(noisy.features_ND) == noisy.true_N).mean()
    kept = learner.get_label_issues()
    assert (kept["is_label_issue"].to_numpy() == noisy_report.table["is_label_issue"].to_numpy()).all()
