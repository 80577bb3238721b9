"""Adapter of what official scripts rename when they start from a pre-training file."""

from typing import Any

from torch import Tensor

from methods.albef.official import joint_names, paired_names, question_answering_names

from .building import Config


def checkpoint_remap(config: Config, inputs: dict[str, Any], weights: dict[str, Tensor]) -> Config:
    fusion_layer = config["text"]["fusion_layer"]
    renamed = {
        "plain": joint_names(weights),
        "vqa": question_answering_names(weights, fusion_layer),
        "nlvr": paired_names(weights, fusion_layer),
    }
    return {
        f"{task}/{key}": value for task, state in renamed.items() for key, value in state.items()
    }
