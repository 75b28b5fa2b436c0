"""ONNX: the exported classifier computes what the model does, for numbers and lengths that were never traced."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_scripts import recipe

from hf_clidmu import exporting
from hf_clidmu.backbones import load_classifier
from hf_clidmu.exporting import export_onnx


pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NAMES = ["cat", "dog", "fox"]


def saved(name, folder, **settings):
    torch.manual_seed(0)
    model, processor = load_classifier(str(name), NAMES, **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


def logits_of(path, inputs):
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    return session.run(["logits"], {name: inputs[name].numpy() for name in names})[0]


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_a_text_model(pooling, bert_folder, tmp_path):
    model, tokenizer = saved(bert_folder[0], tmp_path / "model", pooling=pooling)
    path = export_onnx(tmp_path / "model", tmp_path / "onnx")
    texts = ["good", "a bad film", "good good bad film a film", "bad", "film"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(logits_of(path, inputs), expected, atol=1e-5)
    files = {file.name for file in (tmp_path / "onnx").iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not any(".safetensors" in name or "tmp" in name for name in files)


def test_an_image_model_by_the_recipe(tmp_path, capsys):
    model, processor = saved("test_resnet", tmp_path / "model", image_size=32)
    recipe("export").main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "onnx")])
    path = tmp_path / "onnx" / "model.onnx"
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    inputs = processor([Image.fromarray(image) for image in pixels], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(logits_of(path, inputs), expected, atol=1e-5)


def test_an_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    saved("test_resnet", tmp_path / "model", image_size=32)
    forward = exporting._Logits.forward
    monkeypatch.setattr(exporting._Logits, "forward", lambda self, *values: forward(self, *values) + 1e-2)
    with pytest.raises(RuntimeError, match="other logits"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(OSError):
        export_onnx(tmp_path / "nowhere", tmp_path / "onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_clidmu\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "onnx")
