"""The miniatures of ALBEF's fine-tuning tasks: their data, networks and starts belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from benchmarks.miniatures.emoji.pairs import pairs, vocabulary
from benchmarks.miniatures.emoji.questions import questions
from methods.albef.classification import Classification
from methods.albef.module import Pretraining
from methods.albef.official import warm_start
from methods.albef.retrieval import Retrieval
from methods.albef.text_assignment import TextAssignment
from methods.albef.vqa import VQA
from shared.checkpoints.reading import load_module
from tests.hostile.damages import every
from tests.unit.test_configs import resolved

# task: method, builder of its data
TASKS: dict[str, tuple[type, Any]] = {
    "retrieval": (Retrieval, pairs),
    "text_assignment": (TextAssignment, pairs),
    "vqa": (VQA, questions),
    "nlvr": (Classification, questions),
    "ve": (Classification, questions),
    "refcoco": (Retrieval, questions),
}
MADE_BY = {"zoo:albef-emoji": "albef/zoo_emoji"}
# Texts and labels have a left and a right, and emoji too: RandAugment shears, moves and turns them.
FORBIDDEN = {"flip", "rand_augment"}


def module_of(config: dict[str, Any]) -> Any:
    return instantiate(OmegaConf.create(config["method"]), _convert_="all")


def saved_run(config: dict[str, Any], path: Path) -> Any:
    """A checkpoint as a run of `config` leaves it, of other weights than the seed's."""
    module = module_of(config)
    checkpoint = {
        "_target_": config["method"]["_target_"],
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
    }
    torch.save(checkpoint, path)
    return load_module(path)


@pytest.mark.parametrize("task", every(3, list(TASKS)))
def test_a_task_has_its_own_data_and_starts_from_what_it_names(task: str, tmp_path: Path) -> None:
    config = resolved(f"albef/mini_{task}")
    kind, builder = TASKS[task]
    assert get_method(config["method"]["_target_"]) is kind
    assert get_method(config["source"]["_target_"]) is builder
    assert {"train", "val", "test"} <= set(config["data"]["files"])
    assert_nothing_is_mirrored(config)

    start_config = resolved(MADE_BY[config["warm_start"]["path"]])
    assert config["data"]["vocab"] == start_config["data"]["vocab"]
    words = config["method"]["text"]["vocab_size"]
    assert words == start_config["method"]["text"]["vocab_size"]
    # All that sentences are made of; the names of concepts come on top.
    assert words > len(vocabulary([]))

    start = saved_run(start_config, tmp_path / "last.ckpt")
    module = module_of(config)
    report = warm_start(module, tmp_path / "last.ckpt", config["warm_start"]["kind"])
    ours, theirs = (m.encoders.text_encoder.embeddings.word.weight for m in (module, start))
    assert torch.equal(ours, theirs)
    new = {key.split(".")[1] for key in report.fresh if key.startswith("encoders.")}
    assert new <= {"classifier"}


def test_the_last_part_of_the_zoo_goes_on_from_the_first(tmp_path: Path) -> None:
    config, start = resolved("albef/zoo_emoji"), resolved("albef/zoo_towers")
    assert get_method(config["method"]["_target_"]) is Pretraining
    made = f"outputs/albef/zoo_towers/seed{config['seed']}/checkpoints/last.ckpt"
    assert config["warm_start"] == {"path": made, "kind": "pretrained"}
    assert_nothing_is_mirrored(config)
    start["method"]["initial"] = None  # the text tower's file
    saved_run(start, tmp_path / "last.ckpt")
    warm_start(module_of(config), tmp_path / "last.ckpt", "pretrained")  # positions are stretched


def assert_nothing_is_mirrored(config: dict[str, Any]) -> None:
    augmentation = config["data"]["augmentation"]
    operations = {o["op"] for recipe in augmentation["recipes"].values() for o in recipe}
    assert operations
    assert not operations & FORBIDDEN
    assert augmentation["size"] == config["method"]["vision"]["image_size"]
