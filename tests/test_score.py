"""Any model on any corpus: the scores, the file, the card; and what is refused."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from recipe_scripts import recipe

from hf_clidmu.backbones import load_classifier
from hf_clidmu.data import load_corpus, prepare_corpus
from hf_clidmu.model_card import CardFacts, write_card


score = recipe("score")


@pytest.fixture(scope="module")
def digits():
    return load_corpus("digits")


def saved(folder, names):
    torch.manual_seed(0)
    model, processor = load_classifier("test_resnet", names, image_size=16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


def run(folder, output, *words):
    return score.main(["--model", str(folder), "--dataset", "digits", "--output", str(output), *words])


def test_the_scores_are_those_of_the_model(digits, tmp_path):
    names = digits.label_names
    model, processor = saved(tmp_path / "model", names)
    found = run(tmp_path / "model", tmp_path / "scores" / "results.json", "--max_samples", "120")
    samples = prepare_corpus(digits, processor).test
    pixels = torch.stack([samples[row]["pixel_values"] for row in range(120)])
    with torch.no_grad():
        predicted = model(pixel_values=pixels).logits.argmax(dim=1)
    labels = torch.tensor(digits.test["label"][:120])
    assert found["scores"]["accuracy"] == float((predicted == labels).double().mean())
    assert set(found["scores"]) == {"accuracy", "macro_f1", "expected_calibration_error", "clid"}
    assert (found["num_samples"], found["split"], found["model"]) == (120, "test", "model")
    assert json.loads((tmp_path / "scores" / "results.json").read_text()) == found

    # classes in another order, the last layer along with them: the same model
    order = [3, 1, 2, 0, *range(4, 10)]
    model.config.id2label = {number: names[label] for number, label in enumerate(order)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    with torch.no_grad():
        last = model.timm_model.get_classifier()
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    model.save_pretrained(tmp_path / "other")
    again = run(tmp_path / "other", tmp_path / "again.json", "--max_samples", "120")
    assert again["scores"] == pytest.approx(found["scores"])


def test_scores_are_added_to_a_card_that_is_there(digits, tmp_path):
    saved(tmp_path / "model", digits.label_names)
    with pytest.raises(SystemExit, match="no card to add to"):
        run(tmp_path / "model", tmp_path / "r.json", "--max_samples", "50", "--add_to_card", "true")
    write_card(CardFacts(model_name="digits", modality="image"), tmp_path / "model")
    found = run(tmp_path / "model", tmp_path / "r.json", "--max_samples", "50", "--add_to_card", "true")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    scores = found["scores"]
    assert figures == {
        "accuracy": scores["accuracy"],
        "f1": scores["macro_f1"],
        "ece": scores["expected_calibration_error"],
    }
    assert f"| digits | test | 50 | Accuracy {scores['accuracy']:.4f}" in card.text


def test_a_model_of_other_classes_is_refused_and_keeps_its_last_layer(tmp_path):
    saved(tmp_path / "model", ["cat", "dog"])
    with pytest.raises(SystemExit, match="knows the classes cat, dog, the corpus has 0, 1, 2"):
        run(tmp_path / "model", tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    with pytest.raises(SystemExit, match="no split 'validation'"):
        run(tmp_path / "model", tmp_path / "r.json", "--split", "validation")


def test_bare_numbers_are_taken_in_their_order():
    assert score.class_order(["LABEL_0", "LABEL_1"], ["bad", "good"], "m") == [0, 1]
    assert score.class_order(["good", "bad"], ["bad", "good"], "m") == [1, 0]
