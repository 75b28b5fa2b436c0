"""What may leave for the Hub: files that are known by name, staged in a folder of their own.

Nothing that happens to a run afterwards changes what was staged. Everything that is not on the list stays: hidden
files, data, pickles, tokens, whatever else somebody keeps in a folder of results.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_clidmu.files import link_or_copy, read_json, write_json
from hf_clidmu.state import FOLDER


CARD_NAME = "README.md"
_STAGING = ".push-"
_MODEL = (
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json"
    r"|adapter_model\.safetensors|adapter_config\.json|ensemble\.json|member-\d{1,3}/(model\.safetensors|config\.json)"
)
_PROCESSOR = r"(pre)?processor_config\.json"
_TOKENIZER = (
    r"tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|[\w-]+(\.bpe)?\.model|chat_template\.jinja"
)
_OURS = r"weighting\.safetensors|results\.json|curves\.png"
_LABEL_REPORT = r"ledger\.(safetensors|parquet)|label_report(\.(parquet|csv|html|json)|_\w+\.png)"
_ALLOWED = re.compile(rf"{_MODEL}|{_PROCESSOR}|{_TOKENIZER}|{re.escape(CARD_NAME)}|{FOLDER}/({_OURS})")
_LABELS = re.compile(rf"{FOLDER}/({_LABEL_REPORT})")
_CARRY_PATHS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "trainer_state.json")
# What a resume needs beside the model. Never training_args.bin: it is a pickle of everything that was set, and nothing
# reads it.
_RESUME = re.compile(
    rf"optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json"
    rf"|{FOLDER}/(?!manifest|label_report)(snapshots/)?[\w-]+\.(safetensors|json)"
)


class PushError(RuntimeError):
    """A push that did not get through, with what to do about it; what was trained is on the disk."""


class SecretToken(str):
    """A token of the Hub that is sent, and neither shown nor kept: pickles hold None in its place."""

    @classmethod
    def of(cls, token: str | None) -> "SecretToken | None":
        """The token as a secret one; None stays None."""
        return None if token is None else cls(token)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    def __copy__(self) -> "SecretToken":
        return self

    def __deepcopy__(self, memo: Any) -> "SecretToken":
        return self

    def __repr__(self) -> str:
        return "<HUB_TOKEN>"


def publishable(folder: str | Path, *, labels: bool = False, resume: bool = False) -> dict[str, Path]:
    """The files of a folder that may leave, by their name in it.

    A file that is not on the list stays: hidden files, data, pickles, whatever else somebody keeps there. So do
    symbolic links, and everything behind one.

    Args:
        folder: of a model, or a checkpoint.
        labels: whether the record of every training sample may leave.
        resume: whether everything that a resume needs may leave: optimiser and random states (which are pickles), and
            what is remembered of training samples.
    """
    folder = Path(folder)
    patterns = [_ALLOWED, *([_LABELS] if labels else []), *([_RESUME] if resume else [])]
    found = {path.relative_to(folder).as_posix(): path for path in regular_files(folder)}
    return {name: path for name, path in sorted(found.items()) if any(p.fullmatch(name) for p in patterns)}


def regular_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without symbolic links and without what lies behind them."""
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from regular_files(path)
        elif path.is_file():
            yield path


def staging_folder(output_dir: str | Path) -> Path:
    """A new folder for one push, on the same file system as the run."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_STAGING, dir=output_dir))


def remove_staged(output_dir: str | Path) -> None:
    """Delete what killed runs left of their pushes."""
    for path in Path(output_dir).glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def stage(files: dict[str, Path], folder: Path, prefix: str = "") -> None:
    """Give files a second name in a staging folder (a copy where the file system has none).

    Names of this machine that configurations carry along are taken out.
    """
    for name, path in files.items():
        target = folder / prefix / name
        link_or_copy(path, target)
        if target.name in _CARRY_PATHS:
            _forget_paths(target)


def prune(folder: Path) -> None:
    """Delete everything in a staging folder that may not leave, and names of this machine in what may."""
    keep = set(publishable(folder).values())
    for path in list(regular_files(folder)):
        if path not in keep:
            path.unlink()
        elif path.name in _CARRY_PATHS:
            _forget_paths(path)


def _forget_paths(path: Path) -> None:
    """Take the folder that a model was loaded from out of a configuration, and local paths out of a trainer's state."""
    values = read_json(path)
    local = [
        name
        for name in ("_name_or_path", "name_or_path", "best_model_checkpoint")
        if isinstance(values.get(name), str) and is_local(values[name])
    ]
    if local:
        replaced = {name: None if name == "best_model_checkpoint" else "" for name in local}
        write_json(path, {**values, **replaced}, indent=2)


def is_local(name: str) -> bool:
    """Whether this is a path of this machine, and no id of the Hub."""
    return Path(name).exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None


def require_complete(folder: str | Path, modality: str) -> None:
    """Refuse a model that nobody could use: a text model without its tokenizer, an image model without its processor.

    Args:
        folder: staged.
        modality: `text` or `image`.

    Raises:
        PushError: with what is missing, and how to give it.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()}
    if not names & {"config.json", "adapter_config.json"} or not any(name.endswith(".safetensors") for name in names):
        raise PushError(
            f"nothing was pushed: there is no model in {folder}, only {', '.join(sorted(names)) or 'nothing'}"
        )
    if modality == "text":
        whole = {"tokenizer_config.json"} <= names and names & {"tokenizer.json", "vocab.txt", "vocab.json"}
        if not (whole or any(re.fullmatch(r"[\w-]+(\.bpe)?\.model", name) for name in names)):
            raise PushError(_MISSING.format(what="text model without its tokenizer"))
    elif not names & {"preprocessor_config.json", "processor_config.json"}:
        # timm's processor lives in the configuration
        if "config.json" not in names or not read_json(folder / "config.json").get("pretrained_cfg"):
            raise PushError(_MISSING.format(what="image model without its processor"))


_MISSING = (
    "nothing was pushed: a {what} cannot be loaded by anybody. Give it to the trainer as processing_class (the second "
    "value that load_classifier returns)"
)
