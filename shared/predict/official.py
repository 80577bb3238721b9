"""Official checkpoints, which say nothing of what they are: an experiment of ours does."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from shared.composing import compose_experiment
from shared.data.text.cleaning import text_rules
from shared.nn.building import build
from shared.predict.inputs import (
    PredictError,
    Predictor,
    detector_framing,
    frame_choice,
    image_transform,
    resolve_device,
)
from shared.training.method import Method


def load_official(path: Path, experiment: str, overrides: Sequence[str], device: str) -> Predictor:
    """The module of an experiment with the weights of an official checkpoint of it, with the views,
    the vocabulary and the answers of the experiment's data. PredictError of data that is not as
    the experiment says; CheckpointError of weights that do not fit, and errors of Hydra."""
    where = resolve_device(device)
    config: Any = OmegaConf.to_container(compose_experiment(experiment, overrides), resolve=True)
    module: Any = build(config["method"], Method)
    package = type(module).__module__.rpartition(".")[0]
    import_module(f"{package}.official").load(module, path)
    data: Any = build(config["data"], pl.LightningDataModule)
    try:
        tokenizer = getattr(data, "tokenizer", None)
        if hasattr(module, "choose_among"):
            if data.answers is None:
                raise ValueError("no answers to choose from: data.answer_list names none")
            module.choose_among(data.answers)
        detects, open_to_names = (
            hasattr(module, name) for name in ("detect_objects", "name_classes")
        )
        named = detects and not open_to_names  # else its classes are named later
        if named:
            module.attach(data)
    except (OSError, ValueError) as error:
        reason = f"{error} (of {experiment}; another place: overrides=\"['data.KEY=PATH']\")"
        raise PredictError(reason) from error
    return Predictor(
        module.to(where).eval(),
        None if detects else image_transform(config["data"].get("augmentation"), path),
        config["data"].get("image_mode", "RGB"),
        list(data.class_names) if named else [] if detects else None,
        tokenizer,
        rules=text_rules(getattr(data, "hparams", {}).get("text_rules", "albef")),
        framing=detector_framing(config["data"], path) if detects else None,
        category_ids=data.category_ids.tolist() if named else None,
        choice=frame_choice(config["data"], path),
    )
