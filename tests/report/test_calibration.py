"""The score, the probability it stands for, and the doubts: figures on data whose wrong labels are known."""

import numpy as np
import pytest
from known_labels import known
from sklearn.metrics import roc_auc_score

from hf_clidmu.report.calibration import judge_labels, make_wrong
from hf_clidmu.report.confusion import fit_confusion
from hf_clidmu.report.evidence import gather


SIGNALS = ("self_confidence", "margin", "neighbour_confidence", "linear_confidence", "neighbour_labels")


def calibration_error(probability_N, wrong_N, bins=10):
    bin_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    return sum(
        (bin_N == b).mean() * abs(probability_N[bin_N == b].mean() - wrong_N[bin_N == b].mean())
        for b in np.unique(bin_N)
    )


@pytest.mark.parametrize(("rate", "kind"), [(0.1, "symmetric"), (0.4, "symmetric"), (0.3, "next")])
def test_the_fused_score_is_as_good_as_the_best_signal_and_means_what_it_says(rate, kind):
    data = known(rate, kind, seed=1)
    report = data.report(ledger=data.ledger())
    table = report.table
    fused = roc_auc_score(data.wrong_N, table["p_wrong"])
    best = max(roc_auc_score(data.wrong_N, -table[name]) for name in SIGNALS)
    assert fused > best - 0.01
    assert fused > 0.9
    assert abs(report.noise_rate.value - rate) < 0.05
    assert calibration_error(table["p_wrong"].to_numpy(), data.wrong_N) < 0.10
    assert report.power > 0.85


def test_hard_samples_with_right_labels_are_not_called_wrong(hard):
    report = hard.report()
    assert report.contradicted > 0.12
    assert report.table["is_label_issue"].mean() <= 0.03
    assert report.noise_rate.value < 0.05


def test_confused_classes_are_known_by_name():
    data = known(0.3, "next", seed=2)
    report = data.report()
    relabelled = report.table[report.table["suggestion"] == "relabel"]
    right = (relabelled["suggested_label"].to_numpy() == data.true_N[relabelled["index"]]).mean()
    assert len(relabelled) > 200
    assert right > 0.85
    mistaken = np.array(report.transition)[np.arange(4), (np.arange(4) + 1) % 4]
    np.testing.assert_allclose(mistaken, 0.3, atol=0.08)


def test_made_wrong_labels_are_confused_as_the_given_ones_are(noisy):
    fit = fit_confusion(noisy.logits_NC / 5, noisy.given_N)
    made_N, wrong_N = make_wrong(fit, np.random.default_rng(0))
    assert abs(wrong_N.mean() - fit.wrong(noisy.given_N).mean()) < 0.05
    assert made_N.min() >= 0
    assert made_N.max() <= 3


def test_the_ledger_counts_where_there_is_one_and_unseen_samples_lose_nothing(noisy):
    arguments = (noisy.given_N, noisy.logits_NC, noisy.features_ND)
    without = judge_labels(gather(*arguments))
    ledger = noisy.ledger().iloc[5:]
    with_ledger = judge_labels(gather(*arguments, ledger))
    np.testing.assert_array_equal(with_ledger.score_N[:5], without.score_N[:5])
    assert (with_ledger.score_N[5:] != without.score_N[5:]).mean() > 0.9
    opposite = judge_labels(gather(*arguments, ledger.assign(margin=-ledger["margin"])))
    assert roc_auc_score(noisy.wrong_N, opposite.score_N) < roc_auc_score(noisy.wrong_N, with_ledger.score_N) - 0.005


def test_the_same_data_give_the_same_report(noisy, noisy_report):
    again = noisy.report(ledger=noisy.ledger())
    assert again.table.equals(noisy_report.table)
    assert again.summary() == noisy_report.summary()


def test_features_that_no_label_has_touched_tell_how_many_are_wrong():
    # Features and predictions above know the given labels, in part by heart; those below never saw them.
    data = known(0.4, apart=1.9, size=2000)
    below_ND, seen_NC = data.features_ND, 1.5 * np.eye(4)[data.given_N]
    noise_NC = np.random.default_rng(0).normal(size=seen_NC.shape)
    data.features_ND = np.concatenate([below_ND, seen_NC + noise_NC], axis=1)
    data.logits_NC = data.logits_NC + seen_NC
    assert data.report().noise_rate.value < 0.2
    report = data.report(general_features=below_ND)
    assert abs(report.noise_rate.value - 0.4) < 0.05
    assert calibration_error(report.table["p_wrong"].to_numpy(), data.wrong_N) < 0.10


# ---- doubts ----------------------------------------------------------------------------------------------------------


def test_nothing_speaks_against_random_noise_and_a_good_model(noisy_report):
    assert noisy_report.doubts == []


def test_features_that_know_nothing_are_doubted(noisy):
    generator = np.random.default_rng(0)
    data = known(0.3, seed=3)
    data.features_ND = generator.normal(size=data.features_ND.shape)
    data.logits_NC = generator.normal(size=data.logits_NC.shape)
    assert any("know" in doubt or "hardly" in doubt for doubt in data.report().doubts)


def test_wrong_labels_that_follow_a_rule_are_doubted():
    data = known(0.0, apart=4.0, seed=4)
    ruled_N = (data.features_ND[:, -1] > 1.3) & (data.true_N == 0)
    data.given_N = np.where(ruled_N, 1, data.given_N)
    data.features_ND[:, -1] *= 4  # the features show the rule
    doubts = data.report().doubts
    assert any("follow a rule" in doubt for doubt in doubts)


def test_a_model_that_knows_the_labels_by_heart_is_doubted(noisy):
    by_heart = known(0.4)
    by_heart.logits_NC = by_heart.logits_NC + 100 * np.eye(4)[by_heart.given_N]
    assert any("by heart" in doubt for doubt in by_heart.report().doubts)


def test_rare_classes_are_named():
    data = known(0.1, seed=5)
    keep = (data.given_N != 2) | (np.cumsum(data.given_N == 2) <= 7)
    for name in ("features_ND", "logits_NC", "true_N", "given_N"):
        setattr(data, name, getattr(data, name)[keep])
    assert any("labelled cat" in doubt for doubt in data.report().doubts)
