"""Keeps what a frozen backbone makes of samples, between runs: a sample is encoded once, whatever corpus it is in.

Folds, subsets and other labels of samples that were seen before cost nothing. A file holds the samples that one run had
to encode; its name tells the frozen weights and those samples, so what is found fits. Encodings from other batches
differ in the last bits of float32, as they do without a cache.

Shape suffixes: N samples, D features, K bytes of a digest.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_clidmu.batches import INDEX_COLUMN, LABEL_NAMES
from hf_clidmu.files import disk_refused, read_tensors, write_tensors
from hf_clidmu.precompute import FrozenBackbone


logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16

# Of a model's configuration, what its frozen part does not depend on.
_OTHER_SETTINGS = {
    *("id2label", "label2id", "num_labels", "problem_type"),
    *("_name_or_path", "architectures", "dtype", "transformers_version"),  # a run's model is loaded from its own folder
}


class EncodingCache:
    """Encodings of samples by one frozen backbone, in a folder.

    Args:
        folder: where; made when something is kept.
        weights: digest of the backbone.
    """

    def __init__(self, folder: str | Path, weights: str):
        self.folder, self.weights = Path(folder), weights

    def find(self, sample_NK: Tensor) -> tuple[dict[str, Tensor], list[int]]:
        """What is known of these samples: tensors of N rows, and the rows that nothing is known of."""
        missing: dict[bytes, list[int]] = {}
        for row, digest in enumerate(_rows(sample_NK)):
            missing.setdefault(digest, []).append(row)
        found: dict[str, Tensor] = {}
        own = self._path(sample_NK)  # first: a run that goes on gets what it had
        others = sorted(self.folder.glob(f"{self.weights}-*.safetensors"))
        for path in [own, *(path for path in others if path != own)]:
            if not missing:
                break
            digests, encoded = self._read(path)
            told = [(row, place) for place, digest in enumerate(digests) for row in missing.pop(digest, ())]
            if told:
                rows, places = (list(column) for column in zip(*told, strict=True))
                for name, values in encoded.items():
                    whole = found.setdefault(name, values.new_empty((len(sample_NK), values.shape[1])))
                    whole[rows] = values[places]
        return found, sorted(row for rows in missing.values() for row in rows)

    def keep(self, sample_NK: Tensor, encoded: Mapping[str, Tensor]) -> None:
        """Write the encodings of these samples; a disk that does not take them is a warning."""
        path = self._path(sample_NK)
        try:
            write_tensors(path, {"sample_NK": sample_NK, **encoded})
        except Exception as error:
            if not disk_refused(error):
                raise
            logger.warning("The encoding %s could not be kept: %s", path, error)

    def _path(self, sample_NK: Tensor) -> Path:
        name = hashlib.sha256(sample_NK.numpy().tobytes()).hexdigest()[: 2 * _DIGEST_BYTES]
        return self.folder / f"{self.weights}-{name}.safetensors"

    def _read(self, path: Path) -> tuple[list[bytes], dict[str, Tensor]]:
        """Digests of the samples in a file, and their encodings; nothing where there is none that can be read."""
        if not path.is_file():
            return [], {}
        try:
            kept = read_tensors(path)
            shapes = {name: tuple(kept[name].shape) for name in ("sample_NK", "cut_ND", "general_ND")}
            if any(len(shape) != 2 or shape[0] != len(kept["sample_NK"]) for shape in shapes.values()):
                raise ValueError(f"its rows do not fit together: {shapes}")
        except (ValueError, KeyError) as error:
            logger.warning("The kept encoding %s cannot be read (%s): it is computed anew.", path, error)
            return [], {}
        return _rows(kept["sample_NK"]), {name: kept[name] for name in ("cut_ND", "general_ND")}


def sample_digest(sample: Mapping[str, Any]) -> bytes:
    """Tells a sample from others by all that a model gets to see of it."""
    digest = hashlib.sha256()
    for name in sorted(set(sample) - {INDEX_COLUMN, *LABEL_NAMES}):
        digest.update(name.encode() + torch.as_tensor(sample[name]).numpy().tobytes() + b"|")
    return digest.digest()[:_DIGEST_BYTES]


def weights_digest(model: nn.Module, backbone: FrozenBackbone) -> str:
    """Tells frozen backbones apart: by weights, cut and configuration."""
    digest = hashlib.sha256()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict().items():
        if name not in trained:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    cut = next(name for name, module in model.named_modules() if module is backbone.cut)
    config = getattr(model, "config", None)
    # Heads, activations, ...: not all of it is in the weights.
    values = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in _OTHER_SETTINGS}
    digest.update(json.dumps([torch.__version__, cut, values], sort_keys=True, default=str).encode())
    return digest.hexdigest()[: 2 * _DIGEST_BYTES]


def _rows(sample_NK: Tensor) -> list[bytes]:
    width, joined = sample_NK.shape[1], sample_NK.numpy().tobytes()
    return [joined[at : at + width] for at in range(0, len(joined), width)]
