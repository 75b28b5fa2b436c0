"""hf_clidmu: fine-tune pretrained vision and text classifiers on wrong labels, with CLID-MU."""

from typing import TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_clidmu.backbones import load_classifier
    from hf_clidmu.config import CLIDMUConfig
    from hf_clidmu.data import load_corpus, prepare_corpus
    from hf_clidmu.divergence import clid
    from hf_clidmu.trainer import CLIDMUTrainer

__all__ = ["CLIDMUConfig", "CLIDMUTrainer", "clid", "load_classifier", "load_corpus", "prepare_corpus"]

_HOMES = {
    "CLIDMUConfig": "hf_clidmu.config",
    "CLIDMUTrainer": "hf_clidmu.trainer",
    "clid": "hf_clidmu.divergence",
    "load_classifier": "hf_clidmu.backbones",
    "load_corpus": "hf_clidmu.data",
    "prepare_corpus": "hf_clidmu.data",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used: `import hf_clidmu` alone stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_clidmu' has no attribute '{name}'; public names: {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
