"""A trained classifier as ONNX: one file for ONNX Runtime, `optimum` and browsers, beside its processor."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_clidmu.files import write_whole
from hf_clidmu.reloading import load_classifier_of


MODEL_NAME = "model.onnx"
#: How far logits of ONNX Runtime may lie from those of the model, relative to the largest one.
TOLERANCE = 1e-3
_LARGEST_FILE = 1_800_000_000  # bytes; a single file of ONNX may hold 2 GiB
# Two texts, or images, for the trace; others, in another number and of another length, to see that it holds for them.
_TEXTS = ["a text", "another text of several words"]
_OTHER_TEXTS = ["one", "two words", "a longer text than those that were traced, of a good many words more"]


def export_onnx(
    path_or_repo: str | Path, output: str | Path, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Write a saved or pushed classifier as `model.onnx`, with the configuration and the processor beside it.

    Any number of samples, and texts of any length that the model takes. The exported model is run by ONNX Runtime on
    samples that the export has not seen, and compared with the original before the file appears.

    Args:
        path_or_repo: the folder of a saved model or checkpoint, or an id on the Hub; of an ensemble, its best member.
        output: folder for the result; made if it is not there.
        revision: branch, tag or commit on the Hub.
        token: of the Hub; None takes the one that the user is logged in with.

    Returns:
        The path of `model.onnx`. Inputs have the names of the model's own (`input_ids`, `attention_mask`, ..., or
        `pixel_values`), the output is `logits`, (batch, classes), float32.

    Raises:
        ImportError: without `onnxscript` and `onnxruntime` (`pip install 'hf_clidmu[onnx]'`).
        OSError: when there is no such model, or no tokenizer or image processor with it.
        ValueError: for a model that is too large for one ONNX file.
        RuntimeError: when ONNX Runtime computes other logits than the model; nothing is written then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it, and says so less clearly
    except ImportError as error:
        raise ImportError("exporting needs onnxscript and onnxruntime: pip install 'hf_clidmu[onnx]'") from error
    model, processor = load_classifier_of(path_or_repo, revision=revision, token=token)
    model = model.float().eval()
    traced, others = _samples(processor, _TEXTS, size=64), _samples(processor, _OTHER_TEXTS, size=48)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    path = output / MODEL_NAME
    write_whole(path, lambda unfinished: _write(model, traced, others, unfinished, onnxruntime))
    model.config.save_pretrained(output)
    processor.save_pretrained(output)
    return path


def _write(model: nn.Module, traced: dict[str, Tensor], others: dict[str, Tensor], path: Path, runtime: Any) -> None:
    dims = ("batch", "sequence")
    shapes = tuple({axis: dims[axis] for axis in range(2 if v.ndim == 2 else 1)} for v in traced.values())
    if sum(parameter.nbytes for parameter in model.parameters()) > _LARGEST_FILE:
        raise ValueError("the model is larger than one ONNX file may be (2 GiB)")
    torch.onnx.export(
        _Logits(model, list(traced)).eval(),
        tuple(traced.values()),
        path,
        dynamic_shapes={"values": shapes},
        input_names=list(traced),
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}  # what the model does not use is no input
    (found_NC,) = session.run(["logits"], {name: values.numpy() for name, values in others.items() if name in names})
    with torch.no_grad():
        expected_NC = model(**others).logits.numpy()
    largest = float(np.abs(expected_NC).max())
    distance = float(np.abs(found_NC - expected_NC).max())
    if not distance <= TOLERANCE * max(largest, 1e-6):
        raise RuntimeError(
            f"the exported model computes other logits (off by {distance:.3g}, the largest being {largest:.3g}), so it "
            "was not kept; please report the architecture"
        )


class _Logits(nn.Module):
    """The model as a function of its inputs in an order, giving logits alone: torch 2.11 traces no inputs by name."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, values, strict=True))).logits


def _samples(processor: Any, texts: list[str], size: int) -> dict[str, Tensor]:
    """As many samples as there are texts, as the model takes them."""
    if hasattr(processor, "convert_tokens_to_ids"):
        return dict(processor(texts, padding=True, truncation=True, return_tensors="pt"))
    from PIL import Image

    pixels = np.random.default_rng(size).integers(0, 256, (len(texts), size, size, 3), dtype=np.uint8)
    return dict(processor([Image.fromarray(image) for image in pixels], return_tensors="pt"))
