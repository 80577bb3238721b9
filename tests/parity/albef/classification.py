"""Adapters of NLVR2, its text assignment, and SNLI-VE."""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from methods.albef import official, text_assignment
from methods.albef.classification import Classification
from methods.albef.text_assignment import AssignmentDraws, TextAssignment
from shared.training.method import Method

from ..recording import gradients_as_weights, recording
from .building import Config, batch_of, distilled, frame

Inputs, Outputs = dict[str, Tensor], dict[str, Any]
CLASSES = {1: ("contradiction", "neutral", "entailment"), 2: ("false", "true")}


def nlvr(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return _distilled(2, _twins(config), inputs, weights)


def ve(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return _distilled(1, config, inputs, weights)


def nlvr_text_assignment(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = TextAssignment(**frame(_twins(config)), embed_dim=config["embed_dim"], seed=0)
    official.load(module, weights)
    drawn_there = ("u_match", "u_order", "neg_idx", "two_idx")
    given = AssignmentDraws(*(inputs[name] for name in drawn_there))
    draw = AssignmentDraws.draw

    def given_draws(weights: Tensor, own: Tensor, generator: torch.Generator) -> AssignmentDraws:
        drawn = draw(weights, own, generator)
        assert [value.shape for value in drawn] == [value.shape for value in given]
        return given

    with (
        patch.object(AssignmentDraws, "draw", given_draws),
        recording((text_assignment, "negative_weights"), (module, "assign")) as calls,
    ):
        loss = module.training_step(batch_of(inputs), 0)
    loss.backward()
    pred, labels = calls["assign"][0].result
    drawn_by = {"weights": calls["negative_weights"][0].result}
    return {"loss": loss, "labels": labels, "pred": pred, **drawn_by, **_gradients(module)}


def _twins(config: Config) -> Config:
    """The config with the layers that the case counts for the doubled text encoder."""
    layers = {"num_hidden_layers": config["nlvr_num_hidden_layers"]}
    return config | {"text": config["text"] | layers}


def _distilled(images_per_text: int, config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    def loaded(**changed: Any) -> Classification:
        module = Classification(
            images_per_text=images_per_text,
            class_names=CLASSES[images_per_text],
            **distilled(config) | changed,
        )
        official.load(module, weights)
        return module

    batch = batch_of(inputs) | {"labels": inputs["targets"]}
    prediction, _ = loaded().eval().outcome(batch)
    module = loaded().train()
    with recording((module.momentum_encoders.module, "forward")) as calls:
        loss = module.training_step(batch, 0)
    loss.backward()
    return {
        "prediction": prediction,
        "loss": loss,
        "prediction_m": calls["forward"][0].result,
        "loss_nodistill": loaded(alpha=0.0).train().training_step(batch, 0),
        **_gradients(module),
    }


def _gradients(module: Method) -> Outputs:
    with gradients_as_weights(module):
        gradients = official.export(module)
    return {f"grad.{name}": value.detach().clone() for name, value in gradients.items()}
