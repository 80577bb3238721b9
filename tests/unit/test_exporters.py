"""Encoders for other programs: names, files, and what is no encoder."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from shared.checkpoints import exporters
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.nn.encoder import Encoder

RESNET18 = {"_target_": "shared.nn.resnet.ResNet", "block": "basic", "layers": [2, 2, 2, 2]}
HEAD = {"hidden": 7, "dim": 5, "negative_slope": 0.0}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(RESNET18, 6, HEAD)


def ours(encoder: Encoder) -> dict[str, Any]:
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    other = {"momentum_encoder.module.backbone.conv1.weight": torch.zeros(1)}
    return {"_target_": "methods.mopro.module.MoPro", "state_dict": state | other, "epoch": 3}


def theirs(encoder: Encoder) -> dict[str, Any]:
    """What MoPro's official script saves; `encoder_k` and the queue are not exported."""
    names = [key.split(".", 1) for key in encoder.state_dict()]
    flat = [".".join(name[1:]) if name[0] != "classifier" else ".".join(name) for name in names]
    values = encoder.state_dict().values()
    state = {f"module.encoder_q.{key}": v for key, v in zip(flat, values, strict=True)}
    state |= {"module.encoder_k.conv1.weight": torch.zeros(1), "module.queue": torch.zeros(1)}
    return {"epoch": 90, "state_dict": state}


def export(source: dict[str, Any], folder: Path, name: str, *options: str) -> Path:
    torch.save(source, folder / "last.ckpt")
    output = folder / "out" / name
    arguments = [f"checkpoint={folder / 'last.ckpt'}", f"output={output}", *options]
    assert exporters.main(arguments) == 0
    return output


@pytest.mark.parametrize(
    ("pack", "name"), [(ours, "backbone.pth"), (theirs, "backbone.safetensors")]
)
def test_torchvision_takes_the_file(encoder, tmp_path, pack, name) -> None:
    whole = load_checkpoint(export(pack(encoder), tmp_path, name, "layout=torchvision"))
    network = resnet18(num_classes=6)
    network.load_state_dict(whole)
    assert torch.equal(whole["fc.bias"], encoder.classifier.bias)
    bare = load_checkpoint(export(pack(encoder), tmp_path, name))
    report = network.load_state_dict(bare, strict=False)
    assert report.missing_keys == ["fc.weight", "fc.bias"]
    assert torch.equal(bare["layer4.1.bn2.weight"], encoder.backbone.layer4[1].bn2.weight)


def test_detectron2_takes_the_file(encoder, tmp_path) -> None:
    file = export(ours(encoder), tmp_path, "mopro.pkl", "layout=detectron2")
    content = pickle.loads(file.read_bytes())
    assert content["matching_heuristics"] is True
    state = encoder.backbone.state_dict()
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res2.0.conv2.weight": "layer1.0.conv2.weight",
        "res5.1.conv2.norm.bias": "layer4.1.bn2.bias",
        "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res3.0.shortcut.norm.weight": "layer2.0.downsample.1.weight",
    }
    assert len(content["model"]) == len(state)
    for there, here in pairs.items():
        assert (content["model"][there] == state[here].numpy()).all()


def test_the_retraining_script_takes_backbone_and_heads(encoder) -> None:
    named: dict[str, Tensor] = ours(encoder)["state_dict"]
    heads = {"weight", "bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    keys = set(encoder.backbone.state_dict()) | heads
    assert exporters.export_layout(named, "retraining").keys() == {f"module.{key}" for key in keys}
    with pytest.raises(CheckpointError, match="no export for 'caffe'"):
        exporters.export_layout(named, "caffe")


def test_what_cannot_be_exported_is_refused(tmp_path, capsys) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    arguments = [f"checkpoint={tmp_path / 'other.pth'}", f"output={tmp_path / 'b.pth'}"]
    assert exporters.main(arguments) == 2
    assert "not a MoCo, PCL or MoPro checkpoint" in capsys.readouterr().err
    assert exporters.main([f"checkpoint={tmp_path / 'none'}", f"output={tmp_path / 'b'}"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    for bad in (arguments[:1], [*arguments, "layout=keras"], [*arguments, "layuot=detectron2"]):
        assert exporters.main(bad) == 2
        assert "usage:" in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()
