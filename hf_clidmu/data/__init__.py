"""Data for training on wrong labels: loading, label noise, images and texts.

Nothing here knows a model: `load_corpus` gives splits in one shape, `image_transforms` and `tokenize_corpus` turn them
into model inputs.
"""

from .corpora import Corpus, load_corpus
from .images import ImageSet, collate_images, image_transforms
from .inputs import PreparedCorpus, prepare_corpus
from .noise import NoiseRecord, measure_noise, symmetric_noise
from .text import ensure_pad_token, text_collator, tokenize_corpus


__all__ = [
    "Corpus",
    "ImageSet",
    "NoiseRecord",
    "PreparedCorpus",
    "collate_images",
    "ensure_pad_token",
    "image_transforms",
    "load_corpus",
    "measure_noise",
    "prepare_corpus",
    "symmetric_noise",
    "text_collator",
    "tokenize_corpus",
]
