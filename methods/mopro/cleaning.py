"""Offline noise cleaning: the training list with corrected labels and without OOD images.

    python -m methods.mopro.cleaning CHECKPOINT OUTPUT experiment=mopro/webvision_v1 [overrides]

CHECKPOINT is one of our runs or an official pre-training file, OUTPUT the JSON annotation
{"images": [paths], "labels": [ints]} of the kept images in list order, which
`data.dataset.cleaned=OUTPUT` reads for the retraining. Source: docs/papers/mopro.md, section 3.8;
salesforce/MoPro@155cae3 `noise_cleaning.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from methods.mopro import official
from methods.mopro.losses import Correction, correct_labels
from methods.mopro.module import MoPro
from shared.checkpoints.reading import CheckpointError, load_checkpoint, load_module
from shared.data.loading.loader import EvaluationLoader
from shared.data.readers.webvision import SOURCES, training_list
from shared.evaluation.features import eval_mode, extract_features
from shared.files import write_json
from shared.nn.building import build
from shared.overrides import CONF, OverrideError, validate
from shared.training.method import Method

ALPHA = 0.5  # classifier and prototypes count the same here, whatever alpha was in training


def clean(
    module: MoPro, loader: EvaluationLoader, threshold: float
) -> tuple[Tensor, Tensor, Correction]:
    """The rule with the final prototypes on every un-augmented image of `loader`: the kept images'
    indices (n,), ascending, and corrected labels (n,), and the verdict on all images."""
    with eval_mode(module):
        found = extract_features(
            lambda images: module.scores(module.concatenate([images]), ALPHA), loader, module.device
        )
    rule = correct_labels(found.features, found.labels, threshold)
    return found.indices[rule.kept], rule.labels[rule.kept], rule


def load_pretraining(path: Path, config: DictConfig) -> MoPro:
    """One of our runs, or an official file in the module that `config.method` describes."""
    if "_target_" in load_checkpoint(path):
        module: Any = load_module(path)
    else:
        module = build(config.method, Method)
        official.load(module, path)
    if not isinstance(module, MoPro):
        name = type(module).__name__
        raise CheckpointError(f"{path} is a {name}: the rule needs MoPro's prototypes")
    return module


def main(argv: Sequence[str]) -> int:
    """Command line; what is wrong goes to stderr in one line, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m methods.mopro.cleaning", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="+", help="experiment=NAME and further Hydra overrides")
    arguments = parser.parse_intermixed_args(argv)
    try:
        validate(arguments.overrides)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*arguments.overrides, "name=cleaning"])
        module = load_pretraining(arguments.checkpoint, config)
        data: Any = build(config.data, pl.LightningDataModule)
        module.to("cuda" if torch.cuda.is_available() else "cpu")
        threshold = module.hparams["threshold"]
        indices, labels, rule = clean(module, data.features_dataloader(), threshold)
        dataset = config.data.dataset
        lists = dataset.get("lists", SOURCES)
        paths, _ = training_list(Path(dataset.root), len(data.class_names), lists)
    except (OverrideError, CheckpointError, FileNotFoundError, ValueError) as error:
        print(f"cleaning: {error}", file=sys.stderr)
        return 2
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    images = [paths[index] for index in indices.tolist()]
    write_json(arguments.output, {"images": images, "labels": labels.tolist()})
    kept = f"{len(images)} of {len(rule.kept)} images kept, {int(rule.relabelled.sum())} relabelled"
    dropped = f"{int((~rule.kept).sum())} dropped as out of distribution"
    print(f"{arguments.output}: {kept}, {dropped}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
