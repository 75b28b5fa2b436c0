"""A run that somebody saved or pushed, taken up again: its classifier, processor, weighting and ledger.

What is read may come from anywhere: safetensors and JSON, and no code of a repository runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.files import read_tensors
from hf_clidmu.state import FOLDER
from hf_clidmu.weighting import Weighting


WEIGHTING_NAME, LEDGER_STATE_NAME = "weighting.safetensors", "ledger.safetensors"
# Of a repository, checkpoints and whatever else is no part of the model stay there.
_READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", f"{FOLDER}/*.safetensors")
_UNREAD = ("checkpoint-*", "last-checkpoint/*")


@dataclass
class SavedRun:
    """What [`load_run`] found.

    Attributes:
        model: the classifier.
        processor: its tokenizer or image processor.
        weighting: as it was; None where there is none to be learned, or none was saved.
        ledger: state of the record of every sample; None where it was not saved or pushed.
    """

    model: Any
    processor: Any
    weighting: Weighting | None
    ledger: dict[str, Tensor] | None


def load_run(
    path_or_repo: str | Path, config: CLIDMUConfig, *, revision: str | None = None, token: str | None = None
) -> SavedRun:
    """A saved or pushed run.

    Args:
        path_or_repo: the folder of a saved model or of a checkpoint, or an id on the Hub.
        config: the settings to go on with; the weighting is of the kind that they name.
        revision: branch, tag or commit on the Hub.
        token: of the Hub; None takes the one that the user is logged in with.

    Raises:
        ValueError: when the saved weighting is of another kind or for another classifier.
        OSError: when there is no such folder or repository, or no model in it.
    """
    folder = _folder(path_or_repo, revision, token)
    model, processor = load_classifier_of(folder)
    beside = folder / FOLDER
    saved = beside / LEDGER_STATE_NAME
    return SavedRun(
        model, processor, _weighting(beside, model, config), read_tensors(saved) if saved.is_file() else None
    )


def load_classifier_of(
    path_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
) -> tuple[Any, Any]:
    """Classifier and processor of a saved or pushed run, as they are.

    Args:
        path_or_repo: the folder of a saved model or of a checkpoint, or an id on the Hub.
        revision: branch, tag or commit on the Hub.
        token: of the Hub; None takes the one that the user is logged in with.

    Raises:
        OSError: when there is no such folder or repository, or no model in it.
    """
    from transformers import AutoConfig  # seconds to import, for those alone who take up a run

    from hf_clidmu.backbones import load_classifier

    folder = _folder(path_or_repo, revision, token)
    names = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
    return load_classifier(str(folder), [name for _, name in sorted(names.items())], pooling="own")


def _folder(path_or_repo: str | Path, revision: str | None, token: str | None) -> Path:
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    patterns: dict[str, Any] = {"allow_patterns": list(_READ), "ignore_patterns": list(_UNREAD)}
    try:
        return Path(snapshot_download(str(path_or_repo), revision=revision, token=token, **patterns))
    except HFValidationError as error:
        raise OSError(f"'{path_or_repo}' is neither a folder nor an id on the Hub ('name/model')") from error


def _weighting(folder: Path, model: Any, config: CLIDMUConfig) -> Weighting | None:
    path = folder / WEIGHTING_NAME
    if config.weighting == "none" or not path.is_file():
        return None
    tap = ClassifierTap(model, config.classifier_module)
    weighting = config.build_weighting(tap.num_labels, tap.feature_size)
    state = read_tensors(path)
    wanted = {name: tuple(parameter.shape) for name, parameter in weighting.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if not wanted.items() <= found.items():
        raise ValueError(
            f"{path} holds another weighting than weighting='{config.weighting}' for this classifier: name the one "
            "that the run had, or weighting='none'"
        )
    weighting.load_state_dict({name: state[name] for name in wanted}, strict=False)
    return weighting
