"""Tiny BLIP modules and batches, for the tests of all its tasks."""

from functools import partial
from typing import Any

import torch

from methods.blip.captioning import Captioning
from methods.blip.module import Pretraining
from methods.blip.nlvr import NLVR
from methods.blip.retrieval import Retrieval
from methods.blip.vqa import VQA

SIZE, LENGTH, WORDS, QUEUE = 4, 6, 20, 8
PAD, CLS, SEP, BOS, ENC = 0, 2, 3, WORDS - 2, WORDS - 1
VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": WORDS, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.0,
    "intermediate_size": 16, "max_positions": 24, "type_vocab_size": 0,
}  # fmt: skip
FRAME: dict[str, Any] = {
    "vision": VISION, "text": TEXT, "lr": 1e-2, "min_lr": 1e-3, "epochs": 2, "weight_decay": 0.05,
}  # fmt: skip
ALIGNMENT: dict[str, Any] = FRAME | {
    "embed_dim": 6, "enc_id": ENC, "queue_size": QUEUE, "temperature": 0.07,
    "encoder_momentum": 0.9, "alpha": 0.4, "evaluation": {"k_test": 2}, "seed": 3,
}  # fmt: skip
PRETRAINING: dict[str, Any] = ALIGNMENT | {
    "bos_id": BOS, "sharing": "all_but_sa", "floor": 1e-4, "ramp": 2, "label_smoothing": 0.1,
    "warmup_lr": 1e-3, "warmup_steps": 2, "lr_decay": 0.5,
}  # fmt: skip
WRITING: dict[str, Any] = {"max_length": 8, "min_length": 3, "end_id": SEP, "pad_id": PAD}
MODULES: dict[str, tuple[type, dict[str, Any]]] = {
    "pretraining": (Pretraining, PRETRAINING),
    "retrieval": (Retrieval, ALIGNMENT | {"negatives": "local", "ramp": 1}),
    "captioning": (Captioning, FRAME | {
        "bos_id": BOS, "prompt_ids": [5, 6], "label_smoothing": 0.1, "generation": WRITING,
        "words": "plain", "seed": 3,
    }),
    "vqa": (VQA, FRAME | {
        "bos_id": BOS, "enc_id": ENC, "label_smoothing": 0.1, "k_test": 2, "generation": WRITING,
    }),
    "nlvr": (NLVR, FRAME | {"merge_from": 1, "enc_id": ENC}),
}  # fmt: skip


def build(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    task, options = MODULES[kind]
    return task(**options | changes)


pretraining, retrieval = partial(build, "pretraining"), partial(build, "retrieval")
captioning, vqa, nlvr = (partial(build, kind) for kind in ("captioning", "vqa", "nlvr"))


def batch(number: int = 0, identities: list[int] | None = None, images_per_text: int = 1) -> dict:
    """Texts of falling length about images of their own, each ends with [SEP]; two answers each."""
    generator = torch.Generator().manual_seed(number)
    identities = identities or list(range(SIZE))
    size = len(identities)
    lengths = torch.arange(LENGTH, LENGTH - size, -1)[:, None]
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(5, BOS, (size, LENGTH), generator=generator) * mask
    ids[:, 0] = CLS
    ids.scatter_(1, lengths - 1, SEP)
    answers = torch.randint(5, BOS, (2 * size, 3), generator=generator)
    answers[:, 0], answers[:, 2] = CLS, SEP
    return {
        "images": torch.randn(images_per_text * size, 3, 16, 16, generator=generator),
        "indices": torch.arange(size),
        "image_ids": torch.tensor(identities),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.randint(2, (size,), generator=generator),
        "answer_ids": answers,
        "answer_mask": torch.ones_like(answers),
        "answer_counts": torch.full((size,), 2),
        "answer_weights": torch.full((2 * size,), 0.5),
    }


def lively(module: Any) -> Any:
    """Larger weights, as after training: what a network sees makes a difference."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module
