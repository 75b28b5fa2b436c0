"""Mean pooling inside a stock encoder: a last block whose attention averages over the tokens.

Most sentence encoders were trained to be read as the mean of their token states, but the classifiers that
transformers has for them read the first token, which nobody trained. [`append_mean_pooling`] adds one more block of the
encoder's own kind with weights that make every token, the first one included, hold the mean. What comes out is the same
class with one more layer: it saves, loads and runs in `pipeline` like any other.
"""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn


logger = logging.getLogger(__name__)

POOLINGS = ("auto", "own", "mean")
_MARK = "appended_pooling"  # in the saved config: the block is already there
# The block adds its input to what its attention found. The norm after it removes the scale, so a mean this many times
# larger than the token's own state is all that is left. A power of two, and far below what float16 can hold.
_MEAN_SCALE = 64.0
_SENTENCE_TRANSFORMERS_FILE = "1_Pooling/config.json"


def append_mean_pooling(model: nn.Module) -> None:
    """Append a block to a text encoder after which every token's state is the mean over the tokens, layer-normed.

    Queries and keys are zero, so attention is uniform over the tokens that are not padding; values and output are
    multiples of the identity; the feed-forward part is zero. Zero queries and keys give each other no gradient, so
    attention stays uniform when the whole model is fine-tuned. A pooler that a checkpoint brought along was trained for
    another token, and is drawn anew.

    Args:
        model: a classifier of the BERT family (BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA) or DistilBERT; changed
            in place. A model that has the block already is left alone.

    Raises:
        ValueError: for another architecture.
    """
    config: Any = model.config
    if getattr(config, _MARK, None) == "mean":
        return
    base = getattr(model, "base_model", None)
    blocks, fill = _blocks(base)
    if blocks is None or fill is None:
        raise ValueError(
            f"pooling='mean' is for encoders of the BERT family and DistilBERT; '{config.model_type}' has other "
            "blocks: use pooling='own'"
        )
    block: Any = copy.deepcopy(blocks[-1])
    with torch.no_grad():
        fill(block)
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = len(blocks)
        blocks.append(block)
        pooler = getattr(base, "pooler", None)
        if pooler is not None:
            nn.init.normal_(pooler.dense.weight, std=config.initializer_range)
            nn.init.zeros_(pooler.dense.bias)
    config.num_hidden_layers += 1
    setattr(config, _MARK, "mean")


def declared_pooling(name: str, revision: str | None = None) -> str:
    """How a checkpoint of sentence-transformers says that it is read: `mean`, or `own` (anything else).

    Args:
        name: a local folder or a Hub id.
        revision: branch, tag or commit on the Hub.
    """
    if Path(name).is_dir():
        path = Path(name) / _SENTENCE_TRANSFORMERS_FILE
        if not path.is_file():
            return "own"
    else:
        try:
            path = Path(hf_hub_download(name, _SENTENCE_TRANSFORMERS_FILE, revision=revision))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                _warn_unknown(name, error)
            return "own"
        except (OSError, ValueError) as error:
            _warn_unknown(name, error)
            return "own"
    modes = json.loads(path.read_text(encoding="utf8"))
    chosen = {mode for mode, on in modes.items() if mode.startswith("pooling_mode_") and on is True}
    return "mean" if chosen == {"pooling_mode_mean_tokens"} else "own"


def _warn_unknown(name: str, error: Exception) -> None:
    logger.warning(
        "Cannot tell how '%s' is pooled (%s): it is read as its class does. pooling='mean' or 'own' settles it.",
        name,
        error,
    )


def _blocks(base: Any) -> tuple[nn.ModuleList | None, Callable[[nn.Module], None] | None]:
    """The encoder's blocks, and how a copy of one is filled; None where they are of no known kind."""
    family = (
        ("encoder.layer", ("attention.self.query", "attention.output.LayerNorm", "output.LayerNorm"), _fill_bert),
        ("transformer.layer", ("attention.q_lin", "sa_layer_norm", "output_layer_norm"), _fill_distilbert),
    )
    for path, parts, fill in family:
        blocks = _get(base, path)
        if isinstance(blocks, nn.ModuleList) and len(blocks) and all(_get(blocks[-1], part) for part in parts):
            if _get(blocks[-1], "attention.self.distance_embedding") is None:  # positions would break the mean
                return blocks, fill
    return None, None


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _fill_bert(block: Any) -> None:
    _zero(block.attention.self.query, block.attention.self.key, block.intermediate.dense, block.output.dense)
    _identity(block.attention.self.value, 1.0)
    _identity(block.attention.output.dense, _MEAN_SCALE)
    _plain(block.attention.output.LayerNorm, block.output.LayerNorm)


def _fill_distilbert(block: Any) -> None:
    _zero(block.attention.q_lin, block.attention.k_lin, block.ffn.lin1, block.ffn.lin2)
    _identity(block.attention.v_lin, 1.0)
    _identity(block.attention.out_lin, _MEAN_SCALE)
    _plain(block.sa_layer_norm, block.output_layer_norm)


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def _identity(layer: nn.Linear, scale: float) -> None:
    nn.init.eye_(layer.weight)
    layer.weight.mul_(scale)
    layer.bias.zero_()


def _plain(*norms: nn.LayerNorm) -> None:
    for norm in norms:
        norm.weight.fill_(1.0)
        norm.bias.zero_()
