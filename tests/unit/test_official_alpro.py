"""ALPRO's official checkpoints: every key of each task, other sizes, how tasks start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.alpro import official
from shared.checkpoints.official import convert_official
from shared.checkpoints.reading import CheckpointError
from tests.unit.alpro_toy import MODULES, TEXT, VISION, build, lively

KINDS = ("pretrained", "prompter", "retrieval", "vqa")
D, WORDS, ENTITIES, LABELS = 768, 30522, 1000, 2423
LARGE: dict[str, Any] = {
    "vision": {"image_size": 256, "patch_size": 16, "width": D, "depth": 12, "heads": 12,
               "frames": 8},
    "text": TEXT | {"vocab_size": WORDS, "hidden_size": D, "num_layers": 12, "num_heads": 12,
                    "intermediate_size": 4 * D, "max_positions": 512, "fusion_layer": 6},
}  # fmt: skip


def linear(name: str, out: int, wide: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, wide), f"{name}.bias": (out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def vision(frames: int = 4) -> dict[str, tuple[int, ...]]:
    """As docs/papers/alpro.md, section 9, lists them."""
    m = "visual_encoder.model"
    shapes = {
        f"{m}.cls_token": (1, 1, D), f"{m}.pos_embed": (1, 197, D),
        f"{m}.time_embed": (1, frames, D),
        f"{m}.patch_embed.proj.weight": (D, 3, 16, 16), f"{m}.patch_embed.proj.bias": (D,),
        **norm(f"{m}.norm"), **linear(f"{m}.head", 400, D),
    }  # fmt: skip
    for n in range(12):
        b = f"{m}.blocks.{n}"
        for part in ("norm1", "temporal_norm1", "norm2"):
            shapes |= norm(f"{b}.{part}")
        for part in ("attn", "temporal_attn"):
            shapes |= linear(f"{b}.{part}.qkv", 3 * D, D) | linear(f"{b}.{part}.proj", D, D)
        shapes |= linear(f"{b}.temporal_fc", D, D)
        shapes |= linear(f"{b}.mlp.fc1", 4 * D, D) | linear(f"{b}.mlp.fc2", D, 4 * D)
    return shapes


def bert(prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.position_ids": (1, 512),
        f"{prefix}embeddings.word_embeddings.weight": (WORDS, D),
        f"{prefix}embeddings.position_embeddings.weight": (512, D),
        f"{prefix}embeddings.token_type_embeddings.weight": (2, D),
        **norm(f"{prefix}embeddings.LayerNorm"),
    }
    for n in range(12):
        layer = f"{prefix}encoder.layer.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", D, D)
        shapes |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
        shapes |= linear(f"{layer}.intermediate.dense", 4 * D, D)
        shapes |= linear(f"{layer}.output.dense", D, 4 * D)
    return shapes


def words() -> dict[str, tuple[int, ...]]:
    p = "text_encoder.cls.predictions"
    return {
        f"{p}.bias": (WORDS,), **linear(f"{p}.transform.dense", D, D),
        **norm(f"{p}.transform.LayerNorm"), **linear(f"{p}.decoder", WORDS, D),
    }  # fmt: skip


def aligned() -> dict[str, tuple[int, ...]]:
    return {
        "temp": (), **linear("vision_proj", 256, D), **linear("text_proj", 256, D),
        **linear("itm_head", 2, D),
    }  # fmt: skip


def official_file(kind: str, frames: int = 4) -> dict[str, Tensor]:
    """Shapes of all tensors of an official file, without their content."""
    if kind == "vqa":
        head = linear("classifier.0", 2 * D, D) | linear("classifier.2", LABELS, 2 * D)
        shapes = vision(frames) | bert("text_encoder.") | aligned() | head
    else:
        shapes = vision(frames) | bert("text_encoder.bert.") | words() | aligned()
    prompts = dict.fromkeys(("video_prompt_feat", "image_prompt_feat"), (ENTITIES, 256))
    if kind == "prompter":
        shapes |= prompts
    if kind == "pretrained":
        inner = {f"prompter.{name}": shape for name, shape in (shapes | prompts).items()}
        shapes |= inner | linear("mpm_head.0", 2 * D, D) | linear("mpm_head.2", ENTITIES, 2 * D)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def large(kind: str) -> Any:
    sizes = dict(LARGE)
    sizes |= {"num_answers": LABELS} if kind == "vqa" else {"embed_dim": 256}
    sizes |= {"num_entities": ENTITIES} if kind == "pretrained" else {}
    with torch.device("meta"):
        return build(kind, **sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_file_of_the_papers_size_is_accounted_for(kind: str) -> None:
    """From 4 frames to 8, and from 224 px to 256."""
    module, state = large(kind), official_file(kind)
    converted, report = convert_official(
        state, official.key_table(module, state), module.state_dict()
    )
    assert report.complete, str(report)
    assert len(report.mapped) + len(report.dropped) == len(state)
    times = [name for name in converted if name.endswith("time_embed")]
    assert len(report.interpolated) == 2 * len(times)
    assert all(converted[name].shape == (1, 8, D) for name in times)
    assert converted[times[0].replace("time", "pos")].shape == (1, 257, D)
    assert set(report.fresh) <= {"video_prompts", "image_prompts"}
    for reason in set(report.dropped.values()):
        assert reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_too_few_and_a_key_too_many_are_named(kind: str) -> None:
    module = build(kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    whole = official.export(lively(build(kind)))
    known, unknown = (f"visual_encoder.model.blocks.{n}.temporal_fc.bias" for n in (1, 2))
    lacking = {name: value for name, value in whole.items() if name != known}
    for state, named in ((lacking, "blocks.1"), (whole | {unknown: whole[known]}, "blocks.2")):
        with pytest.raises(CheckpointError, match=named):
            official.load(module, state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_import_are_inverse(kind: str) -> None:
    module, fresh = lively(build(kind)), build(kind, seed=9)
    report = official.load(fresh, official.export(module))
    assert report.complete
    assert not report.fresh
    state = module.state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_more_frames_repeat_times_and_a_larger_grid_interpolates_places() -> None:
    state = official.export(lively(build("retrieval")))
    wider = VISION | {"frames": 4, "image_size": 64}
    module = build("retrieval", vision=wider)
    report = official.load(module, state)
    assert len(report.interpolated) == 2
    encoder = module.encoders.visual_encoder
    times = state["visual_encoder.model.time_embed"]
    assert torch.equal(encoder.time_embed, times[:, [0, 0, 1, 1]])
    assert encoder.pos_embed.shape == (1, 65, 8)
    assert torch.equal(encoder.pos_embed[:, :1], state["visual_encoder.model.pos_embed"][:, :1])


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    state = official.export(lively(build("pretrained")))
    torch.save(state, tmp_path / "pretrained.pt")
    return tmp_path / "pretrained.pt", state


@pytest.mark.parametrize("kind", ["retrieval", "vqa"])
def test_tasks_start_from_pretraining(kind: str, pretrained: tuple[Path, dict[str, Any]]) -> None:
    path, state = pretrained
    module = build(kind, seed=5)
    report = official.warm_start(module, path, "pretrained")
    assert report.complete
    query = "encoder.layer.2.attention.self.query.weight"
    own = module.encoders.text_encoder.layers[2].self_attention.query.weight
    assert torch.equal(own, state[f"text_encoder.bert.{query}"])
    new = {name.rsplit(".", 2)[0] for name in report.fresh}
    assert new == ({"encoders.classifier"} if kind == "vqa" else set())
    assert any(key.startswith("prompter.") for key in report.dropped)


def test_pretraining_without_prompts_starts_a_task_too(tmp_path: Path) -> None:
    torch.save(official.export(build("pretrained", prompt=False)), tmp_path / "a.pt")
    assert official.warm_start(build("retrieval"), tmp_path / "a.pt", "pretrained").complete


def test_a_prompter_enters_pretraining_and_keeps_its_prompts_to_be_made(tmp_path: Path) -> None:
    trained = lively(build("prompter"))
    torch.save(official.export(trained), tmp_path / "prompter.pt")
    module = build("pretrained", initial={"prompter": str(tmp_path / "prompter.pt")})
    module.setup("test")
    assert not torch.equal(module.prompter.contrast.temp, trained.contrast.temp)
    module.setup("fit")
    mine, theirs = module.prompter.encoders.state_dict(), trained.encoders.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert float(module.prompter.contrast.temp) == pytest.approx(0.1)
    assert not module.prompter.video_prompts.any()


def test_files_of_another_kind_are_refused(pretrained: tuple[Path, dict[str, Any]]) -> None:
    path, _ = pretrained
    module = build("pretrained")
    with pytest.raises(CheckpointError, match=r"warm_start\.kind=pretrained"):
        official.load_prompter(module.prompter, path)
    with pytest.raises(CheckpointError, match="is unknown: pretrained, prompter, retrieval, vqa"):
        official.warm_start(build("retrieval"), path, "stage2")
    with pytest.raises(CheckpointError, match="make it first"):
        official.warm_start(build("retrieval"), path.with_name("none.pt"), "pretrained")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_apart(kind: str) -> None:
    assert official.kind_of(official_file(kind)) == kind
    assert official.kind_of(official.export(build(kind))) == kind
    assert kind in MODULES
