"""Official PCL checkpoints, at full size and with random weights, in and out of our modules."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods.comatch.module import Supervised
from methods.pcl import official
from methods.pcl.evaluation import LinearProbe, LowShotSVM
from methods.pcl.module import PCL, MoCo
from shared.checkpoints.official import convert_official
from shared.checkpoints.reading import CheckpointError
from shared.training.method import Method
from tests.parity.toys import changed, state_of, toy
from tests.unit import official_toy
from tests.unit.official_toy import NARROW, resnet50_state

RESNET50 = {"_target_": "shared.nn.resnet.ResNet"}
TINY = {
    "_target_": "shared.nn.resnet.ResNet", "block": "basic", "layers": [1], "base_width": 12,
    "stem": "small", "stem_channels": 6, "strides": [2],
}  # fmt: skip


def head(version: str, dim: int) -> dict[str, Any]:
    layers = {"v1": {"hidden": 0}, "v2": {"hidden": None, "negative_slope": 0}}
    return layers[version] | {"dim": dim}


def pcl(version: str = "v2") -> PCL:
    return toy(PCL, backbone=NARROW, queue_size=20, projection=head(version, 8))


def tiny(**changes: Any) -> MoCo:
    return toy(MoCo, **({"backbone": TINY, "projection": head("v2", 8)} | changes))


def probe(network: dict[str, Any] = NARROW) -> LinearProbe:
    return toy(LinearProbe, backbone=network, num_classes=7)


def checkpoint(version: str, module: MoCo) -> dict[str, Any]:
    """What main_pcl.py saves under DistributedDataParallel of networks as large as the module's."""
    size, dim = module.queue.features.shape
    width = module.encoder.num_features
    heads = {"v1": {"fc": (dim, width)}, "v2": {"fc__0": (width, width), "fc__2": (dim, width)}}
    state = {"module.queue": torch.randn(dim, size), "module.queue_ptr": torch.tensor([16])}
    for name in ("encoder_q", "encoder_k"):
        encoder = resnet50_state(module.encoder.backbone, **heads[version])
        state |= {f"module.{name}.{key}": value for key, value in encoder.items()}
    return official_toy.checkpoint(state)


def fault(module: Method, content: dict[str, Any]) -> str:
    before = state_of(module)
    with pytest.raises(CheckpointError) as caught:
        official.load(module, content)
    assert not changed(before, module)
    return str(caught.value)


@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_official_checkpoint_full_size(version: str) -> None:
    with torch.device("meta"):
        sizes = {"projection": head(version, 128), "queue_size": 16384}
        module = toy(PCL, backbone=RESNET50, **sizes)
        content = checkpoint(version, module)
    assert content["state_dict"]["module.encoder_q.layer4.2.bn3.bias"].shape == (2048,)
    table = official.key_table("state_dict/module.")
    _, report = convert_official(content, table, module.state_dict())
    assert report.complete


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_official_checkpoint(version: str, tmp_path: Path) -> None:
    module = pcl(version)
    content = checkpoint(version, module)
    path = tmp_path / f"PCL_{version}_epoch200.pth.tar"
    torch.save(content, path)
    report = official.load(module, path)
    assert set(report.fresh) == {"queue.written"}
    assert {key.split("/")[0] for key in report.dropped} == {"epoch", "arch", "optimizer"}

    theirs, ours = content["state_dict"], module.state_dict()
    fc = {"v1": ("fc.weight", "fc.weight"), "v2": ("fc.2.weight", "fc2.weight")}[version]
    for there, here in (("encoder_q", "encoder"), ("encoder_k", "momentum_encoder.module")):
        bn = "layer3.5.bn2.running_var"
        assert torch.equal(ours[f"{here}.backbone.{bn}"], theirs[f"module.{there}.{bn}"])
        found = ours[f"{here}.projection.{fc[1]}"]
        assert torch.equal(found, theirs[f"module.{there}.{fc[0]}"])
    assert torch.equal(module.queue.features, theirs["module.queue"].T)
    assert int(module.queue.pointer) == 16

    exported = official.export(module)
    assert exported.keys() == {"state_dict", "tenfold"}
    assert exported["state_dict"].keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(exported["state_dict"][key], value), key


def test_our_own_state_survives_the_detour() -> None:
    module, other = tiny(), tiny()
    module.queue.enqueue(torch.randn(5, 8))
    official.load(other, official.export(module))
    assert not changed(state_of(module), other)
    assert int(other.queue.written) == 5


def test_wrong_checkpoints_are_refused_with_the_keys() -> None:
    module = pcl("v2")
    message = fault(module, checkpoint("v1", module))
    assert "module.encoder_q.fc.weight (as encoder.projection.fc.weight)" in message
    assert "encoder.projection.fc1.weight" in message

    content = checkpoint("v2", module)
    del content["state_dict"]["module.encoder_k.layer4.2.bn3.bias"]
    content["state_dict"]["module.encoder_q.layer5.0.conv1.weight"] = torch.zeros(1)
    content["state_dict"]["module.queue"] = torch.zeros(8, 65536)  # MoCo's
    message = fault(module, content)
    assert "momentum_encoder.module.backbone.layer4.2.bn3.bias" in message
    assert "encoder_q.layer5.0.conv1.weight" in message
    assert "(65536, 8) there, queue.features (20, 8) here" in message
    message = fault(module, {"state_dict": resnet50_state(module.encoder.backbone)})
    assert "encoder.backbone.conv1.weight" in message
    assert "state_dict/conv1.weight" in message


@pytest.mark.parametrize(
    ("version", "build"),
    [("v1", probe), ("v2", lambda: toy(LowShotSVM, backbone=NARROW))],
)
def test_transfer_from_an_official_checkpoint(version: str, build: Any, tmp_path: Path) -> None:
    content = checkpoint(version, pcl(version))
    torch.save(content, tmp_path / "official.pth.tar")
    module = build()
    classifier = {k: v.clone() for k, v in module.state_dict().items() if "classifier" in k}
    report = official.warm_start(module, tmp_path / "official.pth.tar", "pcl")
    theirs = content["state_dict"]
    for key, value in module.state_dict().items():
        if "classifier" in key:
            assert torch.equal(value, classifier[key]), "the classifier stays as initialised"
        else:
            key = key.replace("encoder.backbone.", "module.encoder_q.")
            assert torch.equal(value, theirs[key]), key
    reasons = set(report.dropped.values())
    assert {"the momentum encoder is not used", "the projection head is not transferred"} <= reasons


def saved(module: Method, path: Path) -> Path:
    target = f"{type(module).__module__}.{type(module).__qualname__}"
    content = {"state_dict": module.state_dict(), "_target_": target, "hyper_parameters": {"a": 1}}
    torch.save(content | {"clusters": None, "loops": {"fit": {"x": 1}}, "epoch": 3}, path)
    return path


def test_transfer_from_one_of_our_runs(tmp_path: Path) -> None:
    trained = tiny()
    path = saved(trained, tmp_path / "last.ckpt")
    module = probe(TINY)
    official.load(module, path)
    for key, value in trained.encoder.backbone.state_dict().items():
        assert torch.equal(module.encoder.backbone.state_dict()[key], value), key

    other = tiny(queue_size=20)
    queue = other.queue.features.clone()
    official.warm_start(other, path, "pcl")
    assert torch.equal(other.queue.features, queue)
    for network in (other.encoder, other.momentum_encoder.module):
        for mine, theirs in zip(network.parameters(), trained.encoder.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_what_cannot_be_a_start_is_refused(tmp_path: Path) -> None:
    path = saved(tiny(), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"warm_start\.kind 'moco_v2' is unknown: pcl"):
        official.warm_start(probe(TINY), path, "moco_v2")
    with pytest.raises(CheckpointError, match=r"missing(.|\n)*layer4"):
        official.warm_start(probe(), path, "pcl")
    with pytest.raises(CheckpointError, match=r"pre-train first(.|\n)*warm_start\.path=FILE"):
        official.warm_start(probe(TINY), tmp_path / "none.ckpt", "pcl")
    path = saved(toy(Supervised), tmp_path / "comatch.ckpt")
    with pytest.raises(CheckpointError, match=r"it is of methods\.comatch\.module\.Supervised"):
        official.warm_start(probe(TINY), path, "pcl")
