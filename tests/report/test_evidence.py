"""What is gathered about every sample, against brute force."""

from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known_labels import known

from hf_clidmu.divergence import feature_graph
from hf_clidmu.report.evidence import PENALTY, gather, leave_one_out


def test_neighbours_opinions_are_the_graphs_means(noisy):
    found = gather(noisy.given_N[:60], noisy.logits_NC[:60], noisy.features_ND[:60], neighbours=5)
    edges_NN = feature_graph(torch.tensor(noisy.features_ND[:60])).fill_diagonal_(0)
    kept_NN = torch.where(edges_NN >= edges_NN.topk(5, dim=1).values[:, -1:], edges_NN, 0.0)
    kept_NN /= kept_NN.sum(dim=1, keepdim=True)
    own_NC = torch.tensor(noisy.logits_NC[:60]).softmax(dim=1)
    np.testing.assert_allclose(np.exp(found.log_neighbour_NC), (kept_NN @ own_NC).clamp(min=1e-6), rtol=1e-9)
    same_NN = torch.tensor(noisy.given_N[:60] == noisy.given_N[:60, None]).double()
    np.testing.assert_allclose(found.neighbour_labels_N, (kept_NN * same_NN).sum(dim=1), rtol=1e-9)


def test_linear_opinions_are_those_of_a_fit_without_the_sample():
    generator = torch.Generator().manual_seed(0)
    features_ND = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    target_NL = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    found_NL = leave_one_out(features_ND, target_NL)
    x_ND = F.normalize(features_ND, dim=1)
    x_ND = (x_ND - x_ND.mean(dim=0)) / (x_ND - x_ND.mean(dim=0)).std()
    for left_out in (0, 17, 39):
        rest = torch.arange(40) != left_out
        with_one = torch.cat([x_ND, torch.ones(40, 1, dtype=torch.float64)], dim=1)
        penalty = PENALTY * 40 * torch.eye(7, dtype=torch.float64)
        penalty[-1, -1] = 0  # the constant is free
        gram = with_one[rest].T @ with_one[rest] + penalty
        want_L = with_one[left_out] @ torch.linalg.solve(gram, with_one[rest].T @ target_NL[rest])
        assert torch.allclose(found_NL[left_out], want_L, rtol=1e-9)


def test_a_sample_has_no_part_in_what_others_say_of_it(noisy):
    rows = slice(0, 80)
    before = gather(noisy.given_N[rows], noisy.logits_NC[rows], noisy.features_ND[rows])
    given_N, logits_NC = noisy.given_N[rows].copy(), noisy.logits_NC[rows].copy()
    given_N[3], logits_NC[3] = (given_N[3] + 1) % 4, logits_NC[3][::-1]
    after = gather(given_N, logits_NC, noisy.features_ND[rows])
    for name in ("log_neighbour_NC", "linear.model_NC", "linear.labels_NC"):
        said = attrgetter(name)
        np.testing.assert_allclose(said(after)[3], said(before)[3], rtol=1e-7)


def test_general_features_have_a_say_of_their_own(noisy):
    rows = slice(0, 80)
    arguments = (noisy.given_N[rows], noisy.logits_NC[rows], noisy.features_ND[rows])
    alone = gather(*arguments)
    assert alone.general is alone.linear
    general_ND = np.random.default_rng(0).normal(size=(80, 3))
    found = gather(*arguments, general_features=general_ND)
    np.testing.assert_array_equal(found.linear.labels_NC, alone.linear.labels_NC)
    labels_NC = np.eye(4)[noisy.given_N[rows]]
    want_NC = leave_one_out(torch.tensor(general_ND), torch.tensor(labels_NC))
    np.testing.assert_allclose(found.general.labels_NC, want_NC, rtol=1e-9)
    np.testing.assert_allclose(found.general.both_NC, (found.general.model_NC + want_NC.numpy()) / 2, rtol=1e-9)


def test_the_ledger_is_read_by_index(noisy):
    ledger = noisy.ledger().iloc[::-1].iloc[:-2]  # another order; rows 0 and 1 were never seen
    found = gather(noisy.given_N, noisy.logits_NC, noisy.features_ND, ledger).ledger["area_under_margin"]
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2:], noisy.ledger()["margin"][2:])


def _changed(**changes):
    data = known(0.1, size=30)
    values = {"labels": data.given_N, "logits": data.logits_NC, "features": data.features_ND, "ledger": data.ledger()}
    if "general_features" in changes:
        values["general_features"] = data.features_ND
    for name, change in changes.items():
        values[name] = change(values[name].copy())
    return values


def _set(row, value):
    def change(array):
        array[row] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": lambda labels: labels[:-1]}, "29 labels, 30 logits, 30 features$"),
        ({"labels": _set(7, 4)}, r"0\.\.3; row 7"),
        ({"labels": _set(7, -1)}, r"0\.\.3; row 7"),
        ({"labels": lambda labels: labels.astype(float)}, "floats"),
        ({"logits": _set(3, np.nan)}, "logits: row 3: not finite"),
        ({"features": _set(4, np.inf)}, "features: row 4: not finite"),
        ({"features": lambda features: features[:, :, None]}, r"got labels \(30,\), logits \(30, 4\), features \(30, "),
        ({"general_features": _set(5, np.nan)}, "general_features: row 5: not finite"),
        ({"general_features": lambda features: features[2:]}, "28 general_features"),
        ({"ledger": lambda ledger: ledger.drop(columns="margin")}, "lacks margin"),
        ({"ledger": lambda ledger: ledger.assign(index=ledger["index"] + 1)}, "row 30 of a dataset of 30 rows"),
        ({"ledger": lambda ledger: ledger.assign(given_label=0)}, "the ledger saw other labels"),
    ],
)
def test_what_does_not_fit_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        gather(**_changed(**changes))
