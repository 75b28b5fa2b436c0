"""Data for training on wrong labels: loading, label noise, images and texts.

Nothing here knows a model: `load_corpus` gives splits in one shape, `image_transforms` and `tokenize_corpus` turn them
into model inputs.
"""

from .corpora import Corpus, load_corpus
from .images import ImageSet, collate_images, image_transforms
from .inputs import PreparedCorpus, prepare_corpus
from .noise import NOISE_KINDS, NoiseRecord, inject_noise, measure_noise, symmetric_noise
from .presets import PRESETS, Preset, get_preset
from .streams import stream_corpus
from .text import ensure_pad_token, text_collator, tokenize_corpus


__all__ = [
    "NOISE_KINDS",
    "PRESETS",
    "Corpus",
    "ImageSet",
    "NoiseRecord",
    "PreparedCorpus",
    "Preset",
    "collate_images",
    "ensure_pad_token",
    "get_preset",
    "image_transforms",
    "inject_noise",
    "load_corpus",
    "measure_noise",
    "prepare_corpus",
    "stream_corpus",
    "symmetric_noise",
    "text_collator",
    "tokenize_corpus",
]
