"""Tiny ALPRO modules and batches, for the tests of all its tasks."""

from typing import Any

import torch
from torch import Tensor

from methods.alpro.module import Pretraining
from methods.alpro.prompter import Prompter
from methods.alpro.retrieval import Retrieval
from methods.alpro.vqa import VideoQA

SIZE, FRAMES, LENGTH, WORDS, ENTITIES, ANSWERS = 4, 2, 6, 20, 5, 3
PAD, UNK, CLS, SEP, MASK = range(5)
VISION = {"image_size": 32, "patch_size": 8, "width": 8, "depth": 2, "heads": 2, "frames": FRAMES}
TEXT = {
    "vocab_size": WORDS, "hidden_size": 8, "num_layers": 3, "fusion_layer": 1, "num_heads": 2,
    "dropout": 0.0, "intermediate_size": 16, "max_positions": 12,
}  # fmt: skip
FRAME: dict[str, Any] = {
    "vision": VISION, "text": TEXT, "lr": 1e-2, "min_lr": 1e-8, "epochs": 1, "weight_decay": 0.0,
    "warmup_ratio": 0.1, "betas": (0.9, 0.98), "eps": 1e-6,
}  # fmt: skip
ALIGNED: dict[str, Any] = FRAME | {
    "embed_dim": 6, "temperature": 0.07,
    "evaluation": {"k_test": "all", "score": "probability", "medians": True},
}  # fmt: skip
PRETRAINING: dict[str, Any] = ALIGNED | {
    "align": True, "prompt": True, "entities": None, "num_entities": ENTITIES, "keep": "paper",
    "threshold": 0.0, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "mlm_probability": 0.4,
    "unk_id": UNK, "cls_id": CLS, "sep_id": SEP, "mask_id": MASK, "seed": 3,
}  # fmt: skip
MODULES: dict[str, tuple[type, dict[str, Any]]] = {
    "pretrained": (Pretraining, PRETRAINING),
    "prompter": (Prompter, ALIGNED),
    "retrieval": (Retrieval, ALIGNED | {"seed": 3}),
    "vqa": (VideoQA, FRAME | {"num_answers": ANSWERS, "evaluation": {"match": "exact"}}),
}


def build(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    task, options = MODULES[kind]
    return task(**options | changes)


def lively(module: Any, seed: int = 0) -> Any:
    """With random values everywhere, also where a new module has zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        if getattr(module, "prompter", None) is not None:
            for buffer in (module.prompter.video_prompts, module.prompter.image_prompts):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            module.prompter.contrast.temp.fill_(0.1)
        if hasattr(module, "contrast"):
            module.contrast.temp.fill_(0.1)
    return module


def batch(number: int = 0, size: int = SIZE) -> dict[str, Any]:
    """Clips with texts of falling length."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(MASK + 1, WORDS, (size, LENGTH), generator=generator)
    lengths = torch.arange(LENGTH, LENGTH - size, -1).clamp_min(3)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids[:, 0] = CLS
    ids[torch.arange(size), lengths - 1] = SEP
    return {
        "images": clips(size, generator),
        "indices": torch.arange(size),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.arange(size) % ANSWERS,
        "text_image": torch.arange(size),
    }


def clips(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, FRAMES, 3, 32, 32, generator=generator)
