"""ALPRO's miniature: it starts from the zoo's towers, and arms differ in what their claim says."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.claims import claim_path, comparable, compose_arms, load_claim
from shared.checkpoints.pretrained_text import hugging_face_state
from shared.checkpoints.reading import load_checkpoint
from tests.unit.test_configs import resolved

FORBIDDEN = {"flip", "rand_augment"}  # captions tell ways and sides


@pytest.mark.parametrize("stage", ["mini_prompter", "mini", "mini_retrieval", "mini_vqa"])
def test_every_stage_can_start_from_the_towers(stage: str) -> None:
    config = resolved(f"alpro/{stage}")
    recipes = config["data"]["augmentation"].get("recipes", {})
    assert not FORBIDDEN & {step["op"] for steps in recipes.values() for step in steps}
    module = instantiate(OmegaConf.create(config["method"]), _convert_="all")
    initial = {**config["method"]["initial"], "prompter": None}
    module.load_initial(initial)
    words = hugging_face_state("zoo:text-emoji")["embeddings.word_embeddings.weight"]
    ours = module.encoders.text_encoder.embeddings.word.weight
    assert len(ours) == len(words) + initial["new_words"]
    assert torch.equal(ours[: len(words)], words.float())
    stem = "encoders.visual_encoder.patch_embed.backbone.2.weight"
    seen_scenes = load_checkpoint("zoo:albef-emoji")["state_dict"]
    assert torch.equal(module.state_dict()[stem], seen_scenes[stem].float())


def differences(one: Any, other: Any, path: str = "") -> set[str]:
    """The keys, joined by dots, in which two configs differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {path.removeprefix(".")}
    keys = one.keys() | other.keys()
    return set().union(*(differences(one.get(k), other.get(k), f"{path}.{k}") for k in keys))


PROMPTS = {"method.prompt", "method.initial.prompter", "source.prompter"}


@pytest.mark.parametrize(
    ("claim", "one", "other", "keys"),
    [
        (None, "aligned", "matched", {"method.align"}),
        (None, "aligned", "misaligned", {"method._target_"}),
        (None, "vtc", "mlm_vtm", {"warm_start.path"}),
        (None, "vtc", "one_frame", {"data.frames", "method.vision.frames"}),
        ("prompts", "pem", "no_pem", PROMPTS),
        ("prompts", "pem", "permuted_pem", {"method._target_"}),
        ("prompts", "no_pem", "no_pem_longer", {"data.steps_per_epoch"}),
    ],
)
def test_arms_differ_in_what_they_claim(
    claim: str | None, one: str, other: str, keys: set[str]
) -> None:
    configs = compose_arms(load_claim(claim_path("alpro", claim)))
    plain = [comparable(configs[name], output_dir="") for name in (one, other)]
    assert differences(*plain) - {"name", "arm"} == keys


def test_the_longer_arm_is_longer_by_the_updates_of_the_prompter() -> None:
    configs = compose_arms(load_claim(claim_path("alpro", "prompts")))
    steps = {name: configs[name].data.steps_per_epoch for name in configs}
    assert steps["no_pem_longer"] == steps["no_pem"] + steps["prompter"]
