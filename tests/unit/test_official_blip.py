"""BLIP's official checkpoints: every key of each task, tied copies, and how tasks start."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.blip import hugging_face, official
from methods.blip.nlvr import NLVR
from shared.checkpoints.reading import CheckpointError
from tests.unit.blip_toy import QUEUE, TEXT, VISION, batch, build, lively, nlvr, pretraining, vqa

KINDS = ("pretraining", "retrieval", "captioning", "vqa", "nlvr")
VIT = """cls_token pos_embed patch_embed.proj.weight patch_embed.proj.bias norm.weight norm.bias"""
BLOCK = "norm1 norm2 attn.qkv attn.proj mlp.fc1 mlp.fc2"
LAYER = """attention.self.query attention.self.key attention.self.value attention.output.dense
attention.output.LayerNorm intermediate.dense output.dense output.LayerNorm"""
CROSS = """self.query self.key self.value output.dense output.LayerNorm"""
TWINS = """self0.query self0.key self0.value self1.query self1.key self1.value output.dense0
output.dense1 output.LayerNorm"""


def both(names: str, prefix: str) -> set[str]:
    return {f"{prefix}{name}.{end}" for name in names.split() for end in ("weight", "bias")}


def vision_keys(copy: str = "", depth: int = 12) -> set[str]:
    keys = {f"visual_encoder{copy}.{name}" for name in VIT.split()}
    for n in range(depth):
        keys |= both(BLOCK, f"visual_encoder{copy}.blocks.{n}.")
    return keys


def text_keys(prefix: str, layers: int = 12, twins: bool = False) -> set[str]:
    tables = ("word_embeddings.weight", "position_embeddings.weight", "position_ids")
    keys = {f"{prefix}embeddings.{name}" for name in tables}
    keys |= both("LayerNorm", f"{prefix}embeddings.")
    for n in range(layers):
        layer = f"{prefix}encoder.layer.{n}."
        keys |= both(LAYER, layer) | both(TWINS if twins else CROSS, f"{layer}crossattention.")
        if twins and n >= 6:
            keys |= both("output.merge_layer", f"{layer}crossattention.")
    return keys


def head_keys() -> set[str]:
    prefix = "text_decoder.cls.predictions."
    names = "transform.dense transform.LayerNorm decoder"
    return {f"{prefix}bias"} | both(names, prefix)


def projections(copy: str = "") -> set[str]:
    return both(f"vision_proj{copy} text_proj{copy}", "")


ENCODERS = vision_keys() | text_keys("text_encoder.")
MATCHED = ENCODERS | projections() | both("itm_head", "") | {"temp", "image_queue", "text_queue"}
MATCHED |= vision_keys("_m") | text_keys("text_encoder_m.") | projections("_m")
DECODER = text_keys("text_decoder.bert.") | head_keys()
EXPECTED = {
    "pretraining": MATCHED | DECODER | {"queue_ptr"},
    "retrieval": MATCHED | {"ptr_queue", "idx_queue"},
    "captioning": vision_keys() | DECODER,
    "vqa": ENCODERS | DECODER,
    "nlvr": vision_keys()
    | text_keys("text_encoder.", twins=True)
    | both("cls_head.0 cls_head.2", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_shapes_are_the_official_ones_at_the_size_of_the_paper(kind: str) -> None:
    vision = {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12}
    text = TEXT | {"vocab_size": 30524, "hidden_size": 768, "num_layers": 12, "num_heads": 12,
                   "intermediate_size": 3072, "max_positions": 512}  # fmt: skip
    sizes: dict[str, Any] = {"vision": vision, "text": text}
    if kind in ("pretraining", "retrieval"):
        sizes |= {"embed_dim": 256, "queue_size": 57600}
    if kind == "nlvr":
        sizes |= {"merge_from": 6}
    with torch.device("meta"):
        module = build(kind, **sizes)
        exported = official.export(module)
    exported.pop("tenfold", None)
    assert set(exported) == EXPECTED[kind]
    shapes = {
        "visual_encoder.pos_embed": (1, 197, 768), "text_encoder.embeddings.position_ids": (1, 512),
        "text_encoder.embeddings.word_embeddings.weight": (30524, 768), "temp": (),
        "text_encoder.encoder.layer.11.crossattention.self.key.weight": (768, 768),
        "text_encoder.encoder.layer.6.crossattention.output.merge_layer.weight": (768, 1536),
        "vision_proj.weight": (256, 768), "itm_head.weight": (2, 768), "idx_queue": (1, 57600),
        "image_queue": (256, 57600), "queue_ptr": (1,), "ptr_queue": (1,),
    }  # fmt: skip
    for key in shapes.keys() & exported.keys():
        assert tuple(exported[key].shape) == shapes[key], key
    for key in ("idx_queue", "queue_ptr", "ptr_queue"):
        assert key not in exported or exported[key].dtype == torch.long


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_import_are_inverse(kind: str) -> None:
    module = lively(build(kind))
    if hasattr(module, "contrast"):
        module.training_step(batch(), 0)
    fresh = build(kind, seed=9)
    report = official.load(
        fresh,
        {
            "model": official.export(module),
        },
    )
    assert report.complete
    assert not report.fresh
    state = module.state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_tied_copies_that_differ_are_refused() -> None:
    state = official.export(lively(pretraining()))
    shared = "text_decoder.bert.encoder.layer.1.output.dense.weight"
    words = "text_decoder.cls.predictions.decoder.weight"
    own = "text_decoder.bert.encoder.layer.1.attention.self.query.weight"
    for key, tied in ((shared, True), (words, True), (own, False)):
        module = pretraining(seed=4)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        changed = state | {key: state[key] + 1}
        if tied:
            with pytest.raises(CheckpointError, match="are one tensor here, but differ"):
                official.load(module, changed)
            for name, value in module.state_dict().items():
                assert torch.equal(value, before[name]), name
        else:
            official.load(module, changed)
    official.load(pretraining(sharing="none"), state | {shared: state[shared] + 1})


def test_a_missing_and_a_foreign_key_are_named() -> None:
    state = official.export(pretraining())
    state["extra.weight"] = torch.zeros(1)
    del state["itm_head.bias"]
    with pytest.raises(CheckpointError, match="nothing loaded") as told:
        official.load(pretraining(), state)
    assert "extra.weight" in str(told.value)
    assert "matching.head.bias" in str(told.value)


def test_a_file_that_only_scores_pairs() -> None:
    """Copies start from the encoders, the temperature and the queue anew."""
    module = lively(build("retrieval"))
    state = official.export(module)
    parts = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.", "itm_head.")
    scorer = {key: value for key, value in state.items() if key.startswith(parts)}
    fresh = build("retrieval", seed=5)
    official.load(fresh, scorer)
    for mine, copy in zip(
        fresh.encoders.parameters(), fresh.momentum_encoders.parameters(), strict=True
    ):
        assert torch.equal(mine, copy)
    assert float(fresh.contrast.temp.detach()) == pytest.approx(0.07)


def test_positions_are_interpolated_in_both_encoders() -> None:
    module = lively(build("retrieval"))
    larger = build("retrieval", vision=VISION | {"image_size": 32})
    report = official.load(larger, official.export(module))
    assert len(report.interpolated) == 2


# --- how tasks start ---


def start(kind: str, state: dict[str, Any], **changes: Any) -> Any:
    module = build(kind, seed=6, **changes)
    report = official.start_from(module, state)
    assert report.complete
    return module


def test_retrieval_starts_from_pretraining() -> None:
    """Queued features are taken, of no identity, and overwritten from the first on."""
    source = lively(pretraining())
    source.training_step(batch(), 0)
    module = start("retrieval", official.export(source))
    assert torch.equal(module.contrast.queue.features, source.contrast.queue.features)
    assert int(module.contrast.queue.pointer) == 0
    assert (module.contrast.queue["idx"] == -100).all()
    assert torch.equal(module.matching.head.weight, source.matching.head.weight)
    assert torch.equal(module.contrast.temp, source.contrast.temp)
    another = start("retrieval", official.export(source), queue_size=2 * QUEUE)
    assert len(another.contrast.queue) == 2 * QUEUE


def test_captioning_and_answering_start_from_pretraining() -> None:
    source = lively(pretraining())
    state = official.export(source)
    captioning = start("captioning", state)
    images = batch()["images"]
    torch.testing.assert_close(
        captioning.visual_encoder(images), source.encoders.visual_encoder(images)
    )
    assert torch.equal(captioning.decoder.head.bias, source.decoder.head.bias)
    # The questions' states are as wide as the text, the images' tokens were wider.
    answering = vqa(seed=6)
    report = official.start_from(answering, state)
    kept = [key for key, why in report.dropped.items() if "another width" in why]
    assert len(kept) == 2 * TEXT["num_layers"]
    mine, theirs = answering.encoders.text_decoder, source.decoder.transformer
    assert torch.equal(mine.layers[1].self_attention.query.weight,
                       theirs.layers[1].self_attention.query.weight)  # fmt: skip
    assert torch.equal(mine.layers[1].cross_attention.query.weight,
                       theirs.layers[1].cross_attention.query.weight)  # fmt: skip
    same = VISION | {"width": TEXT["hidden_size"], "heads": 2}
    source = lively(pretraining(vision=same))
    answering = start("vqa", official.export(source), vision=same)
    mine, theirs = answering.encoders.text_decoder, source.decoder.transformer
    assert torch.equal(mine.layers[1].cross_attention.key.weight,
                       theirs.layers[1].cross_attention.key.weight)  # fmt: skip
    embedded = answering.encoders.text_decoder.embeddings.word.weight
    assert embedded is not answering.encoders.text_encoder.embeddings.word.weight


def test_both_twins_start_as_the_one_cross_attention() -> None:
    source = lively(pretraining())
    module = build("nlvr", seed=6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = official.start_from(module, official.export(source))
    assert isinstance(module, NLVR)
    theirs = source.encoders.text_encoder.layers[1].cross_attention
    mine: Any = module.encoders.text_encoder.layers[1].cross_attention
    for twin in (mine.first, mine.second):
        for part in ("query", "key", "value", "output"):
            assert torch.equal(getattr(twin, part).weight, getattr(theirs, part).weight)
    assert torch.equal(mine.norm.weight, theirs.norm.weight)
    assert set(report.fresh.values()) == {"a new head", "a new merge layer"}
    for name in report.fresh:
        assert torch.equal(module.state_dict()[name], before[name])


@pytest.mark.parametrize("kind", ["pretrained", "retrieval", "captioning", "vqa"])
def test_warm_start_from_files_of_each_kind(kind: str, tmp_path: Path) -> None:
    task = "pretraining" if kind == "pretrained" else kind
    source = lively(build(task))
    path = tmp_path / "official.pth"
    torch.save({"model": official.export(source), "epoch": 3}, path)
    module = build(task, seed=8)
    official.warm_start(module, path, kind)
    for (name, mine), theirs in zip(module.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    wrong = "retrieval" if kind != "retrieval" else "pretrained"
    with pytest.raises(CheckpointError, match=re.escape(official.KINDS[kind])):
        official.warm_start(module, path, wrong)
    with pytest.raises(CheckpointError, match="experiment=blip"):
        official.warm_start(module, tmp_path / "none.pth", kind)


def test_names_of_transformers_port() -> None:
    """Its files load, and ours get its names; queues and momentum copies it has none."""
    source = lively(build("captioning"))
    theirs = hugging_face.hugging_face_names(official.export(source))
    assert "vision_model.embeddings.class_embedding" in theirs
    assert "vision_model.encoder.layers.0.self_attn.projection.weight" in theirs
    assert "vision_model.encoder.layers.0.layer_norm2.bias" in theirs
    assert "vision_model.post_layernorm.weight" in theirs
    assert "text_decoder.bert.encoder.layer.1.attention.self.query.weight" in theirs
    assert not any(key.startswith("visual_encoder") for key in theirs)
    module = build("captioning", seed=5)
    official.load(module, theirs)
    state: dict[str, Tensor] = source.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    scoring = hugging_face.hugging_face_names(official.export(build("retrieval")))
    assert not {"temp", "image_queue", "idx_queue"} & scoring.keys()
    assert not any("_m." in key for key in scoring)
    official.load(nlvr(), official.export(nlvr()))
