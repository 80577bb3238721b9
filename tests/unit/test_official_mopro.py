"""Official MoPro checkpoints: full-size, refused when wrong, and the forms for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.mopro import official
from methods.mopro.evaluation import FineTuning, LowShotSVM, Robustness
from methods.mopro.module import CrossEntropy, MoPro
from methods.mopro.retraining import ClassifierRetraining
from shared.checkpoints.official import convert_official
from shared.checkpoints.reading import CheckpointError
from tests.conformance.conftest import compose_experiment
from tests.parity.toys import changed, state_of, toy
from tests.unit.official_toy import checkpoint, resnet50_state

RESNET50 = {"_target_": "shared.nn.resnet.ResNet"}
TINY = {"_target_": "shared.nn.resnet.ResNet", "layers": [1, 1, 1, 1], "base_width": 2}


def mopro() -> MoPro:
    projection = {"hidden": 7, "dim": 5, "negative_slope": 0.0}
    return toy(MoPro, backbone=TINY, num_classes=6, queue_size=6, projection=projection)


def transfer(kind: type, classes: int = 6) -> Any:
    network = {"backbone": TINY, "channels_last": False}
    if kind is LowShotSVM:
        return toy(kind, **network)
    if kind is Robustness:
        return kind(num_classes=classes, class_list="none", bin_size=10, **network)
    return toy(kind, num_classes=classes, freeze=False, head_std=None, **network)


@pytest.mark.parametrize("classes", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_full_size_checkpoints_fit(classes: int) -> None:
    """MoPro_V1_epoch90.tar and MoPro_V2_epoch90.tar."""
    projection = {"hidden": 2048, "dim": 128, "negative_slope": 0.0}
    sizes = {"num_classes": classes, "projection": projection, "queue_size": 8192}
    with torch.device("meta"):
        module = toy(MoPro, backbone=RESNET50, **sizes)
        heads = {"classifier": (classes, 2048), "fc1": (2048, 2048), "fc2": (128, 2048)}
        encoder = resnet50_state(module.encoder.backbone, **heads)
        names = ("encoder_q", "encoder_k")
        state = {f"module.{name}.{k}": v for name in names for k, v in encoder.items()}
        state |= {"module.queue": torch.randn(128, 8192), "module.queue_ptr": torch.zeros(1)}
        state["module.prototypes"] = torch.randn(classes, 128)
    table = official.table_for(module, "state_dict/module.")
    _, report = convert_official(checkpoint(state), table, module.state_dict())
    assert report.complete
    assert len(report.mapped) == len(state)
    assert set(report.fresh) == {"queue.written"}


def test_a_checkpoint_loads_where_it_belongs(tmp_path: Path) -> None:
    module = mopro()
    shapes = official.export(module)["state_dict"]
    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.randn(v.shape, generator=generator) if v.is_floating_point() else v + 3
        for k, v in shapes.items()
    }
    torch.save(checkpoint(state), tmp_path / "MoPro_V1_epoch90.tar")
    official.load(module, tmp_path / "MoPro_V1_epoch90.tar")
    assert torch.equal(module.queue.features, state["module.queue"].T)
    assert int(module.queue.pointer) == 3
    assert torch.equal(module.prototypes.prototypes, state["module.prototypes"])
    mine, key = module.encoder.state_dict(), module.key_encoder.module.state_dict()
    for ours, theirs in (
        ("backbone.layer3.0.conv2.weight", "layer3.0.conv2.weight"),
        ("classifier.bias", "classifier.bias"),
        ("projection.fc1.weight", "fc1.weight"),
    ):
        assert torch.equal(mine[ours], state[f"module.encoder_q.{theirs}"])
        assert torch.equal(key[ours], state[f"module.encoder_k.{theirs}"])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    module = mopro()
    return {k: v.clone() for k, v in official.export(module)["state_dict"].items()}


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("module."): v for k, v in state.items()}


@pytest.mark.parametrize(
    "pack",
    [
        lambda s: {"state_dict": s},
        lambda s: {"state_dict": without_prefix(s)},
        dict,
        without_prefix,
    ],
)
def test_packings(pack: Callable[[dict], dict], state: dict[str, Tensor]) -> None:
    module = mopro()
    official.load(module, pack(state))
    exported = official.export(module)["state_dict"]
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("module.prototypes"), "prototypes.prototypes"),
        (lambda s: s.update({"module.encoder_q.layer5.0.w": torch.ones(1)}), "layer5"),
        (lambda s: s.update({"module.queue": torch.ones(5, 7)}), "module.queue"),
        (
            lambda s: s.update({"module.encoder_q.classifier.bias": torch.ones(9)}),
            "classifier.bias",
        ),
    ],
)
def test_wrong_checkpoints_are_refused(
    change: Callable[[dict], Any], named: str, state: dict[str, Tensor]
) -> None:
    wrong, module = dict(state), mopro()
    change(wrong)
    before = state_of(module)
    with pytest.raises(CheckpointError, match=named):
        official.load(module, {"state_dict": wrong})
    assert not changed(before, module)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    torch.save({"state_dict": Path("x")}, path)
    with pytest.raises(CheckpointError, match="refused"):
        official.load(mopro(), path)


@pytest.mark.parametrize("kind", official.TRANSFER)
def test_warm_start_from_official_and_from_our_run(
    kind: type, state: dict[str, Tensor], tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "official.tar", tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 90}, theirs)
    run = mopro()
    official.load(run, {"state_dict": state})
    save_run(run, ours)
    for path in (theirs, ours):
        module = transfer(kind)
        official.warm_start(module, path, "pretrained")
        for name, value in module.encoder.state_dict().items():
            source = name.removeprefix("backbone.")
            assert torch.equal(value, state[f"module.encoder_q.{source}"]), name


def save_run(module: MoPro, path: Path) -> None:
    content = {"_target_": f"{type(module).__module__}.{type(module).__qualname__}"}
    content |= {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save(content, path)


def test_warm_start_with_other_classes_takes_the_backbone(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "v2.tar"
    torch.save({"state_dict": state}, path)
    module = transfer(FineTuning, classes=4)
    with pytest.raises(CheckpointError, match=r"classifier.weight \(6, 64\) there"):
        official.warm_start(module, path, "pretrained")
    classifier = module.encoder.classifier.weight.clone()
    report = official.warm_start(module, path, "backbone")
    assert torch.equal(module.encoder.classifier.weight, classifier)
    assert "starts anew" in report.fresh.values()
    assert torch.equal(module.encoder.backbone.conv1.weight, state["module.encoder_q.conv1.weight"])


def test_warm_start_is_particular(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "official.tar"
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match="unknown: pretrained, backbone"):
        official.warm_start(transfer(FineTuning), path, "moco")
    with pytest.raises(CheckpointError, match="official_checkpoint"):
        official.warm_start(mopro(), path, "pretrained")


@pytest.mark.parametrize("kind", [CrossEntropy, ClassifierRetraining])
def test_a_module_without_prototypes_takes_the_query_encoder(
    kind: type, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "official.tar"
    torch.save({"state_dict": state}, path)
    cross_entropy = kind is CrossEntropy
    module = toy(kind, backbone=TINY, num_classes=6) if cross_entropy else transfer(kind)
    official.load(module, path)
    bias = state["module.encoder_q.classifier.bias"]
    assert torch.equal(module.encoder.classifier.bias, bias)
    fresh = type(module)(**module.hparams)
    official.load(fresh, official.export(module))
    assert not changed(state_of(module), fresh)


def test_rows_name_the_paper_and_start_where_they_say() -> None:
    config = compose_experiment("mopro/webvision_v1_retrained")
    assert config.paper.value == 73.9
    assert config.trainer.max_epochs == 16
    assert config.warm_start.kind == "pretrained"
    assert config.method.schedule == {"kind": "steps", "milestones": [5, 10], "gamma": 0.1}
