"""What a frozen backbone makes of samples, kept between runs: only what is new is computed, and what is found fits."""

import logging

import pytest
import torch
from test_precompute import CPU, found_backbone, pad, texts
from tiny_models import tiny_batch, tiny_classifier

from hf_clidmu import encoding_cache, encodings
from hf_clidmu.batches import SampleCollator
from hf_clidmu.classifier import ClassifierTap
from hf_clidmu.encodings import Encodings, encode_from_cache
from hf_clidmu.precompute import encode, evaluating


ALL = list(range(9))


@pytest.fixture
def computed(monkeypatch):
    """Rows that a cache had to have computed, call by call."""
    calls = []

    def counting(*arguments, rows=None):
        if rows is not None:  # None: there is no cache
            calls.append(rows)
        return encode(*arguments, rows=rows)

    monkeypatch.setattr(encodings, "encode", counting)
    return calls


def kept(folder, data=None, moved=0.0, **config):
    model, tap, _, backbone = found_backbone()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] += moved
    for name, value in config.items():
        setattr(model.config, name, value)
    data = texts() if data is None else data
    return Encodings(model, tap, backbone, SampleCollator(pad), 4, CPU, folder).frozen(data)


def encode_anew(data):
    model, tap, _, backbone = found_backbone()
    return Encodings(model, tap, backbone, SampleCollator(pad), 4, CPU).frozen(data)


def test_an_encoding_is_kept_and_read_again(tmp_path, computed):
    first = kept(tmp_path)
    again = kept(tmp_path)
    assert computed == [ALL]
    assert len(list(tmp_path.iterdir())) == 1
    for name in ("cut_ND", "general_ND", "labels_N"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_other_labels_orders_and_parts_of_known_samples_cost_nothing(tmp_path, computed):
    first = kept(tmp_path)
    order = [7, 2, 2, 5]
    changed = [{**texts()[row], "labels": 4} for row in order]
    found = kept(tmp_path, changed)
    assert computed == [ALL]
    assert torch.equal(found.cut_ND, first.cut_ND[order]) and torch.equal(found.general_ND, first.general_ND[order])
    assert found.labels_N.tolist() == [4] * 4
    unlabelled = kept(tmp_path, [{"input_ids": sample["input_ids"]} for sample in texts()])
    assert unlabelled.labels_N is None and torch.equal(unlabelled.cut_ND, first.cut_ND)
    named = kept(tmp_path, label2id={"a": 0, "b": 1, "c": 2, "d": 3, "e": 4})
    assert computed == [ALL] and torch.equal(named.cut_ND, first.cut_ND)


def test_only_new_samples_are_computed_and_all_are_right(tmp_path, computed):
    old, new = texts(6), texts(5, seed=3)
    kept(tmp_path, old)
    mixed = [old[4], new[0], old[1], new[3]]
    found = kept(tmp_path, mixed)
    assert computed == [list(range(6)), [1, 3]]
    assert len(list(tmp_path.iterdir())) == 2
    alone = encode_anew(mixed)
    torch.testing.assert_close(found.cut_ND, alone.cut_ND, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.general_ND, alone.general_ND, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels_N, alone.labels_N)
    kept(tmp_path, [*old, new[0], new[3]])
    assert len(computed) == 2


def test_other_weights_and_settings_are_encoded_anew(tmp_path, computed):
    first = kept(tmp_path)
    moved = kept(tmp_path, moved=1e-2)
    assert not torch.equal(first.cut_ND, moved.cut_ND)
    kept(tmp_path, hidden_act="relu")
    assert computed == [ALL] * 3


@pytest.mark.parametrize("damage", ["cut short", "rows lost", "a tensor lost"])
def test_a_broken_file_is_replaced(tmp_path, caplog, computed, damage):
    first = kept(tmp_path)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors = encoding_cache.read_tensors(path)
        if damage == "rows lost":
            tensors["cut_ND"] = tensors["cut_ND"][:3]
        else:
            del tensors["general_ND"]
        encoding_cache.write_tensors(path, tensors)
    with caplog.at_level(logging.WARNING):
        again = kept(tmp_path)
    assert "computed anew" in caplog.text
    assert torch.equal(first.cut_ND, again.cut_ND) and path.stat().st_size == size
    assert computed == [ALL, ALL]


def test_a_full_disk_is_a_warning(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding_cache, "write_tensors", refuse)
    with caplog.at_level(logging.WARNING):
        found = kept(tmp_path)
    assert "could not be kept" in caplog.text
    assert torch.equal(found.cut_ND, encode_anew(texts()).cut_ND)


def test_the_stored_dataset_runs_the_model(tmp_path):
    model, _, _, backbone = found_backbone()
    kept(tmp_path)
    stored = kept(tmp_path).dataset()
    samples = stored.__getitems__([0, 3])
    with torch.no_grad(), evaluating(model), backbone.installed(model):
        found_BC = model(frozen_features=samples.columns["frozen_features"]).logits
    with torch.no_grad(), evaluating(model):
        batch = pad([texts()[0], texts()[3]])
        expected_BC = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(found_BC, expected_BC, rtol=1e-4, atol=1e-5)


def test_a_whole_model_is_encoded_by_what_is_kept(tmp_path, computed):
    kept(tmp_path)
    model, tap, _, _ = found_backbone()
    with torch.no_grad():
        model.classifier.weight.mul_(2)  # what was trained since is no part of it
    direct = encode(model, tap, texts(), pad, 4, CPU)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # as a model that was just loaded
    for name, value in {"architectures": ["Other"], "id2label": dict(enumerate("vwxyz"))}.items():
        setattr(model.config, name, value)
    found = encode_from_cache(model, tap, texts(), pad, 4, CPU, tmp_path)
    assert computed == [ALL]
    for name in ("features_ND", "logits_NC", "general_ND", "labels_N"):
        torch.testing.assert_close(getattr(found, name), getattr(direct, name), rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_kept_the_model_is_encoded_as_ever(tmp_path):
    model = tiny_classifier("timm:test_resnet")
    inputs, _ = tiny_batch("timm:test_resnet", 3)
    data = [{"pixel_values": values} for values in inputs["pixel_values"]]
    arguments = (model, ClassifierTap(model), data, torch.utils.data.default_collate, 2, CPU)
    found, direct = encode_from_cache(*arguments, tmp_path), encode(*arguments)
    assert torch.equal(found.logits_NC, direct.logits_NC)
    assert not list(tmp_path.iterdir())
