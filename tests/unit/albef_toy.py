"""Tiny ALBEF modules, batches and runs, for the tests of all its tasks."""

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.albef.classification import Classification
from methods.albef.module import Pretraining
from methods.albef.retrieval import Retrieval
from methods.albef.text_assignment import TextAssignment
from methods.albef.vqa import VQA
from shared.checkpoints.writing import AtomicCheckpointIO

SIZE, LENGTH, WORDS, QUEUE = 4, 6, 20, 8
VISION = {"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2}
TEXT = {
    "vocab_size": WORDS, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.0,
    "intermediate_size": 16, "max_positions": 24, "cross_attention_from": 1,
}  # fmt: skip
PAIRED = TEXT | {"num_layers": 5}
FRAME: dict[str, Any] = {
    "lr": 1e-2, "min_lr": 1e-3, "warmup_lr": 1e-2, "warmup_blocks": 0, "epochs": 2,
    "weight_decay": 0.02, "vision": VISION, "text": TEXT,
}  # fmt: skip
DISTILLED: dict[str, Any] = FRAME | {"encoder_momentum": 0.9, "alpha": 0.4, "ramp": False}
ALIGNMENT: dict[str, Any] = DISTILLED | {
    "embed_dim": 6, "queue_size": QUEUE, "temperature": 0.07, "hard_negatives": True,
    "negatives": "local", "evaluation": {"k_test": 2}, "seed": 3,
}  # fmt: skip
TOKENS: dict[str, Any] = {"mlm_probability": 0.3, "cls_id": 2, "mask_id": 4}
ENTAILMENT = {"images_per_text": 1, "class_names": ("contradiction", "neutral", "entailment")}
NLVR = {"text": PAIRED, "images_per_text": 2, "class_names": ("false", "true")}
MODULES: dict[str, tuple[type, dict[str, Any]]] = {
    "pretraining": (Pretraining, ALIGNMENT | TOKENS),
    "retrieval": (Retrieval, ALIGNMENT),
    "vqa": (VQA, DISTILLED | {"decoder_layers": 2, "k_test": 2}),
    "entailment": (Classification, DISTILLED | ENTAILMENT),
    "nlvr": (Classification, DISTILLED | NLVR),
    "assignment": (TextAssignment, FRAME | {"text": PAIRED, "embed_dim": 6, "seed": 3}),
}


def build(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    task, options = MODULES[kind]
    return task(**options | changes)


pretraining, retrieval = partial(build, "pretraining"), partial(build, "retrieval")
entailment, nlvr = partial(build, "entailment"), partial(build, "nlvr")
assignment = partial(build, "assignment")


def batch(number: int = 0, identities: list[int] | None = None, images_per_text: int = 1) -> dict:
    """Texts of falling length about images of their own; `labels` are those of NLVR2."""
    generator = torch.Generator().manual_seed(number)
    identities = identities or list(range(SIZE))
    size = len(identities)
    mask = (torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - size, -1)[:, None]).long()
    ids = torch.randint(5, WORDS, (size, LENGTH), generator=generator) * mask
    ids[:, 0] = TOKENS["cls_id"]
    return {
        "images": torch.randn(images_per_text * size, 3, 16, 16, generator=generator),
        "indices": torch.arange(size),
        "image_ids": torch.tensor(identities),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.randint(2, (size,), generator=generator),
    }


def inputs(data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return data["images"], data["input_ids"], data["attention_mask"]


def apart(module: Any) -> Any:
    """Let the momentum copy differ from the encoders."""
    with torch.no_grad():
        for parameter in module.momentum_encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def given(batches: list[dict]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    quiet |= {"num_sanity_val_steps": 0, "log_every_n_steps": 1, "max_epochs": 1}
    return pl.Trainer(
        accelerator="cpu", use_distributed_sampler=False, callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()], **quiet | options,
    )  # fmt: skip
