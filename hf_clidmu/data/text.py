"""Texts to token ids, and the collator that pads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._rows import quote
from .columns import check_texts


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedTokenizerBase


def tokenize_corpus(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    text_column: str = "text",
    label_column: str = "label",
) -> Dataset:
    """Tokenise a split; padding is left to the collator.

    Args:
        dataset: A split with a text column. Not modified, and nothing is written beside it: the result is in memory.
        tokenizer: The model's tokenizer.
        max_length: Longer texts are cut to so many tokens, special ones included.
        text_column: Column of the texts.
        label_column: Column of the labels. A split without it gives a result without labels.

    Returns:
        A dataset with `input_ids`, `attention_mask` and whatever else the tokenizer makes (`token_type_ids`), and
        `labels`; one row per row of `dataset`, in order.

    Raises:
        TypeError: `tokenizer` is `None`, or `max_length` is no integer.
        ValueError: The tokenizer has no vocabulary, `max_length` is below 1 or beyond what the model can take, or the
            text column is missing or has empty rows.
    """
    _check_tokenizer(tokenizer)
    _check_max_length(tokenizer, max_length)
    if text_column not in dataset.column_names:
        raise ValueError(
            f"text_column={text_column!r} is no column of the data. Available columns: {quote(dataset.column_names)}."
        )
    rows = dataset.with_format(None)
    check_texts(rows, text_column, f"column {text_column!r}", argument="text_column")
    kept = [text_column, label_column] if label_column in rows.column_names else [text_column]
    rows = rows.select_columns(kept)
    if len(kept) == 2 and label_column != "labels":
        rows = rows.rename_column(label_column, "labels")

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(tokenizer(batch[text_column], truncation=True, max_length=max_length))

    return rows.map(
        tokenize,
        batched=True,
        remove_columns=[text_column],
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="Tokenizing",
    ).with_format(None)


def text_collator(tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None) -> DataCollatorWithPadding:
    """Make the collator that pads each batch to its longest text.

    Args:
        tokenizer: The model's tokenizer. It must have a pad token: see `ensure_pad_token`.
        pad_to_multiple_of: Round the length up to a multiple, which tensor cores like.

    Returns:
        A collator. It gives `input_ids`, `attention_mask`, ... as (B, L) int64 tensors, `labels` (B,), and every other
        numeric field, such as `sample_index`, as a (B,) tensor.

    Raises:
        TypeError: `tokenizer` is `None`.
        ValueError: The tokenizer has no vocabulary or no pad token.
    """
    from transformers import DataCollatorWithPadding

    _check_tokenizer(tokenizer)
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no pad token, so texts of different length cannot share a batch. Call "
            "ensure_pad_token(tokenizer, model.config) first."
        )
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig | None = None) -> None:
    """Give a decoder's tokenizer and model a pad token: the end-of-sequence token, unless there is one already.

    Decoders such as GPT-2 and Llama come without a pad token. No token is added, so the embeddings keep their size.
    The attention mask hides the padding; the model's `pad_token_id` tells the classifier where a text ends.

    Args:
        tokenizer: Modified in place when it has no pad token.
        model_config: Configuration of the model, modified in place when it has no `pad_token_id`. `None` leaves it to
            the caller.

    Raises:
        TypeError: `tokenizer` is `None`.
        ValueError: The tokenizer has neither a pad token nor an end-of-sequence token.
    """
    _check_tokenizer(tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has neither a pad token nor an end-of-sequence token. Set one of its own "
                'tokens: tokenizer.pad_token = "...".'
            )
        tokenizer.pad_token = tokenizer.eos_token
    if model_config is not None:
        # Multimodal models keep the configuration of their language part inside; both are read.
        for config in (model_config, model_config.get_text_config()):
            if getattr(config, "pad_token_id", None) is None:
                config.pad_token_id = tokenizer.pad_token_id


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> None:
    if tokenizer is None:
        raise TypeError("tokenizer is None: pass the tokenizer of the model, AutoTokenizer.from_pretrained(...).")
    # transformers builds a tokenizer of special tokens alone when the vocabulary file is missing, without a word.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise ValueError(
            f"{type(tokenizer).__name__} knows only {len(tokenizer)} tokens, all of them special: every text would "
            f"become unknown tokens. The vocabulary files are probably missing from {tokenizer.name_or_path!r} "
            "(tokenizer.json, vocab.txt, ...)."
        )


def _check_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise TypeError(f"max_length must be an integer, got {max_length!r}.")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise ValueError(
            f"max_length must be above {special}, the special tokens that every text gets; got {max_length}."
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} exceeds the {tokenizer.model_max_length} tokens that the model of this "
            "tokenizer can take (tokenizer.model_max_length)."
        )
