"""Cross-Layer Information Divergence (CLID) and the two similarity graphs it compares.

Pure functions of tensors: this room knows neither models nor labels.

Shape suffixes: N samples of one batch, C classes, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


DEFAULT_TEMPERATURE = 0.5
_LOG_EPSILON = 1e-7  # keeps log(S) finite; part of the published definition, so part of every value of CLID
_NORM_EPSILON = 1e-12


def _full_precision(tensor: Tensor) -> Tensor:
    """Half precision is computed in float32; float32 and float64 stay what they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _inner_products(x_NK: Tensor, y_MK: Tensor | None = None) -> Tensor:
    """`x y^T`, (N, M). Autocast would compute it in half precision, and differences of CLID live in the 3rd digit."""
    with torch.autocast(device_type=x_NK.device.type, enabled=False):
        return x_NK @ (x_NK if y_MK is None else y_MK).T


def _unit(features_ND: Tensor) -> Tensor:
    return F.normalize(_full_precision(features_ND.detach()), dim=1, eps=_NORM_EPSILON)


def centred(features_ND: Tensor) -> Tensor:
    """Features less their mean over the samples, for a graph of what is *particular* to each.

    Encoders give all samples of a task a common direction; cosine similarities are then large between any two. Not
    part of the published method.

    Args:
        features_ND: (N, D), any floating dtype; half precision is computed in float32.

    Returns:
        (N, D), columns of mean zero, float32 (float64 stays).
    """
    features_ND = _full_precision(features_ND)
    return features_ND - features_ND.mean(dim=0)


def feature_graph(features_ND: Tensor, temperature: float = DEFAULT_TEMPERATURE) -> Tensor:
    """Similarity graph of the hidden features (arXiv 2507.11807, the feature side of the divergence).

    Cosine similarities, negatives cut to zero, divided by `temperature` and normalised by a softmax over each row.
    A zero similarity keeps its softmax mass `exp(0)`, and a sample is a neighbour of itself. A feature vector of norm
    zero is equally far from everything: its row is uniform.

    Args:
        features_ND: (N, D), any floating dtype; half precision is computed in float32.
        temperature: divides the similarities; must be positive. Smaller values sharpen the graph.

    Returns:
        (N, N), rows sum to one. No gradient: the features are the judge, not the judged.

    Raises:
        ValueError: for features that are not two-dimensional, an empty batch, or a temperature that is not positive.
    """
    _check_matrix("features_ND", features_ND)
    if not temperature > 0:
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    return torch.softmax(_inner_products(_unit(features_ND)).clamp(min=0) / temperature, dim=1)


def nearest(
    features_ND: Tensor, k: int, temperature: float = DEFAULT_TEMPERATURE, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """The strongest edges of [`feature_graph`] over a whole set, which is never held as a matrix.

    Args:
        features_ND: (N, D), any floating dtype.
        k: edges of each sample, its own to itself left out; N - 1 where that is less.
        temperature: of the graph.
        chunk_size: samples whose edges are held at a time: chunk_size x N numbers.

    Returns:
        Indices of the neighbours (N, k), strongest first, and the graph's weights of these edges (N, k), each row
        scaled to sum to one.

    Raises:
        ValueError: for features that are not two-dimensional, fewer than two samples, or a `k` below 1.
    """
    _check_matrix("features_ND", features_ND)
    if len(features_ND) < 2 or k < 1:
        raise ValueError(f"neighbours need at least two samples and k >= 1, got {len(features_ND)} samples and k={k}")
    unit_ND = _unit(features_ND)
    index, weight = [], []
    for start in range(0, len(unit_ND), chunk_size):
        similarity_nN = _inner_products(unit_ND[start : start + chunk_size], unit_ND).clamp(min=0)
        own_n = torch.arange(len(similarity_nN), device=unit_ND.device)
        similarity_nN[own_n, start + own_n] = -torch.inf
        strongest = similarity_nN.topk(min(k, len(unit_ND) - 1), dim=1)
        index.append(strongest.indices)
        weight.append(torch.softmax(strongest.values / temperature, dim=1))
    return torch.cat(index), torch.cat(weight)


def prediction_graph(logits_NC: Tensor, detach_normaliser: bool = True) -> Tensor:
    """Similarity graph of the predictions (arXiv 2507.11807, the prediction side of the divergence).

    Inner products of the softmax outputs scaled to unit *Euclidean* norm, each row divided by its sum.

    Args:
        logits_NC: (N, C), any floating dtype; half precision is computed in float32.
        detach_normaliser: stop the gradient of the row sums, as the published method does. The gradient then pushes
            predictions apart only; with `False` it also pulls neighbours together.

    Returns:
        (N, N), rows sum to one, differentiable in `logits_NC`.

    Raises:
        ValueError: for logits that are not two-dimensional, or an empty batch.
    """
    _check_matrix("logits_NC", logits_NC)
    product_NN = _inner_products(torch.softmax(_full_precision(logits_NC), dim=1))
    # Scaled here and not before: with many classes, unit vectors would be the largest tensors of a meta step.
    norm_N = product_NN.diagonal().sqrt()
    similarity_NN = product_NN / (norm_N[:, None] * norm_N)
    row_sum_N1 = similarity_NN.sum(dim=1, keepdim=True)
    return similarity_NN / (row_sum_N1.detach() if detach_normaliser else row_sum_N1)


def clid(
    features_BD: Tensor,
    logits_BC: Tensor,
    temperature: float = DEFAULT_TEMPERATURE,
    detach_normaliser: bool = True,
) -> Tensor:
    """Cross-Layer Information Divergence of one unlabelled batch (arXiv 2507.11807).

    The cross-entropy of the prediction graph P relative to the feature graph S, averaged over rows:
    `mean_i sum_j -P_ij log(S_ij + 1e-7)`. Low when samples with similar features get similar predictions and others
    do not. It needs no labels, and it does not change when the classes are renamed.

    The value grows like `ln B`, so compare values of one and the same batch size only. One sample, or one class, is
    defined: a single sample has nothing to diverge from (CLID is 0 up to 1e-7), and with one class P is uniform.

    Args:
        features_BD: (B, D) inputs of the classifier's last layer, or any other features of the same samples. They
            receive no gradient.
        logits_BC: (B, C) outputs of the classifier's last layer.
        temperature: of the feature graph, default 0.5.
        detach_normaliser: see [`prediction_graph`], default True.

    Returns:
        A scalar, float32 (float64 when the logits are float64), differentiable in `logits_BC`.

    Raises:
        ValueError: for inputs that are not matrices of the same number of rows, or a temperature that is not positive.
    """
    _check_matrix("features_BD", features_BD)
    _check_matrix("logits_BC", logits_BC)
    if len(features_BD) != len(logits_BC):
        raise ValueError(
            "features_BD and logits_BC must describe the same samples, "
            f"got {len(features_BD)} and {len(logits_BC)} rows"
        )
    feature_graph_BB = feature_graph(features_BD, temperature)
    prediction_graph_BB = prediction_graph(logits_BC, detach_normaliser)
    log_feature_BB = torch.log(feature_graph_BB + _LOG_EPSILON).to(prediction_graph_BB.dtype)
    return -(prediction_graph_BB * log_feature_BB).sum(dim=1).mean()


def shuffled_clid(features_ND: Tensor, logits_NC: Tensor, temperature: float = DEFAULT_TEMPERATURE) -> Tensor:
    """What CLID would be, in the mean over all orders, if the same predictions belonged to other samples of the batch.

    The difference to CLID is what features and predictions have in common. In closed form: shuffling spreads the
    prediction graph's off-diagonal mass evenly, and leaves its diagonal on the diagonal.

    Args:
        features_ND, logits_NC, temperature: as in [`clid`].

    Returns:
        A scalar, without gradient.
    """
    surprise_NN = -torch.log(feature_graph(features_ND, temperature) + _LOG_EPSILON)
    own_mass = prediction_graph(logits_NC.detach()).diagonal().mean()
    own_surprise = surprise_NN.diagonal().mean()
    others = len(surprise_NN) * (len(surprise_NN) - 1)
    other_surprise = (surprise_NN.sum() - surprise_NN.diagonal().sum()) / max(others, 1)
    return own_mass * own_surprise + (1 - own_mass) * other_surprise


def clid_in_chunks(
    features_ND: Tensor,
    logits_NC: Tensor,
    chunk_size: int = 100,
    temperature: float = DEFAULT_TEMPERATURE,
    detach_normaliser: bool = True,
) -> Tensor:
    """CLID of a whole set: the mean over consecutive chunks of one fixed size, the incomplete last chunk dropped.

    A fixed chunk size makes the values of different models comparable (CLID grows like `ln N`).

    Args:
        features_ND: (N, D) features of the whole set, in a fixed order.
        logits_NC: (N, C) predictions, same order.
        chunk_size: samples compared with one another, default 100. A set smaller than that is one single chunk.
        temperature: of the feature graph.
        detach_normaliser: see [`prediction_graph`]; it does not change the value.

    Returns:
        A scalar tensor.
    """
    values = [
        clid(features_ND[chunk], logits_NC[chunk], temperature, detach_normaliser)
        for chunk in chunks(len(logits_NC), chunk_size)
    ]
    return torch.stack(values).mean()


def chunks(size: int, chunk_size: int = 100) -> list[slice]:
    """Consecutive chunks of one size, the incomplete last one dropped; a smaller set is one chunk.

    Raises:
        ValueError: for an empty set.
    """
    chunk_size = min(chunk_size, size)
    if chunk_size < 1:
        raise ValueError("CLID needs at least one sample, got an empty set")
    return [slice(start, start + chunk_size) for start in range(0, size - chunk_size + 1, chunk_size)]


def certain(logits_NC: Tensor) -> Tensor:
    """Logits of the same predicted classes, each with probability one, (N, C); the first class of several that tie.
    Rows that hold NaN stay NaN: a model that fell apart must not look sure.

    CLID falls when predictions grow confident, whatever they say. Between states of a run, which differ in confidence
    more than in anything else, it ranks by what is predicted only when all of them are equally sure.
    """
    predicted_N1 = logits_NC.argmax(dim=1, keepdim=True)
    certain_NC = torch.full_like(logits_NC, -torch.inf).scatter(1, predicted_N1, 0.0)
    return torch.where(logits_NC.isnan().any(dim=1, keepdim=True), torch.nan, certain_NC)


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (samples, values), got shape {tuple(tensor.shape)}")
    if tensor.shape[0] == 0:
        raise ValueError(f"{name} is empty: CLID needs at least one sample")
