"""Networks, momentum encoder and queue: shapes, parameter counts, updates by hand."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from methods.comatch.model import CoMatchNetwork
from shared.nn.heads import ProjectionHead
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.nn.resnet import ResNet
from shared.nn.small_convnet import SmallConvNet
from shared.nn.wide_resnet import WideResNet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "classes", "projection", "expected"),
    [
        (2, 10, {"hidden": None, "dim": 64, "negative_slope": 0.1}, 1_492_378),
        (2, 10, None, 1_467_610),
        (8, 100, {"hidden": None, "dim": 64, "negative_slope": 0.1}, 23_696_500),
    ],
)
def test_wide_resnet_has_the_papers_parameters(width, classes, projection, expected) -> None:
    backbone = {"_target_": "shared.nn.wide_resnet.WideResNet", "depth": 28, "width": width}
    assert count(CoMatchNetwork(backbone, classes, projection)) == expected


def test_resnet50_has_the_papers_parameters() -> None:
    backbone = {"_target_": "shared.nn.resnet.ResNet"}
    head = {"hidden": 2048, "dim": 128, "negative_slope": 0.0}
    assert count(CoMatchNetwork(backbone, 1000, head)) == 30_015_656


@pytest.mark.parametrize("depth", [9, 12, 4])
def test_wide_resnet_refuses_other_depths(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        WideResNet(depth=depth)


def test_wide_resnet_shapes() -> None:
    network = WideResNet(depth=10, width=2)
    stage2, last = network.feature_maps(torch.randn(2, 3, 16, 16))
    assert stage2.shape == (2, 64, 8, 8)
    assert last.shape == (2, 128, 4, 4)
    assert network(torch.randn(2, 3, 20, 20)).shape == (2, network.num_features) == (2, 128)


def test_resnet_takes_torchvision_weights_and_gives_the_same_features() -> None:
    theirs = resnet18().eval()
    ours = ResNet(block="basic", layers=(2, 2, 2, 2)).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state, strict=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_resnet_width_multiplies_stages_but_not_the_stem() -> None:
    wide = ResNet(layers=(1, 1, 1, 1), width=2)
    assert wide.conv1.out_channels == 64
    assert wide.num_features == 4096
    with pytest.raises(ValueError, match="block must be one of"):
        ResNet(block="bottle")


def test_layout_changes_no_output() -> None:
    network = SmallConvNet(channels=[8, 16], in_channels=3).double().eval()
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    plain = network(images)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last)), plain)


def test_projection_is_on_the_sphere_in_float32() -> None:
    head = ProjectionHead(6, 5, 4, negative_slope=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = head(torch.randn(7, 6))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(7))
    nn.init.zeros_(head.fc2.weight)
    nn.init.zeros_(head.fc2.bias)
    assert torch.equal(head(torch.randn(2, 6)), torch.zeros(2, 4))  # official: NaN


def arms(seed: int) -> list[CoMatchNetwork]:
    networks = []
    for projection in (None, {"hidden": None, "dim": 4, "negative_slope": 0.1}):
        torch.manual_seed(seed)
        backbone = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [4]}
        networks.append(CoMatchNetwork(backbone, 3, projection))
    return networks


def test_arms_of_one_seed_start_from_the_same_backbone_and_classifier() -> None:
    without, with_projection = arms(seed=5)
    state = with_projection.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in without.state_dict().items())
    assert without(torch.zeros(2, 1, 8, 8))[1] is None


def test_momentum_update_by_hand() -> None:
    network = nn.BatchNorm1d(1)
    copy = MomentumEncoder(network, buffers="copy")
    keep = MomentumEncoder(network, buffers="keep")
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(4.0)
        network.num_batches_tracked.fill_(7)
    for averaged in (copy, keep):
        averaged.update(network, momentum=0.75)
        assert averaged.module.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert copy.module.running_mean.item() == 4.0
    assert copy.module.num_batches_tracked.item() == 7
    assert keep.module.running_mean.item() == 0.0
    assert not any(p.requires_grad for p in copy.parameters())
    with pytest.raises(ValueError, match="buffers must be"):
        MomentumEncoder(network, buffers="average")


def test_momentum_encoder_gives_no_gradient() -> None:
    averaged = MomentumEncoder(nn.Linear(2, 2), buffers="copy")
    assert not averaged(torch.randn(1, 2, requires_grad=True)).requires_grad


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_queue_wraps() -> None:
    queue = FeatureQueue(5, 1, {"ids": 1})
    for start in (1, 4, 7):
        batch = rows(start, start + 1, start + 2)
        queue.enqueue(batch, ids=10 * batch)
    assert queue.features.flatten().tolist() == [6, 7, 8, 9, 5]
    assert queue["ids"].flatten().tolist() == [60, 70, 80, 90, 50]
    assert int(queue.pointer) == 4
    assert int(queue.written) == 9


def test_queue_drops_the_surplus() -> None:
    queue = FeatureQueue(5, 1, overflow="drop")
    for start in (1, 4, 7):
        queue.enqueue(rows(start, start + 1, start + 2))
    assert queue.features.flatten().tolist() == [7, 8, 9, 4, 5]
    assert int(queue.pointer) == 3


def test_queue_restores_from_its_state_and_refuses_bad_writes() -> None:
    queue = FeatureQueue(4, 2, {"probs": 3})
    queue.enqueue(torch.ones(3, 2), probs=torch.ones(3, 3))
    other = FeatureQueue(4, 2, {"probs": 3})
    other.load_state_dict(queue.state_dict())
    assert int(other.pointer) == int(other.written) == 3
    with pytest.raises(ValueError, match="payloads"):
        queue.enqueue(torch.ones(1, 2))
    with pytest.raises(ValueError, match="does not fit"):
        queue.enqueue(torch.ones(5, 2), probs=torch.ones(5, 3))
    with pytest.raises(ValueError, match="overflow"):
        FeatureQueue(4, 2, overflow="stop")
