"""The appended block: it holds the mean of the tokens, for ever, and anybody can load it."""

import json
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_clidmu.backbones import load_classifier
from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.pooling import append_mean_pooling, declared_pooling
from hf_clidmu.precompute import freeze_parameters


SIZES = {
    "bert": {},
    "roberta": {"max_position_embeddings": 40},
    "xlm-roberta": {"max_position_embeddings": 40},
    "camembert": {"max_position_embeddings": 40},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
}


def built(model_type, **kwargs):
    torch.manual_seed(0)
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if model_type == "distilbert":
        common = {}
    config = AutoConfig.for_model(
        model_type, vocab_size=60, num_labels=3, pad_token_id=1, **{**common, **SIZES.get(model_type, {}), **kwargs}
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # states of random weights differ too little from token to token
        for parameter in model.base_model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return model.eval()


def texts():
    input_ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((12, 7, 3, 1)):
        input_ids[row, length:], attention_mask[row, length:] = 1, 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def states(model, inputs):
    with torch.no_grad():
        return model.base_model(**inputs).last_hidden_state


@pytest.mark.parametrize("model_type", SIZES)
def test_the_first_token_holds_the_mean_of_the_tokens_that_are_not_padding(model_type):
    model, inputs = built(model_type), texts()
    before = states(model, inputs)
    mask = inputs["attention_mask"][:, :, None].float()
    mean_BD = (before * mask).sum(1) / mask.sum(1)
    append_mean_pooling(model)
    after = states(model, inputs)[:, 0]
    expected = torch.nn.functional.layer_norm(mean_BD, mean_BD.shape[1:])
    assert torch.nn.functional.cosine_similarity(after, expected).min() > 0.999
    first = torch.nn.functional.layer_norm(before[:, 0], mean_BD.shape[1:])
    assert torch.nn.functional.cosine_similarity(after, first)[:3].max() < 0.95  # it is not what was read before
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("model_type", SIZES)
def test_padding_changes_nothing(model_type):
    model, inputs = built(model_type), texts()
    append_mean_pooling(model)
    with torch.no_grad():
        padded = model(**inputs).logits[2]
        alone = model(**{name: value[2:3, :3] for name, value in inputs.items()}).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_attention_stays_uniform_when_the_whole_model_trains(model_type):
    model, inputs = built(model_type), texts()
    append_mean_pooling(model)
    block = model.bert.encoder.layer[-1] if model_type == "bert" else model.distilbert.transformer.layer[-1]
    attention = block.attention.self if model_type == "bert" else block.attention
    projections = (attention.query, attention.key) if model_type == "bert" else (attention.q_lin, attention.k_lin)
    value = attention.value if model_type == "bert" else attention.v_lin
    before = value.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(3):
        model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not projection.weight.any() and not projection.bias.any() for projection in projections)
    assert not torch.equal(value.weight, before)  # the rest of the block does train


def test_it_saves_and_loads_as_a_stock_class_and_is_appended_once(tmp_path):
    model, inputs = built("bert"), texts()
    append_mean_pooling(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    append_mean_pooling(again)
    assert again.config.num_hidden_layers == 3 and len(again.bert.encoder.layer) == 3


def test_the_head_above_a_frozen_encoder_still_trains():
    model = built("bert")
    append_mean_pooling(model)
    freeze_parameters(model, ClassifierTap(model), "backbone")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("model_type", ["deberta-v2", "albert", "mpnet"])
def test_other_architectures_are_refused_and_left_as_they_were(model_type):
    model = built(model_type)
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="BERT family"):
        append_mean_pooling(model)
    assert list(model.state_dict()) == names


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(bert_folder):
    folder, _ = bert_folder
    return folder


def declare(folder, **modes):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))


@pytest.mark.parametrize(
    "modes, expected",
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "own"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "own"),
        (None, "own"),
    ],
)
def test_a_sentence_encoder_says_how_it_is_read(encoder, modes, expected):
    if modes is not None:
        declare(encoder, **modes)
    assert declared_pooling(str(encoder)) == expected
    layers = load_classifier(str(encoder), ["a", "b"])[0].config.num_hidden_layers
    assert layers == (2 if expected == "mean" else 1)


def test_the_argument_wins(encoder):
    assert load_classifier(str(encoder), ["a", "b"], pooling="mean")[0].config.num_hidden_layers == 2
    declare(encoder, pooling_mode_mean_tokens=True)
    assert load_classifier(str(encoder), ["a", "b"], pooling="own")[0].config.num_hidden_layers == 1


def test_a_loaded_pooler_is_drawn_anew(encoder):
    own, _ = load_classifier(str(encoder), ["a", "b"], pooling="own")
    mean, _ = load_classifier(str(encoder), ["a", "b"], pooling="mean")
    assert not torch.equal(own.bert.pooler.dense.weight, mean.bert.pooler.dense.weight)
    assert 0.01 < mean.bert.pooler.dense.weight.std() < 0.03 and not mean.bert.pooler.dense.bias.any()


def test_an_unknown_pooling_is_an_error(encoder):
    with pytest.raises(ValueError, match="pooling must be one of auto, own, mean, got 'max'"):
        load_classifier(str(encoder), ["a", "b"], pooling="max")


def test_a_declared_mean_that_cannot_be_had_is_said(tmp_path, encoder, caplog):
    model = built("mpnet")
    model.save_pretrained(tmp_path / "mpnet")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mpnet" / name).write_bytes((encoder / name).read_bytes())
    declare(tmp_path / "mpnet", pooling_mode_mean_tokens=True)
    with caplog.at_level(logging.WARNING):
        loaded, _ = load_classifier(str(tmp_path / "mpnet"), ["a", "b", "c"])
    assert loaded.config.num_hidden_layers == 2
    assert "mean token state" in caplog.text


def test_a_hub_model_that_cannot_be_asked_is_said(caplog, monkeypatch):
    monkeypatch.setattr("hf_clidmu.pooling.hf_hub_download", _offline)
    with caplog.at_level(logging.WARNING):
        assert declared_pooling("somebody/encoder") == "own"
    assert "pooling='mean'" in caplog.text


def _offline(*args, **kwargs):
    raise ConnectionError("offline")
