"""Official PB-OVD files and other starts: every key is accounted for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from methods.pb_ovd import official
from methods.pb_ovd.module import OpenVocabularyDetector
from shared.checkpoints.reading import CheckpointError
from shared.checkpoints.zoo import zoo_file
from shared.composing import compose_experiment
from shared.nn.building import build
from tests.unit.pb_ovd_toy import detector, settings, texts
from tests.unit.simcal_toy import scenes


def other() -> Any:
    """A detector with other weights than a fresh one."""
    module = detector()
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(torch.rand_like(value))
    return module.eval()


def test_official_names_account_for_every_key() -> None:
    module = other()
    content = official.export(module)
    assert "backbone.body.stem.bn1.running_var" in content["model"]
    assert content["model"]["roi_heads.box.predictor.bbox_pred.weight"].shape == (8, 16)
    # As the official trainer writes them: beside its state, of a parallel network, with what
    # follows from the config and from the data.
    head = "module.roi_heads.box.predictor.cls_score"
    written = {
        "model": {f"module.{k}": v for k, v in content["model"].items()}
        | {
            "module.rpn.anchor_generator.cell_anchors.0": module.detector.rpn.anchors.cell0,
            f"{head}.weight": torch.zeros(9, 6), f"{head}.bias": torch.zeros(9),
        },
        "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "iteration": 3,
    }  # fmt: skip
    fresh = detector()
    report = official.load(fresh, written)
    assert list(report.fresh) == ["texts"]
    state = fresh.state_dict()
    for name, value in module.state_dict().items():
        if name != "texts":
            assert torch.equal(state[name], value), name
    anchors = written["model"].pop("module.rpn.anchor_generator.cell_anchors.0")
    written["model"]["module.rpn.anchor_generator.cell_anchors.0"] = anchors + 1
    with pytest.raises(CheckpointError, match=r"are not those of method\.detector\.anchors"):
        official.load(fresh, written)
    del written["model"]["module.rpn.anchor_generator.cell_anchors.0"]
    del written["model"]["module.rpn.head.bbox_pred.bias"]
    with pytest.raises(CheckpointError, match=r"detector\.rpn\.head\.bbox_pred\.bias"):
        official.load(fresh, written)


def test_fine_tuning_starts_from_a_detector_of_other_classes(tmp_path: Path) -> None:
    path, trained = tmp_path / "last.ckpt", other()
    target = "methods.pb_ovd.module.OpenVocabularyDetector"
    torch.save({"_target_": target, "state_dict": trained.state_dict()}, path)
    fewer = detector_of(2)
    official.warm_start(fewer, path, "detector")
    batch, names = scenes(2), texts(5)
    found, expected = fewer.eval().detect(batch, names), trained.detect(batch, names)
    assert torch.equal(found.scores, expected.scores)
    torch.save({"model": official.export(trained)["model"], "iteration": 9}, path)  # as theirs
    again = detector_of(2)
    official.warm_start(again, path, "detector")
    assert torch.equal(again.eval().detect(batch, names).scores, expected.scores)
    with pytest.raises(CheckpointError, match="kind 'imagenet' is unknown: detector, msra, stem"):
        official.warm_start(fewer, path, "imagenet")
    with pytest.raises(CheckpointError, match="train it first"):
        official.warm_start(fewer, tmp_path / "nothing.ckpt", "detector")


def detector_of(classes: int) -> Any:
    given = settings()
    given["detector"]["num_classes"] = classes
    return OpenVocabularyDetector(**given)


def blobs() -> dict[str, np.ndarray]:
    """A ResNet of the toy's size in Caffe2's names."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"conv1_w": (8, 3, 7, 7), "fc1000_w": (10, 16)}
    shapes |= {"conv1_b": (8,), "fc1000_b": (10,), "res_conv1_bn_s": (8,), "res_conv1_bn_b": (8,)}
    stages = ((2, 8, 8, 4, 1), (3, 8, 16, 8, 1), (4, 16, 32, 16, 1), (5, 32, 16, 8, 2))
    for stage, inputs, outputs, width, count in stages:
        for block in range(count):
            given = inputs if block == 0 else outputs
            layers = {"2a": (width, given, 1, 1), "2b": (width, width, 3, 3)}
            layers["2c"] = (outputs, width, 1, 1)
            if block == 0 and given != outputs:
                layers["1"] = (outputs, given, 1, 1)
            for branch, shape in layers.items():
                name = f"res{stage}_{block}_branch{branch}"
                shapes |= {f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]}
    return {k: generator.random(s, dtype=np.float32) for k, s in shapes.items()}


def test_msra_starts_the_body_and_the_head(tmp_path: Path) -> None:
    path, given = tmp_path / "R-50.pkl", blobs()
    path.write_bytes(pickle.dumps(given, protocol=2))
    module = detector()
    official.warm_start(module, path, "msra")
    state = module.state_dict()
    assert np.array_equal(state["detector.backbone.conv1.weight"], given["conv1_w"])
    assert np.array_equal(
        state["detector.backbone.layer3.0.downsample.1.bias"], given["res4_0_branch1_bn_b"]
    )
    assert np.array_equal(
        state["detector.box_heads.0.trunk.1.bn2.weight"], given["res5_1_branch2b_bn_s"]
    )
    assert (state["detector.backbone.bn1.running_var"] == 1).all()
    del given["res5_1_branch2b_w"]
    path.write_bytes(pickle.dumps(given, protocol=2))
    with pytest.raises(CheckpointError, match=r"trunk\.1\.conv2\.weight"):
        official.warm_start(module, path, "msra")
    with pytest.raises(CheckpointError, match=r"names Detectron's R-50\.pkl"):
        official.warm_start(module, tmp_path / "absent.pkl", "msra")


class Trap:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/pb-ovd-trap"),))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": Trap()}))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        official.warm_start(detector(), path, "msra")
    assert not Path("/tmp/pb-ovd-trap").exists()


def test_a_stem_of_the_zoo_starts_the_network_alone() -> None:
    network = {
        "_target_": "shared.nn.detection.backbones.StemBackbone",
        "cell": 4,
        "channels": [64, 128],
        "frozen": True,
    }
    given = settings()
    given["detector"] |= {"backbone": network, "anchors": {"sizes": [26], "ratios": [1.0]}}
    module = OpenVocabularyDetector(**given)
    report = official.warm_start(module, "zoo:vit-emoji", "stem")
    assert "blocks.0.attn.qkv.weight" in report.dropped
    zoo = load_file(zoo_file("zoo:vit-emoji"))
    state = module.detector.backbone.stem.state_dict()
    assert state
    assert all(
        torch.equal(zoo[f"patch_embed.backbone.{key}"].to(value), value)
        for key, value in state.items()
    )
    with pytest.raises(CheckpointError, match=r"detector\.backbone\.stem"):
        official.warm_start(detector(), "zoo:vit-emoji", "stem")


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a detector of 1,009 classes on ResNet-50-C4, as maskrcnn-benchmark calls
    them."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        parts = ("weight", "bias", "running_mean", "running_var")
        found.update({f"{name}.{part}": (width,) for part in parts})

    def stage(name: str, inputs: int, width: int, blocks: int) -> None:
        for block in range(blocks):
            before = 4 * width if block else inputs
            shapes = [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for number, shape in enumerate(shapes, 1):
                found[f"{name}.{block}.conv{number}.weight"] = shape
                norm(f"{name}.{block}.bn{number}", shape[0])
        found[f"{name}.0.downsample.0.weight"] = (4 * width, inputs, 1, 1)
        norm(f"{name}.0.downsample.1", 4 * width)

    def layer(name: str, *shape: int) -> None:
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    found["backbone.body.stem.conv1.weight"] = (64, 3, 7, 7)
    norm("backbone.body.stem.bn1", 64)
    stage("backbone.body.layer1", 64, 64, 3)
    stage("backbone.body.layer2", 256, 128, 4)
    stage("backbone.body.layer3", 512, 256, 6)
    stage("roi_heads.box.feature_extractor.head.layer4", 1024, 512, 3)
    layer("rpn.head.conv", 1024, 1024, 3, 3)
    layer("rpn.head.cls_logits", 15, 1024, 1, 1)
    layer("rpn.head.bbox_pred", 60, 1024, 1, 1)
    layer("roi_heads.box.predictor.emb_pred", 512, 2048)
    layer("roi_heads.box.predictor.bbox_pred", 8, 2048)
    layer("roi_heads.box.predictor.cls_score", 1010, 512)
    return found


def test_a_full_size_official_state_dict_fits_the_papers_row() -> None:
    config = compose_experiment("pb_ovd/coco_pseudo", [])
    module = build(config.method, OpenVocabularyDetector)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.rand(shape, generator=generator) for k, shape in official_shapes().items()}
    state["rpn.anchor_generator.cell_anchors.0"] = module.detector.rpn.anchors.cell0
    report = official.load(module, {"model": {f"module.{k}": v for k, v in state.items()}})
    assert list(report.fresh) == ["texts"]
    exported = official.export(module)["model"]
    given = {k: v for k, v in state.items() if "cls_score" not in k and "cell_anchors" not in k}
    assert exported.keys() == given.keys()
    assert all(torch.equal(exported[name], value) for name, value in given.items())
    del state["backbone.body.layer3.5.bn3.running_var"]
    with pytest.raises(CheckpointError, match=r"detector\.backbone\.layer3\.5\.bn3\.running_var"):
        official.load(module, {"model": state})
