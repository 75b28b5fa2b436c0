"""Classifiers by name: built, saved, and used by somebody who knows only transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_clidmu.backbones import load_classifier


ANIMALS = ["bird", "cat", "dog"]


def picture(size=(40, 52), seed=0):
    pixels_HWC = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HWC)


def sharpened(model):
    """Random weights say nearly the same of everything: make the last layer speak up."""
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model.eval()


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [32, None])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_timm_architecture_works_in_a_pipeline(architecture, image_size, tmp_path):
    torch.manual_seed(0)
    model, processor = load_classifier(architecture, ANIMALS, image_size=image_size)
    sharpened(model).save_pretrained(tmp_path)
    pixels_BCHW = processor(picture(), return_tensors="pt")["pixel_values"]
    side = image_size or 160
    assert pixels_BCHW.shape == (1, 3, side, side)
    with torch.no_grad():
        logits_BC = model(pixel_values=pixels_BCHW).logits
    assert logits_BC.shape == (1, 3)

    classify = pipeline("image-classification", model=str(tmp_path))
    assert torch.equal(classify.image_processor(picture(), return_tensors="pt")["pixel_values"], pixels_BCHW)
    with torch.no_grad():
        torch.testing.assert_close(classify.model(pixel_values=pixels_BCHW).logits, logits_BC)
    scores = {answer["label"]: answer["score"] for answer in classify(picture())}
    expected = dict(zip(ANIMALS, logits_BC.softmax(1)[0].tolist(), strict=True))
    assert scores == pytest.approx(expected, rel=1e-4)
    assert logits_BC.std() > 1e-3  # else the comparison would say nothing


def test_labels_are_named_and_weights_are_random():
    torch.manual_seed(0)
    first, _ = load_classifier("test_resnet", ANIMALS, image_size=32)
    second, _ = load_classifier("test_resnet", ANIMALS, image_size=32)
    assert first.config.id2label == {0: "bird", 1: "cat", 2: "dog"}
    assert first.config.label2id == {"bird": 0, "cat": 1, "dog": 2}
    assert first.config.num_labels == 3
    assert not torch.equal(first.timm_model.fc.weight, second.timm_model.fc.weight)
    assert not first.config._name_or_path  # the trainer tells by this that nobody trained it before


def test_further_arguments_reach_timm():
    model, _ = load_classifier("test_vit", ANIMALS, image_size=32, model_args={"drop_rate": 0.25})
    assert model.timm_model.head_drop.p == 0.25
    assert model.timm_model.patch_embed.img_size == (32, 32)


def test_a_saved_image_model_gets_a_new_last_layer(tmp_path):
    torch.manual_seed(0)
    model, processor = load_classifier("test_resnet", ANIMALS, image_size=32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    other, other_processor = load_classifier(str(tmp_path), ["a", "b", "c", "d"])
    assert other.timm_model.fc.weight.shape[0] == 4
    assert torch.equal(other.timm_model.conv1[0].weight, model.timm_model.conv1[0].weight)
    assert other.config.id2label[3] == "d"
    assert other_processor(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    same, _ = load_classifier(str(tmp_path), ANIMALS)
    assert torch.equal(same.timm_model.fc.weight, model.timm_model.fc.weight)


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_a_local_text_folder_gets_a_new_head_and_works_in_a_pipeline(bert_folder, tmp_path):
    folder, original = bert_folder
    model, tokenizer = load_classifier(str(folder), ANIMALS)
    assert model.classifier.weight.shape == (3, 16)
    assert model.config.problem_type == "single_label_classification"
    embeddings = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[embeddings], original.state_dict()[embeddings])
    sharpened(model).save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits_BC = model(**tokenizer("a very good film", return_tensors="pt")).logits
    classify = pipeline("text-classification", model=str(tmp_path / "out"))
    scores = {answer["label"]: answer["score"] for answer in classify("a very good film", top_k=None)}
    assert scores == pytest.approx(dict(zip(ANIMALS, logits_BC.softmax(1)[0].tolist(), strict=True)), rel=1e-4)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["one"], "at least two classes"),
        ([], "at least two classes"),
        (["a", "b", "a"], "differ"),
        ([1, "1"], "differ"),
    ],
)
def test_labels_that_make_no_classifier(labels, message):
    with pytest.raises(ValueError, match=message):
        load_classifier("test_resnet", labels)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_an_unknown_name_says_what_can_be_given(name):
    with pytest.raises(OSError, match=f"cannot load the model '{name}'.*folder with a config.json.*timm.list_models"):
        load_classifier(name, ANIMALS)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(OSError, match="no local folder with a config.json"):
        load_classifier(str(tmp_path), ANIMALS)


@pytest.mark.parametrize("extra", [{"image_size": 32}, {"model_args": {"drop_rate": 0.1}}])
def test_a_folder_brings_its_own_configuration(extra, bert_folder):
    with pytest.raises(ValueError, match="are for architecture names"):
        load_classifier(str(bert_folder[0]), ANIMALS, **extra)
