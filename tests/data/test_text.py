"""`hf_clidmu.data.text`: tokenising, padding, and tokenizers that are not fit for use."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from torch.utils.data import DataLoader
from transformers import BertConfig, BertTokenizer, GPT2Config, PreTrainedTokenizerFast

from hf_clidmu.data import ensure_pad_token, load_corpus, text_collator, tokenize_corpus


WORDS = ["the", "cat", "sat", "on", "mat"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    """A word-level tokenizer in the manner of BERT, saved and loaded again."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=200,
    )
    made.save_pretrained(tmp_path / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")


@pytest.fixture
def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of GPT-2: an end-of-sequence token and nothing to pad with."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(["<eos>", "<unk>", *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def rows() -> Dataset:
    return load_corpus(
        Dataset.from_dict({"text": ["the cat sat", "on the mat", "cat dog", "mat"], "label": ["a", "b", "a", "b"]})
    ).train


def test_tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_corpus(rows, tokenizer)
    assert set(tokens.column_names) == {"input_ids", "attention_mask", "labels"} | (
        {"token_type_ids"} & set(tokenizer.model_input_names)
    )
    assert tokens["input_ids"][:] == [[2, 4, 5, 6, 3], [2, 7, 4, 8, 3], [2, 5, 1, 3], [2, 8, 3]]
    assert tokens["attention_mask"][2] == [1, 1, 1, 1]
    assert tokens["labels"][:] == [0, 1, 0, 1]
    assert tokens.features["labels"] == ClassLabel(names=["a", "b"])
    assert tokens.format["type"] is None
    assert rows.column_names == ["text", "label"]
    assert tokenize_corpus(rows, tokenizer, max_length=4)["input_ids"][0] == [2, 4, 5, 3]


def test_tokenize_other_columns(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    other = rows.rename_columns({"text": "body", "label": "labels"}).with_format("torch")
    tokens = tokenize_corpus(other, tokenizer, text_column="body", label_column="labels")
    assert tokens["labels"][:] == [0, 1, 0, 1]
    assert "labels" not in tokenize_corpus(rows.remove_columns("label"), tokenizer).column_names


def test_token_type_ids_are_kept(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert tokenize_corpus(rows, tokenizer)["token_type_ids"][0] == [0] * 5


def test_nothing_is_written(tmp_path: Path, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    rows.save_to_disk(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    tokens = tokenize_corpus(load_corpus(tmp_path / "data").train, tokenizer)
    assert sorted(tmp_path.rglob("*")) == before
    assert tokens.cache_files == []


def test_collator_pads_and_stacks_other_integers(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_corpus(rows, tokenizer).add_column("sample_index", [5, 6, 7, 8])
    collate = pickle.loads(pickle.dumps(text_collator(tokenizer)))
    batch = next(iter(DataLoader(tokens, batch_size=4, collate_fn=collate)))
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 7, 4, 8, 3], [2, 5, 1, 3, 0], [2, 8, 3, 0, 0]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 5, 4, 3]
    assert batch["labels"].tolist() == [0, 1, 0, 1] and batch["labels"].dtype == torch.int64
    assert batch["sample_index"].tolist() == [5, 6, 7, 8] and batch["sample_index"].dtype == torch.int64
    assert text_collator(tokenizer, pad_to_multiple_of=8)([tokens[0]])["input_ids"].shape == (1, 8)


def test_decoder_pads_with_end_of_sequence(
    rows: Dataset, decoder_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"has no pad token.*ensure_pad_token\(tokenizer, model.config\)"):
        text_collator(decoder_tokenizer)
    config = GPT2Config(vocab_size=7, bos_token_id=0, eos_token_id=0, n_embd=8, n_head=1, n_layer=1)
    vocabulary = len(decoder_tokenizer)
    with caplog.at_level(logging.WARNING):
        ensure_pad_token(decoder_tokenizer, config)
    assert not caplog.records
    assert decoder_tokenizer.pad_token == "<eos>" and len(decoder_tokenizer) == vocabulary
    assert config.pad_token_id == decoder_tokenizer.eos_token_id == 0
    tokens = tokenize_corpus(rows, decoder_tokenizer)
    batch = text_collator(decoder_tokenizer)([tokens[0], tokens[3]])
    assert batch["input_ids"].tolist() == [[2, 3, 4], [6, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_pad_token_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    config = BertConfig(pad_token_id=3)
    ensure_pad_token(tokenizer, config)
    ensure_pad_token(tokenizer)
    assert tokenizer.pad_token == "[PAD]" and config.pad_token_id == 3


def test_no_token_to_pad_with(decoder_tokenizer: PreTrainedTokenizerFast) -> None:
    decoder_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end-of-sequence token"):
        ensure_pad_token(decoder_tokenizer)


@pytest.mark.parametrize("use", [text_collator, ensure_pad_token, lambda t: tokenize_corpus(Dataset.from_dict({}), t)])
def test_unusable_tokenizers(tmp_path: Path, use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="tokenizer is None"):
        use(None)
    # What transformers builds from a folder without vocabulary files.
    hollow = BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertTokenizer knows only 5 tokens, all of them special.*probably missing"):
        use(hollow)


@pytest.mark.parametrize(
    ("max_length", "error", "match"),
    [
        (0, ValueError, "max_length must be above 2"),
        (2, ValueError, "max_length must be above 2"),
        (201, ValueError, "max_length=201 exceeds the 200 tokens"),
        (8.0, TypeError, "max_length must be an integer"),
    ],
)
def test_bad_max_length(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, max_length: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        tokenize_corpus(rows, tokenizer, max_length=max_length)


def test_bad_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="text_column='text' is no column.*'sentence'"):
        tokenize_corpus(Dataset.from_dict({"sentence": ["cat"]}), tokenizer)
    with pytest.raises(ValueError, match="column 'text', rows 1, 2: the text is missing or empty"):
        tokenize_corpus(Dataset.from_dict({"text": ["cat", None, " "]}), tokenizer)
    with pytest.raises(ValueError, match="holds Value.*not text"):
        tokenize_corpus(Dataset.from_dict({"text": [1, 2]}), tokenizer)


def test_real_text(shared_data: Callable[[str], Path], tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = load_corpus(shared_data("hausa_topics"), max_train_samples=200)
    tokens = tokenize_corpus(corpus.train, tokenizer, max_length=16)
    assert len(tokens) == 200 and tokens["labels"][:] == corpus.train["label"][:]
    assert max(len(ids) for ids in tokens["input_ids"]) <= 16
