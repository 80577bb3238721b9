"""Adapters of the pipeline: augmentation, rates, and rules of texts, frames and answers."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from methods.blip.module import Pretraining
from methods.blip.nlvr import NLVR
from shared.data.image_text.videos import uniform_frames
from shared.data.image_text.vqa import answer_weights
from shared.data.text.cleaning import TEXT_RULES
from shared.data.views import randaugment
from shared.tasks import momentum_teacher
from shared.tasks.momentum_teacher import MomentumTeacher

from .building import Config, Inputs, Outputs

# What no case sets, since it stands in the official code; so do our configs.
RAMPS = {"pretrain": 2, "retrieval": 1}  # epochs in which alpha rises
SINGLE_ANSWER = 0.2  # the weight of Visual Genome's answers
# The draw that decides the sign, and whether it negates: a rotation below 1/2, others above.
SIGNS = {"draw_low": 0.25, "draw_high": 0.75}


def randaugment_ops(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Each operation as the official code does it; the overflow of its AutoContrast too."""
    level = config["magnitude"] / config["max_level"] * randaugment.MAX_LEVEL
    known = randaugment.OFFICIAL_FOR_CAPTIONS
    images = {name: image.numpy().astype(np.uint8) for name, image in inputs.items()}
    (fill,) = set(config["fill"])
    outputs = {}
    with patch.object(randaugment, "FILL", fill):
        for name, (_, _, signed) in known.items():
            for suffix, draw in SIGNS.items() if signed else (("", 0.0),):
                negative = draw < 0.5 if name == "Rotate" else draw > 0.5
                changed = randaugment.apply(name, images["image"], level, negative, known)
                outputs[f"{name}.{suffix}".rstrip(".")] = changed
    bright = images["image_min_above_zero"]
    outputs["AutoContrast.min_above_zero_official"] = known["AutoContrast"][0](bright)
    return {name: torch.from_numpy(value.astype(np.int64)) for name, value in outputs.items()}


def schedules(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    cosine, given = config["cosine"], config["pretrain"]
    epochs, steps = given["max_epoch"], given["steps_per_epoch"]
    of_epoch: Any = SimpleNamespace(
        schedule={
            "lr": cosine["init_lr"],
            "min_lr": cosine["min_lr"],
            "epochs": cosine["max_epoch"],
            "warmup_lr": 0.0,
            "warmup_blocks": 0,
        }
    )
    rates = {"lr": given["init_lr"], "lr_decay": given["lr_decay_rate"]}
    rates |= {name: given[name] for name in ("min_lr", "warmup_lr", "warmup_steps")}
    of_step: Any = SimpleNamespace(hparams=rates)
    places = [(epoch, step) for epoch in range(epochs) for step in range(steps)]
    pretraining = [Pretraining.rate(of_step, *place) for place in places]
    fine_tuning = [NLVR.rate(of_epoch, epoch, 0) for epoch in range(cosine["max_epoch"])]
    return {
        "cosine_lr_per_epoch": torch.tensor(fine_tuning),
        "pretrain_lr_per_step": torch.tensor(pretraining).view(epochs, steps),
        "pretrain_alpha_per_step": _alphas("pretrain", given["alpha"], epochs, steps),
        "retrieval_alpha_per_step": _alphas("retrieval", given["alpha"], 2, steps),
    }


def _alphas(task: str, alpha: float, epochs: int, steps: int) -> torch.Tensor:
    """(epochs, steps) weights of the momentum model."""
    teacher = MomentumTeacher(nn.Linear(1, 1), 0.9, alpha, RAMPS[task])
    trainer = SimpleNamespace(num_training_batches=steps)
    rows = []
    with patch.object(momentum_teacher, "trainer_of", lambda _: trainer):
        for epoch in range(epochs):
            method: Any = SimpleNamespace(current_epoch=epoch, trainer=trainer)
            rows.append([teacher.weight(method, step) for step in range(steps)])
    return torch.tensor(rows)


def data_rules(config: Config, inputs: dict[str, Any], weights: Inputs) -> dict[str, Any]:
    rules = TEXT_RULES["blip"]

    def weighted(dataset: str, answer: str | list[str]) -> dict[str, Any]:
        assert (dataset == "vg") == isinstance(answer, str)
        found = answer_weights(answer, SINGLE_ANSWER)
        return {"answers": list(found), "weights": list(found.values())}

    found = {
        "pre_caption": lambda text, max_words: {"out": rules.clean_caption(text, max_words)},
        "pre_question": lambda text, max_words: {"out": rules.clean_question(text, max_words)},
        "uniform_frame_indices": lambda num_video_frames, num_frames: {
            "out": uniform_frames(num_video_frames, num_frames)
        },
        "vqa_answer_weights": weighted,
    }
    return {rule: [found[rule](**row) for row in rows] for rule, rows in inputs.items()}
