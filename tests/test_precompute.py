"""What is computed once: which parameters freeze, and that stored features are those of a direct forward."""

import copy

import pytest
import torch
from tiny_models import TEXT, VISION, VOCABULARY, tiny_batch, tiny_classifier
from torch import nn
from transformers import default_data_collator

from hf_clidmu.batches import FEATURES_COLUMN, CachedFeatures, IndexedDataset, SampleCollator
from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.precompute import (
    FeatureTable,
    FrozenBackbone,
    encode,
    evaluating,
    freeze_parameters,
    frozen_modules,
)


CPU = torch.device("cpu")
HEADS = {
    "bert": {"bert.pooler.dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "distilbert": {"pre_classifier", "classifier"},
    "timm:test_resnet": {"timm_model.fc"},
    "timm:test_vit": {"timm_model.head"},
}


def frozen_classifier(name, freeze="backbone"):
    model = tiny_classifier(name)
    tap = ClassifierTap(model)
    return model, tap, freeze_parameters(model, tap, freeze)


def texts(size=9, seed=2):
    """Token lists of different length, as a tokenizer gives them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (size,), generator=generator).tolist()
    return [
        {"input_ids": torch.randint(5, VOCABULARY, (length,), generator=generator).tolist(), "labels": row % 5}
        for row, length in enumerate(lengths)
    ]


def pad(samples):
    width = max(len(sample["input_ids"]) for sample in samples)
    batch = {
        "input_ids": torch.tensor([s["input_ids"] + [1] * (width - len(s["input_ids"])) for s in samples]),
        "attention_mask": torch.tensor(
            [[1] * len(s["input_ids"]) + [0] * (width - len(s["input_ids"])) for s in samples]
        ),
    }
    return {**batch, "labels": torch.tensor([s["labels"] for s in samples])} if "labels" in samples[0] else batch


# ---- what freezes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_freezing_the_backbone_leaves_what_lies_above_the_encoder(name):
    model, _, frozen = frozen_classifier(name)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.{kind}" for layer in HEADS[name] for kind in ("weight", "bias")}
    assert set(frozen) == {key for key, _ in model.named_parameters()} - trained


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_a_regular_expression_freezes_what_it_matches(name):
    model, _, frozen = frozen_classifier(name, r"embeddings\.|layer\.0\.")
    assert frozen
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == ("embeddings." not in key and "layer.0." not in key), key
        assert (key in frozen) != parameter.requires_grad


@pytest.mark.parametrize(
    ("freeze", "message"), [("no_such", "matches no parameter.*names like"), (".", "matches every")]
)
def test_freezing_nothing_or_everything_is_an_error_that_changes_nothing(freeze, message):
    model = tiny_classifier("bert")
    with pytest.raises(ValueError, match=message):
        freeze_parameters(model, ClassifierTap(model), freeze)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_modules_are_the_topmost_ones_without_anything_to_train():
    model, _, _ = frozen_classifier("bert")
    found = frozen_modules(model)
    assert model.bert.embeddings in found
    assert model.bert.encoder in found
    assert not {id(model), id(model.bert), id(model.bert.pooler), id(model.classifier)} & {id(m) for m in found}
    inner = {id(inside) for module in found for inside in module.modules() if inside is not module}
    assert not inner & {id(module) for module in found}
    assert frozen_modules(tiny_classifier("bert")) == []
    assert frozen_modules(model.requires_grad_(False)) == [model]
    assert frozen_modules(nn.Dropout()) == []  # nothing in it is frozen


def test_evaluating_gives_every_module_its_own_mode_back():
    model = tiny_classifier("bert")
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


# ---- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, [5, 0, 8, 3], [4, 4]])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_encoded_rows_are_those_of_a_direct_forward_in_the_asked_order(rows, batch_size):
    model, data = tiny_classifier("bert"), texts()
    tap = ClassifierTap(model)
    torch.manual_seed(0)
    found = encode(model, tap, IndexedDataset(data), SampleCollator(pad), batch_size, CPU, rows=rows)
    assert model.training
    asked = list(range(len(data))) if rows is None else rows
    assert len(found.features_ND) == len(found.logits_NC) == len(found.general_ND) == len(asked)
    assert found.labels_N.tolist() == [row % 5 for row in asked]
    assert found.cut_ND is None
    with torch.no_grad(), evaluating(model):
        for i, row in enumerate(asked):  # one by one: no padding at all
            ids = torch.tensor([data[row]["input_ids"]])
            states = model.bert(ids)
            torch.testing.assert_close(found.logits_NC[i], model(ids).logits[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.features_ND[i], states.pooler_output[0], rtol=1e-4, atol=1e-5)
            expected_D = states.last_hidden_state[0].mean(dim=0)  # the padding does not count
            torch.testing.assert_close(found.general_ND[i], expected_D, rtol=1e-4, atol=1e-5)
    assert not found.features_ND.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_an_image_model_is_encoded_by_the_inputs_of_its_last_layer():
    model = tiny_classifier("timm:test_resnet")
    inputs, _ = tiny_batch("timm:test_resnet", 5)
    data = [{"pixel_values": values} for values in inputs["pixel_values"]]
    found = encode(model, ClassifierTap(model), data, torch.utils.data.default_collate, 2, CPU)
    with torch.no_grad(), evaluating(model):
        expected_BC = model(**inputs).logits
    torch.testing.assert_close(found.logits_NC, expected_BC, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.general_ND, found.features_ND)
    assert found.labels_N is None
    head = ClassifierTap(model).head
    torch.testing.assert_close(head(found.features_ND), expected_BC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*TEXT, *VISION])
def test_the_middle_is_the_mean_of_the_hidden_states_halfway_up(name):
    model = tiny_classifier(name)
    inputs, _ = tiny_batch(name)
    data = [{key: values[row] for key, values in inputs.items()} for row in range(len(next(iter(inputs.values()))))]
    arguments = (model, ClassifierTap(model), data, torch.utils.data.default_collate, len(data), CPU)
    found, without = encode(*arguments, middle=True), encode(*arguments)
    assert without.middle_ND is None
    for one, other in zip(vars(found).values(), vars(without).values(), strict=True):
        assert other is None or torch.equal(one, other)
    with torch.no_grad(), evaluating(model):
        states = model(**inputs, output_hidden_states=True).hidden_states
    state = states[len(states) // 2]
    if "attention_mask" in inputs:
        expected = [rows[mask.bool()].mean(dim=0) for rows, mask in zip(state, inputs["attention_mask"], strict=True)]
        expected_ND = torch.stack(expected)
    else:
        expected_ND = state.mean(dim=1) if state.ndim == 3 else state.flatten(2).mean(dim=2)
    torch.testing.assert_close(found.middle_ND, expected_ND, rtol=1e-4, atol=1e-5)
    assert not model._forward_hooks and not model._forward_pre_hooks  # those further in are the library's own


def test_a_model_that_does_not_tell_its_middle_gives_its_features(monkeypatch):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classifier = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, pixel_values):
            return self.classifier(self.body(pixel_values).relu())

    data = [{"pixel_values": torch.randn(6)} for _ in range(5)]
    wrapper = tiny_classifier("timm:test_resnet")
    monkeypatch.delattr(type(wrapper.timm_model), "forward_intermediates")
    images = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(3)]
    for model, samples in ((Plain(), data), (wrapper, images)):
        found = encode(model, ClassifierTap(model), samples, torch.utils.data.default_collate, 2, CPU, middle=True)
        assert torch.equal(found.middle_ND, found.features_ND)


# ---- a backbone that is cut off --------------------------------------------------------------------------------------


def found_backbone(name="bert", freeze="backbone"):
    model, tap, _ = frozen_classifier(name, freeze)
    inputs, _ = tiny_batch(name)
    return model, tap, inputs, FrozenBackbone.find(model, tap, inputs)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_the_model_runs_from_stored_vectors(name):
    model, tap, inputs, backbone = found_backbone(name)
    data = texts()
    encoded = encode(model, tap, data, SampleCollator(pad), 4, CPU, backbone)
    assert encoded.cut_ND.shape == (len(data), 16)
    stored = CachedFeatures(encoded.cut_ND, encoded.labels_N)
    with torch.no_grad(), evaluating(model), backbone.installed(model):
        found_BC = model(**{FEATURES_COLUMN: stored.features_ND[:5]}).logits
        raw_BC = model(**inputs).logits  # other inputs are not touched
    torch.testing.assert_close(found_BC, encoded.logits_NC[:5], rtol=1e-4, atol=1e-5)
    with torch.no_grad(), evaluating(model):
        torch.testing.assert_close(raw_BC, model(**inputs).logits)
    assert stored.labels_N.tolist() == [row % 5 for row in range(9)]


def test_finding_leaves_the_model_as_it_was():
    model, tap, _ = frozen_classifier("bert")
    model.bert.eval()
    modes = [module.training for module in model.modules()]
    inputs, _ = tiny_batch("bert")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert FrozenBackbone.find(model, tap, inputs) is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_there_is_no_backbone_where_nothing_is_frozen_or_the_input_is_no_text():
    bert = tiny_classifier("bert")
    assert FrozenBackbone.find(bert, ClassifierTap(bert), tiny_batch("bert")[0]) is None
    _, _, _, backbone = found_backbone("timm:test_resnet")
    assert backbone is None


def test_a_part_in_the_middle_cannot_be_cut_off():
    # The first trainable layer is inside the encoder and sees token states, not one vector a sample.
    _, _, _, backbone = found_backbone("bert", r"embeddings\.")
    assert backbone is None


def test_contexts_may_be_nested():
    model, tap, inputs, backbone = found_backbone()
    with torch.no_grad(), evaluating(model):
        output, cut_BD = backbone.encode_batch(model, inputs)
        stored = {FEATURES_COLUMN: cut_BD}
        with backbone.installed(model):
            with backbone.installed(model):
                inner_BC = model(**stored).logits
            outer_BC = model(**stored).logits  # still installed
        torch.testing.assert_close(inner_BC, output.logits_BC, rtol=1e-4, atol=1e-5)
        assert torch.equal(outer_BC, inner_BC)
        with pytest.raises((TypeError, ValueError)):  # as of any model: it knows no such input
            model(**stored)
        with pytest.raises(KeyError), backbone.installed(model):
            raise KeyError
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert not any("forward" in vars(module) for module in model.modules())
        with backbone.installed(model):
            assert torch.equal(model(**stored).logits, inner_BC)
        torch.testing.assert_close(copy.deepcopy(model)(**inputs).logits, output.logits_BC)


def test_only_the_trained_part_gets_gradients_from_stored_vectors():
    model, tap, inputs, backbone = found_backbone()
    with torch.no_grad(), evaluating(model):
        _, cut_BD = backbone.encode_batch(model, inputs)
    with backbone.installed(model):
        model(**{FEATURES_COLUMN: cut_BD}).logits.sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


# ---- lookup ----------------------------------------------------------------------------------------------------------


def test_features_are_found_by_sample_index():
    features_RD = torch.arange(8.0).reshape(4, 2)
    table = FeatureTable([9, 2, 5, 0], features_RD)
    assert torch.equal(table.lookup(torch.tensor([5, 9, 9, 0, 2])), features_RD[[2, 0, 0, 3, 1]])
    assert table.lookup(torch.tensor([], dtype=torch.long)).shape == (0, 2)
    with pytest.raises(IndexError):
        table.lookup(torch.tensor([10]))


class Images(torch.utils.data.Dataset):
    """Remembers how many of its samples were asked for at once."""

    def __init__(self, size):
        self.inputs, self.labels_N = tiny_batch("timm:test_vit", size=size)
        self.most = 0

    def __len__(self):
        return len(self.labels_N)

    def __getitems__(self, rows):
        self.most = max(self.most, len(rows))
        return [{"pixel_values": self.inputs["pixel_values"][row], "labels": int(self.labels_N[row])} for row in rows]


def test_images_are_fetched_a_batch_at_a_time_for_all_of_them_would_fill_the_memory():
    data, model, rows = Images(10), tiny_classifier("timm:test_vit").eval(), [7, 2, 9, 0, 1, 5, 3]
    found = encode(model, ClassifierTap(model), data, default_data_collator, 3, CPU, rows=rows)
    assert data.most == 3
    want_NC = model(data.inputs["pixel_values"][rows]).logits.detach()
    torch.testing.assert_close(found.logits_NC, want_NC, rtol=1e-4, atol=1e-5)
    assert found.labels_N.tolist() == data.labels_N[rows].tolist()
