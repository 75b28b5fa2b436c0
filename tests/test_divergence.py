"""CLID against the oracle, its known values, its edges.

Shape suffixes: N samples, B samples of a batch, C classes, D features.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from hf_clidmu.divergence import (
    certain,
    clid,
    clid_in_chunks,
    feature_graph,
    nearest,
    prediction_graph,
    shuffled_clid,
)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().abs().max() / want.detach().abs().max())


def random_batch(samples: int = 12, classes: int = 4, features: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features_ND = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return features_ND, 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)


def plain_clid(features_ND: Tensor, logits_NC: Tensor, temperature: float) -> float:
    """The formula once more, one scalar at a time."""
    f = [row / row.norm() if row.norm() > 0 else row for row in features_ND]
    q = [p / p.norm() for p in logits_NC.softmax(dim=1)]
    total = 0.0
    for i in range(len(f)):
        s = [math.exp(max(float(f[i] @ other), 0.0) / temperature) for other in f]
        p = [float(q[i] @ other) for other in q]
        total -= sum(p[j] / sum(p) * math.log(s[j] / sum(s) + 1e-7) for j in range(len(f)))
    return total / len(f)


def perfect_clusters(clusters: int = 10, each: int = 10) -> tuple[Tensor, Tensor]:
    """Cosine 1 within a cluster and 0 across, predictions certain of the cluster."""
    one_hot_NC = torch.eye(clusters, dtype=torch.float64).repeat_interleave(each, dim=0)
    return one_hot_NC, 1000 * one_hot_NC


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(5))
def test_value_and_gradient_equal_the_oracle(oracle, case):
    arrays = oracle("clid")
    features_BD = arrays[f"{case}_features_BD"].requires_grad_()
    logits_BC = arrays[f"{case}_logits_BC"].requires_grad_()
    value = clid(features_BD, logits_BC, float(arrays[f"{case}_tau"]))
    gradient_BC, gradient_BD = torch.autograd.grad(value, (logits_BC, features_BD), allow_unused=True)
    assert value.dtype == torch.float64 and value.ndim == 0
    assert relative_error(value, arrays[f"{case}_loss"]) <= 1e-9
    assert relative_error(gradient_BC, arrays[f"{case}_grad_logits_BC"]) <= 1e-9
    assert bool(arrays[f"{case}_grad_features_is_none"])
    assert gradient_BD is None


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_value_equals_the_formula_written_out(temperature):
    features_ND, logits_NC = random_batch()
    assert float(clid(features_ND, logits_NC, temperature)) == pytest.approx(
        plain_clid(features_ND, logits_NC, temperature), rel=1e-12
    )


def test_default_temperature_is_one_half():
    features_ND, logits_NC = random_batch()
    assert torch.equal(clid(features_ND, logits_NC), clid(features_ND, logits_NC, 0.5))


# --- known values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.1, 2.303), (0.3, 2.581), (0.5, 3.099), (1.0, 3.764), (1.5, 4.029)]
)
def test_ten_perfect_clusters(temperature, value):
    assert float(clid(*perfect_clusters(), temperature)) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(("temperature", "value"), [(0.1, 11.28), (0.5, 4.899)])
def test_uniform_predictions_on_perfect_clusters(temperature, value):
    features_ND, logits_NC = perfect_clusters()
    assert float(clid(features_ND, torch.zeros_like(logits_NC), temperature)) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("samples", [2, 7, 100])
def test_equal_features_give_the_logarithm_of_the_batch_size(samples):
    features_ND = torch.ones(samples, 3, dtype=torch.float64)
    _, logits_NC = random_batch(samples)
    for predictions_NC in (torch.zeros_like(logits_NC), logits_NC):  # the rows of P sum to one, whatever it is
        assert float(clid(features_ND, predictions_NC)) == pytest.approx(math.log(samples), abs=samples * 1e-7)


def test_wrong_predictions_diverge_more_than_right_ones():
    features_ND, logits_NC = perfect_clusters()
    shuffled_N = torch.randperm(len(logits_NC), generator=torch.Generator().manual_seed(0))
    assert clid(features_ND, logits_NC[shuffled_N]) > clid(features_ND, logits_NC) + 1


def test_permuting_classes_or_samples_or_scaling_features_changes_nothing():
    features_ND, logits_NC = random_batch()
    value = float(clid(features_ND, logits_NC))
    order_N = torch.randperm(len(logits_NC), generator=torch.Generator().manual_seed(1))
    assert float(clid(features_ND, logits_NC[:, [2, 0, 3, 1]])) == pytest.approx(value, rel=1e-12)
    assert float(clid(features_ND[order_N], logits_NC[order_N])) == pytest.approx(value, rel=1e-12)
    assert float(clid(features_ND * 7, logits_NC)) == pytest.approx(value, rel=1e-12)
    assert float(clid(features_ND, logits_NC + 5)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("detach_normaliser", [True, False])
def test_graph_and_gradient_are_those_of_unit_vectors(detach_normaliser):
    _, logits_NC = random_batch()
    logits_NC.requires_grad_()
    unit_NC = torch.nn.functional.normalize(logits_NC.softmax(dim=1), dim=1)
    total_N1 = (unit_NC @ unit_NC.T).sum(dim=1, keepdim=True)
    want_NN = unit_NC @ unit_NC.T / (total_N1.detach() if detach_normaliser else total_N1)
    got_NN = prediction_graph(logits_NC, detach_normaliser)
    torch.testing.assert_close(got_NN, want_NN, rtol=1e-14, atol=0)
    anything_NN = torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got_NC, want_NC = (torch.autograd.grad(graph_NN, logits_NC, anything_NN)[0] for graph_NN in (got_NN, want_NN))
    torch.testing.assert_close(got_NC, want_NC, rtol=1e-12, atol=1e-15)


def test_many_classes_cost_the_probabilities_and_nothing_else():
    features_ND, logits_NC = random_batch(classes=1000)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = clid(features_ND, logits_NC.requires_grad_(), detach_normaliser=False)
    value.backward()
    assert sum(size >= 12 * 1000 * 8 for size in kept.values()) == 1


# --- the graphs ------------------------------------------------------------------------------------------------------


def test_rows_of_both_graphs_sum_to_one():
    features_ND, logits_NC = random_batch()
    for graph_NN in (
        feature_graph(features_ND),
        prediction_graph(logits_NC),
        prediction_graph(logits_NC, detach_normaliser=False),
    ):
        assert graph_NN.shape == (12, 12)
        assert bool((graph_NN > 0).all())
        torch.testing.assert_close(graph_NN.sum(dim=1), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-14)


def test_feature_graph_cuts_negative_similarities_and_has_no_gradient():
    features_ND = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    graph_NN = feature_graph(features_ND, temperature=1.0)
    one, zero = math.e / (math.e + 2), 1 / (math.e + 2)  # opposite and orthogonal are equally far
    expected_NN = torch.tensor([[one, zero, zero], [zero, one, zero], [zero, zero, one]])
    torch.testing.assert_close(graph_NN, expected_NN)
    assert not graph_NN.requires_grad


def test_a_feature_of_norm_zero_has_a_uniform_row():
    features_ND, _ = random_batch(5)
    features_ND[2] = 0
    graph_NN = feature_graph(features_ND)
    torch.testing.assert_close(graph_NN[2], torch.full((5,), 0.2, dtype=torch.float64))


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradient_through_the_normaliser_equals_finite_differences():
    features_ND, logits_NC = random_batch(6)
    assert torch.autograd.gradcheck(
        lambda logits_NC: clid(features_ND, logits_NC, 0.5, detach_normaliser=False), logits_NC.requires_grad_()
    )


def test_detached_normaliser_changes_the_gradient_and_not_the_value():
    features_ND, logits_NC = random_batch()
    logits_NC.requires_grad_()
    detached, attached = (clid(features_ND, logits_NC, 0.5, detach_normaliser=flag) for flag in (True, False))
    assert torch.equal(detached, attached)
    (detached_NC,), (attached_NC,) = (torch.autograd.grad(value, logits_NC) for value in (detached, attached))
    assert relative_error(detached_NC, attached_NC) > 0.1
    # by hand: the normaliser of row i is a constant
    unit_NC = torch.nn.functional.normalize(logits_NC.softmax(dim=1), dim=1)
    similarity_NN = unit_NC @ unit_NC.T
    constant_N1 = similarity_NN.sum(dim=1, keepdim=True).detach().clone()
    by_hand = -(similarity_NN / constant_N1 * (feature_graph(features_ND) + 1e-7).log()).sum(dim=1).mean()
    (by_hand_NC,) = torch.autograd.grad(by_hand, logits_NC)
    assert relative_error(detached_NC, by_hand_NC) <= 1e-12


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    features_ND, logits_NC = (tensor.to(dtype) for tensor in random_batch())
    value = clid(features_ND, logits_NC)
    assert value.dtype == torch.float32
    assert torch.equal(value, clid(features_ND.float(), logits_NC.float()))
    assert feature_graph(features_ND).dtype == prediction_graph(logits_NC).dtype == torch.float32


def test_gradient_of_half_precision_logits_has_their_dtype():
    features_ND, logits_NC = (tensor.bfloat16() for tensor in random_batch())
    logits_NC.requires_grad_()
    clid(features_ND, logits_NC).backward()
    assert logits_NC.grad.dtype == torch.bfloat16 and bool(logits_NC.grad.isfinite().all())


def test_the_dtype_of_the_logits_decides():
    features_ND, logits_NC = random_batch()
    assert clid(features_ND.float(), logits_NC.float()).dtype == torch.float32
    assert clid(features_ND.float(), logits_NC).dtype == torch.float64
    assert clid(features_ND, logits_NC.float()).dtype == torch.float32
    assert relative_error(clid(features_ND.float(), logits_NC.float()), clid(features_ND, logits_NC)) < 1e-5


def test_autocast_does_not_reach_it():
    features_ND, logits_NC = (tensor.float() for tensor in random_batch(40, 10, 64))
    plain = clid(features_ND, logits_NC)
    plain_graphs = feature_graph(features_ND), prediction_graph(logits_NC)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clid(features_ND, logits_NC), plain)
        assert clid(features_ND.bfloat16(), logits_NC.bfloat16()).dtype == torch.float32
        graphs = feature_graph(features_ND), prediction_graph(logits_NC)
    assert all(torch.equal(got, want) for got, want in zip(graphs, plain_graphs, strict=True))


# --- edges -----------------------------------------------------------------------------------------------------------


def finite_with_gradient(features_ND: Tensor, logits_NC: Tensor) -> float:
    logits_NC = logits_NC.clone().requires_grad_()
    value = clid(features_ND, logits_NC)
    value.backward()
    assert bool(value.isfinite()) and bool(logits_NC.grad.isfinite().all())
    return float(value.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_sample_has_nothing_to_diverge_from(dtype):
    features_ND, logits_NC = (tensor.to(dtype) for tensor in random_batch(1))
    assert finite_with_gradient(features_ND, logits_NC) == pytest.approx(0, abs=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_without_any_norm(dtype):
    _, logits_NC = random_batch(9)
    value = finite_with_gradient(torch.zeros(9, 3, dtype=dtype), logits_NC.to(dtype))
    assert value == pytest.approx(math.log(9), abs=1e-5)


def test_one_class_makes_the_predictions_uniform():
    features_ND, _ = random_batch()
    value = finite_with_gradient(features_ND, torch.randn(12, 1, dtype=torch.float64))
    assert value == pytest.approx(float(-(feature_graph(features_ND) + 1e-7).log().mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_and_a_tiny_temperature_stay_finite(dtype):
    features_ND, logits_NC = (tensor.to(dtype) for tensor in random_batch())
    finite_with_gradient(features_ND, logits_NC * 1e4)
    assert bool(clid(features_ND, logits_NC, temperature=1e-3).isfinite())


# --- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_are_averaged_and_the_incomplete_last_one_is_dropped():
    features_ND, logits_NC = random_batch(23)
    expected = torch.stack([clid(features_ND[i : i + 10], logits_NC[i : i + 10], 0.3) for i in (0, 10)]).mean()
    assert torch.equal(clid_in_chunks(features_ND, logits_NC, 10, 0.3), expected)
    assert torch.equal(clid_in_chunks(features_ND[:20], logits_NC[:20], 10, 0.3), expected)
    features_ND[20:], logits_NC[20:] = 100, float("nan")
    assert torch.equal(clid_in_chunks(features_ND, logits_NC, 10, 0.3), expected)


def test_a_set_smaller_than_a_chunk_is_one_chunk():
    features_ND, logits_NC = random_batch(7)
    assert torch.equal(clid_in_chunks(features_ND, logits_NC), clid(features_ND, logits_NC))


def test_chunks_have_100_samples_unless_told():
    features_ND, logits_NC = random_batch(250)
    assert torch.equal(clid_in_chunks(features_ND, logits_NC), clid_in_chunks(features_ND, logits_NC, 100))
    assert not torch.equal(clid_in_chunks(features_ND, logits_NC), clid_in_chunks(features_ND, logits_NC, 50))


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument():
    features_ND, logits_NC = random_batch()
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        clid(features_ND, logits_NC, 0)
    with pytest.raises(ValueError, match="temperature"):
        feature_graph(features_ND, float("nan"))
    with pytest.raises(ValueError, match="same samples, got 12 and 11 rows"):
        clid(features_ND, logits_NC[:-1])
    with pytest.raises(ValueError, match=r"features_BD must have two dimensions .*\(12, 6, 1\)"):
        clid(features_ND[..., None], logits_NC)
    with pytest.raises(ValueError, match="logits_BC must have two dimensions"):
        clid(features_ND, logits_NC[:, 0])
    with pytest.raises(ValueError, match="features_ND must have two dimensions"):
        feature_graph(features_ND[0])
    with pytest.raises(ValueError, match="logits_NC is empty"):
        prediction_graph(logits_NC[:0])
    with pytest.raises(ValueError, match="empty"):
        clid(features_ND[:0], logits_NC[:0])
    with pytest.raises(ValueError, match="empty set"):
        clid_in_chunks(features_ND[:0], logits_NC[:0])
    with pytest.raises(ValueError):
        clid_in_chunks(features_ND, logits_NC, chunk_size=0)


def test_certain_keeps_the_classes_and_nothing_of_the_probabilities():
    logits_NC = torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 5.0], [torch.nan, 1.0, 2.0]])
    probability_NC = certain(logits_NC).softmax(dim=1)
    assert probability_NC[:2].tolist() == [[0, 1, 0], [1, 0, 0]]
    assert probability_NC[2].isnan().all()
    assert not certain(logits_NC.half())[:2].isnan().any()


@pytest.mark.parametrize("certainty", [1.0, 50.0])
def test_clid_of_shuffled_predictions_is_the_mean_over_all_orders(certainty):
    features_ND, logits_NC = random_batch(samples=5)
    logits_NC = certainty * logits_NC
    orders = [list(order) for order in itertools.permutations(range(5))]
    expected = torch.stack([clid(features_ND, logits_NC[order], 0.2) for order in orders]).mean()
    torch.testing.assert_close(shuffled_clid(features_ND, logits_NC, 0.2), expected, rtol=1e-10, atol=0)


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_neighbours_are_the_strongest_edges_of_the_graph(chunk_size):
    features_ND, _ = random_batch(samples=13, features=9)
    edges_NN = feature_graph(features_ND, temperature=0.2)
    edges_NN.fill_diagonal_(0)
    index_NK, weight_NK = nearest(features_ND, k=3, temperature=0.2, chunk_size=chunk_size)
    want = edges_NN.topk(3, dim=1).values
    assert torch.equal(edges_NN.gather(1, index_NK), want)
    assert relative_error(weight_NK, want / want.sum(dim=1, keepdim=True)) < 1e-12


def test_a_sample_is_no_neighbour_of_itself_even_where_there_are_few_or_all_are_alike():
    index_NK, weight_NK = nearest(torch.zeros(4, 2), k=10)
    assert index_NK.shape == (4, 3)
    assert not (index_NK == torch.arange(4)[:, None]).any()
    assert torch.allclose(weight_NK, torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize(("samples", "k"), [(1, 3), (4, 0)])
def test_neighbours_of_nothing_are_an_error(samples, k):
    with pytest.raises(ValueError, match="at least two samples"):
        nearest(torch.ones(samples, 2), k)
