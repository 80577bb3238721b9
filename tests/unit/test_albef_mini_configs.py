"""The miniatures of ALBEF's fine-tuning tasks: their data, networks and starts belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from benchmarks.miniatures.emoji.derived import entailment, nlvr, referring, vqa
from benchmarks.miniatures.emoji.pairs import pairs, vocabulary
from methods.albef.entailment import Entailment
from methods.albef.grounding import Grounding
from methods.albef.module import Pretraining
from methods.albef.nlvr import NLVR, TextAssignment
from methods.albef.official import warm_start
from methods.albef.retrieval import Retrieval
from methods.albef.vqa import VQA
from shared.checkpoints.reading import load_module
from tests.unit.test_configs import resolved

# task: method, builder of its data, what it starts from
TASKS: dict[str, tuple[type, Any, str]] = {
    "retrieval": (Retrieval, pairs, "mini_singles"),
    "text_assignment": (TextAssignment, pairs, "mini_fused"),
    "vqa": (VQA, vqa, "mini_scenes"),
    "nlvr": (NLVR, nlvr, "mini_scenes"),
    "ve": (Entailment, entailment, "mini_scenes"),
    "refcoco": (Grounding, referring, "mini_scenes"),
}
SCENES = {"mini_scenes_first": "mini_fused", "mini_scenes": "mini_scenes_first"}
# Texts and labels have a left and a right, and emoji too: RandAugment shears, moves and turns them.
FORBIDDEN = {"flip", "rand_augment"}


def named_start(config: dict[str, Any]) -> str:
    """The experiment whose run `warm_start` names, of the same seed."""
    folder, method, experiment, seed, *file = Path(config["warm_start"]["path"]).parts
    assert (folder, method, seed) == ("outputs", "albef", f"seed{config['seed']}")
    assert file == ["checkpoints", "last.ckpt"]
    assert config["warm_start"]["kind"] == "pretrained"
    return experiment


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


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_one_of_the_methods_on_its_own_data(task: str) -> None:
    config = resolved(f"albef/mini_{task}")
    kind, builder, _ = TASKS[task]
    assert get_method(config["method"]["_target_"]) is kind
    assert get_method(config["source"]["_target_"]) is builder
    given = config["data"]["files"].values()
    lists = [[names] if isinstance(names, str) else names for names in given]
    files = [file for names in lists for file in names]
    assert {str(Path(file).parent) for file in files} == {config["source"]["root"]}
    assert {"train", "val", "test"} <= set(config["data"]["files"])


@pytest.mark.parametrize("experiment", [*SCENES, *(f"mini_{task}" for task in TASKS)])
def test_nothing_is_mirrored(experiment: str) -> None:
    config = resolved(f"albef/{experiment}")
    augmentation = config["data"]["augmentation"]
    operations = {o["op"] for recipe in augmentation["recipes"].values() for o in recipe}
    assert operations
    assert not operations & FORBIDDEN
    assert augmentation["size"] == config["method"]["vision"]["image_size"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_words_of_its_start(task: str) -> None:
    config = resolved(f"albef/mini_{task}")
    start = resolved(f"albef/{named_start(config)}")
    assert config["data"]["vocab"] == start["data"]["vocab"]
    words = config["method"]["text"]["vocab_size"]
    assert words == start["method"]["text"]["vocab_size"]
    # All that sentences are made of; the names of concepts come on top.
    assert words > len(vocabulary([]))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_starts_from_what_it_names(task: str, tmp_path: Path) -> None:
    config = resolved(f"albef/mini_{task}")
    assert named_start(config) == TASKS[task][2]
    start = saved_run(resolved(f"albef/{named_start(config)}"), tmp_path / "last.ckpt")
    module = module_of(config)
    before = module.encoders.text_encoder.embeddings.word.weight.detach().clone()
    report = warm_start(module, tmp_path / "last.ckpt", config["warm_start"]["kind"])
    words = start.encoders.text_encoder.embeddings.word.weight
    assert not torch.equal(before, words)
    assert torch.equal(module.encoders.text_encoder.embeddings.word.weight, words)
    blocks = (m.encoders.visual_encoder.state_dict() for m in (module, start))
    ours, theirs = ({k: v for k, v in b.items() if k != "pos_embed"} for b in blocks)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    new = {key.split(".")[1] for key in report.fresh if key.startswith("encoders.")}
    assert new <= {"classifier"}


@pytest.mark.parametrize(("experiment", "start"), SCENES.items())
def test_scenes_go_on_from_aligned_encoders(experiment: str, start: str, tmp_path: Path) -> None:
    config = resolved(f"albef/{experiment}")
    assert get_method(config["method"]["_target_"]) is Pretraining
    assert named_start(config) == start
    saved_run(resolved(f"albef/{start}"), tmp_path / "last.ckpt")
    warm_start(module_of(config), tmp_path / "last.ckpt", "pretrained")  # positions are stretched
