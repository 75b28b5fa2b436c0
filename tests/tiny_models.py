"""Tiny classifiers of many architectures, built from configurations: no network, no weights."""

import timm
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)


NUM_LABELS = 5
VOCABULARY = 60
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": NUM_LABELS,
    "pad_token_id": 1,
}
TEXT_CONFIGS = {
    "bert": {},
    "roberta": {},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
    },
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "qwen2": {"num_key_value_heads": 2},
}
VISION_CONFIGS = {
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    },
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}
TIMM_ARCHITECTURES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
TEXT = tuple(TEXT_CONFIGS)
VISION = tuple(VISION_CONFIGS) + tuple(f"timm:{name}" for name in TIMM_ARCHITECTURES)


def tiny_classifier(name: str, seed: int = 0, **changes: object) -> nn.Module:
    """A randomly initialised classifier in training mode, weights large enough for its logits to differ."""
    torch.manual_seed(seed)
    if name.startswith("timm:"):
        architecture = name.removeprefix("timm:")
        arguments = {"img_size": 32} if "vit" in architecture else None
        config = TimmWrapperConfig(
            architecture=architecture,
            num_labels=NUM_LABELS,
            model_args=arguments,
            pretrained_cfg={**timm.get_pretrained_cfg(architecture).to_dict(), "input_size": [3, 32, 32]},
        )
        model = TimmWrapperForImageClassification(config)
    elif name in TEXT_CONFIGS:
        positions = {} if name == "xlnet" else {"max_position_embeddings": 40}  # xlnet knows no limit
        config = AutoConfig.for_model(name, **{**_ENCODER, **positions, **TEXT_CONFIGS[name], **changes})
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        config = AutoConfig.for_model(name, num_labels=NUM_LABELS, **{**VISION_CONFIGS[name], **changes})
        model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return model.train()


def tiny_batch(name: str, size: int = 6, seed: int = 1) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs and labels that fit a tiny classifier; texts of different length, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(0, NUM_LABELS, (size,), generator=generator)
    if name not in TEXT_CONFIGS:
        return {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator)}, labels_B
    tokens_BT = torch.randint(5, VOCABULARY, (size, 9), generator=generator)
    mask_BT = (torch.arange(9) < torch.randint(4, 10, (size, 1), generator=generator)).long()
    return {"input_ids": torch.where(mask_BT == 1, tokens_BT, 1), "attention_mask": mask_BT}, labels_B
