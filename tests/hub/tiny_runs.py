"""Runs of a second: tiny classifiers of four kinds, a few samples, and their processors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_clidmu.backbones import load_classifier
from hf_clidmu.config import CLIDMUConfig
from hf_clidmu.metrics import classification_metrics
from hf_clidmu.trainer import CLIDMUTrainer


KINDS = ("timm", "vit", "bert", "qwen2")
CLASSES = ("bad", "good")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "very", "not", "one", "two"]
_LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: i for i, name in enumerate(CLASSES)},
}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tiny_model(kind: str) -> tuple[Any, Any]:
    """A classifier with random weights, and its processor."""
    torch.manual_seed(0)
    if kind == "timm":
        return load_classifier("test_resnet", CLASSES, image_size=32)
    if kind == "vit":
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, **_LABELS,
        )  # fmt: skip
        return ViTForImageClassification(config), ViTImageProcessor(size={"height": 32, "width": 32})
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **_TEXT, **_LABELS)), tokenizer()
    config = Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, **_TEXT, **_LABELS)
    return Qwen2ForSequenceClassification(config), tokenizer()


def inputs(kind: str, count: int = 24) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    labels = [int(label) for label in random.integers(0, 2, count)]
    if kind in ("timm", "vit"):
        pixels = random.standard_normal((count, 3, 32, 32)).astype(np.float32)
        return [{"pixel_values": torch.from_numpy(x + y), "labels": y} for x, y in zip(pixels, labels, strict=True)]
    tokens = random.integers(6, len(WORDS), (count, 6))
    tokens[:, 0] = [4 + label for label in labels]
    mask = torch.ones(6, dtype=torch.long)
    return [
        {"input_ids": torch.from_numpy(x), "attention_mask": mask, "labels": y}
        for x, y in zip(tokens, labels, strict=True)
    ]


def tiny_run(kind: str, folder: Path, args: Any = None, processor: Any = "its own", **settings: Any) -> CLIDMUTrainer:
    """A trainer over 24 samples; settings as in CLIDMUConfig."""
    model, own = tiny_model(kind)
    given = {
        "max_steps": 4, "eval_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "meta_warmup_steps": 0, **settings,
    }  # fmt: skip
    samples = inputs(kind)
    return CLIDMUTrainer(
        model,
        args or CLIDMUConfig(str(folder), **given),
        train_dataset=samples,
        eval_dataset=samples[:8],
        processing_class=own if processor == "its own" else processor,
        compute_metrics=classification_metrics,
    )


@torch.no_grad()
def logits_of(model: Any, kind: str) -> torch.Tensor:
    """Logits of the first samples, in evaluation mode."""
    batch = [{name: value for name, value in sample.items() if name != "labels"} for sample in inputs(kind, 4)]
    stacked = {name: torch.stack([sample[name] for sample in batch]) for name in batch[0]}
    return model.eval()(**stacked).logits
