"""The miniatures of ALBEF's fine-tuning tasks: their data, networks and starts belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

import benchmarks.zoo.__main__ as zoo
from benchmarks.miniatures.emoji.bootstrapping import bootstrapped
from benchmarks.miniatures.emoji.pairs import pairs
from benchmarks.miniatures.emoji.questions import questions
from benchmarks.zoo import text_tower
from benchmarks.zoo.projections import join, projection_of
from methods.albef.classification import Classification
from methods.albef.module import Pretraining
from methods.albef.official import warm_start
from methods.albef.retrieval import Retrieval
from methods.albef.text_assignment import TextAssignment
from methods.albef.vqa import VQA
from shared.checkpoints.reading import load_module
from shared.data.errors import DataNotFoundError
from shared.nn.vision_transformer import VisionTransformer
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
# Texts and labels have a left and a right, and emoji too: RandAugment shears, moves and turns them.
SCHEDULE = ("lr", "warmup_blocks", "epochs")
FORBIDDEN = {"flip", "rand_augment"}


def module_of(config: dict[str, Any]) -> Any:
    return instantiate(OmegaConf.create(config["method"]), _convert_="all")


@pytest.mark.parametrize("task", every(3, list(TASKS)))
def test_a_task_has_its_own_data_and_starts_from_the_zoo(task: str) -> None:
    config = resolved(f"albef/mini_{task}")
    kind, builder = TASKS[task]
    assert get_method(config["method"]["_target_"]) is kind
    assert get_method(config["source"]["_target_"]) is builder
    assert {"train", "val", "test"} <= set(config["data"]["files"])
    assert_nothing_is_mirrored(config)
    start = load_module(config["warm_start"]["path"])
    assert config["data"]["vocab"] == resolved("albef/zoo_emoji")["data"]["vocab"]
    module = module_of(config)
    report = warm_start(module, **config["warm_start"])
    ours, theirs = (m.encoders.text_encoder.embeddings.word.weight for m in (module, start))
    assert torch.equal(ours, theirs)
    new = {key.split(".")[1] for key in report.fresh if key.startswith("encoders.")}
    assert new <= {"classifier"}


def test_the_parts_of_the_zoo_are_one_model_that_learns_from_even_negatives() -> None:
    first, *others = (resolved(f"albef/{part}") for part in zoo.PARTS)
    start = f"outputs/albef/{zoo.PARTS[0]}/seed0/checkpoints/last.ckpt"
    for config in others:
        assert config["warm_start"] == {"path": start, "kind": "pretrained"}
        assert config["data"]["vocab"] == first["data"]["vocab"]
        assert_nothing_is_mirrored(config)
    for config in (first, *others):
        assert (config["threads"], config["precision"]) == (1, "32-true")
        assert config["method"] | dict.fromkeys(SCHEDULE) == first["method"] | dict.fromkeys(
            SCHEDULE
        )
        assert config["method"]["hard_negatives"] is False


def test_the_zoo_goes_on_from_its_towers(tmp_path: Path) -> None:
    config = resolved(f"albef/{zoo.PARTS[0]}")
    assert get_method(config["method"]["_target_"]) is Pretraining
    assert config["warm_start"] == {"path": str(zoo.TOWERS), "kind": "pretrained"}
    assert_nothing_is_mirrored(config)
    vision, text = tmp_path / "vision.safetensors", tmp_path / "text.safetensors"
    method = config["method"]
    small = VisionTransformer(**{**method["vision"], "image_size": 32})
    save_file(small.state_dict(), vision)
    student = text_tower.Student(method["text"], method["embed_dim"])
    text_tower.write(student, text)
    projection = torch.nn.Linear(method["vision"]["width"], method["embed_dim"])
    save_file(projection.state_dict(), projection_of(vision))
    join(vision, text, OmegaConf.create(config), tmp_path / "towers.ckpt")
    module = module_of(config)
    warm_start(module, tmp_path / "towers.ckpt", "pretrained")
    encoders = module.encoders
    assert torch.equal(encoders.vision_proj.weight, projection.weight)
    assert torch.equal(encoders.text_proj.weight, student.sentence.weight)
    assert torch.equal(
        encoders.text_encoder.embeddings.word.weight, student.text.embeddings.word.weight
    )
    assert torch.equal(encoders.visual_encoder.cls_token, small.cls_token)
    copy = module.momentum_encoders.module.vision_proj
    assert torch.equal(copy.weight, projection.weight)


def assert_nothing_is_mirrored(config: dict[str, Any]) -> None:
    augmentation = config["data"]["augmentation"]
    operations = {o["op"] for recipe in augmentation["recipes"].values() for o in recipe}
    assert operations
    assert not operations & FORBIDDEN
    assert augmentation["size"] == config["method"]["vision"]["image_size"]


def test_the_cleaned_set_is_what_capfilt_writes_for_another_method(tmp_path: Path) -> None:
    """The words, pictures and judges are those of BLIP's claim."""
    config, blip = resolved("albef/mini_capfilt"), resolved("blip/mini")
    source, data = config["source"], config["data"]
    assert get_method(source["_target_"]) is get_method(blip["source"]["_target_"]) is bootstrapped
    assert data["files"]["train"] == [
        blip["data"]["files"]["train"][0],
        f"{source['root']}/capfilt/pairs.json",
    ]
    for key in ("vocab", "image_root"):
        assert data[key] == blip["data"][key]
    for split in ("val", "test"):
        assert data["files"][split] == blip["data"]["files"][split]
    added = 2  # [DEC] and [ENC]
    assert config["method"]["text"]["vocab_size"] == blip["method"]["text"]["vocab_size"] - added
    assert isinstance(module_of(config), Pretraining)
    paths = {name: tmp_path / name for name in ("root", "web_root", "pairs_root", "captioner")}
    with pytest.raises(DataNotFoundError, match="captioner not found: first run blip/mini, then"):
        bootstrapped(**paths, filter=tmp_path / "filter", required=True)
    assert not list(tmp_path.iterdir())
