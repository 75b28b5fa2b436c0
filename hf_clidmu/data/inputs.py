"""From a corpus to what a trainer takes: the splits as model inputs, and the collator that batches them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .corpora import Corpus
from .images import Augment, ImageSet, as_pil_image, collate_images, image_transforms
from .streams import is_stream, stream_inputs
from .text import text_collator, tokenize_corpus


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as inputs of one model.

    Attributes:
        train: Training samples with the given labels.
        validation: Validation samples, or `None`.
        test: Test samples, or `None`.
        clean_train: Training samples with their true labels, or `None` where not asked for. An upper reference:
            no method that claims to do without clean labels may see them.
        collator: Makes a batch of samples.
    """

    train: Any
    validation: Any | None
    test: Any | None
    clean_train: Any | None
    collator: Any


def prepare_corpus(
    corpus: Corpus,
    processor: Any,
    *,
    augment: Augment = "off",
    hflip: bool = True,
    max_length: int = 128,
    with_clean_train: bool = False,
) -> PreparedCorpus:
    """Turn a corpus into inputs of the model that `processor` belongs to.

    Args:
        corpus: See `load_corpus`.
        processor: The model's image processor or tokenizer.
        augment: Augmentation of training images, see `image_transforms`. Texts are never augmented.
        hflip: Whether the augmentation mirrors images.
        max_length: Longest text, in tokens.
        with_clean_train: Whether to prepare the training samples with their true labels, too.

    Returns:
        The splits and their collator.

    Raises:
        TypeError: The processor is of another modality than the corpus.
        ValueError: True labels are asked for and not known; and see `image_transforms` and `tokenize_corpus`.
    """
    splits = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    labels = dict.fromkeys(splits, "label")
    if with_clean_train:
        if is_stream(corpus.train) or "clean_label" not in corpus.train.column_names:
            raise ValueError(f"The training split of {corpus.name!r} has no clean labels (clean_label_column).")
        splits["clean_train"], labels["clean_train"] = corpus.train, "clean_label"
    prepared: dict[str, Any] = dict.fromkeys((*splits, "clean_train"))
    if corpus.modality == "text":
        if is_stream(corpus.train):
            tokenize = partial(processor, truncation=True, max_length=max_length)
            prepared["train"] = stream_inputs(splits.pop("train"), "text", lambda text: dict(tokenize(text)))
        for name, split in splits.items():
            if split is not None:
                prepared[name] = tokenize_corpus(split, processor, max_length, label_column=labels[name])
        return PreparedCorpus(**prepared, collator=text_collator(processor))
    train_transform, evaluation = image_transforms(processor, augment, hflip=hflip)
    if is_stream(corpus.train):
        prepared["train"] = stream_inputs(
            splits.pop("train"), "image", lambda image: {"pixel_values": train_transform(as_pil_image(image))}
        )
    for name, split in splits.items():
        if split is not None:
            transform = train_transform if name == "train" else evaluation
            prepared[name] = ImageSet(split, transform, eval_transform=evaluation, label_column=labels[name])
    return PreparedCorpus(**prepared, collator=collate_images)
