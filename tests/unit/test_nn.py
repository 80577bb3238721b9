"""Networks, momentum encoder and queue: shapes, parameter counts, updates by hand."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from shared.nn.cifar_resnet import CifarResNet, PaddedSubsampling
from shared.nn.encoder import Encoder
from shared.nn.heads import LinearProjection
from shared.nn.momentum import MomentumEncoder
from shared.nn.queue import FeatureQueue
from shared.nn.resnet import ResNet
from shared.nn.small_convnet import SmallConvNet
from shared.nn.wide_resnet import WideResNet

WRN = "shared.nn.wide_resnet.WideResNet"
HEAD = {"hidden": None, "dim": 128, "negative_slope": 0.1}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "classes", "projection", "expected"),
    [
        ({"_target_": WRN, "depth": 28, "width": 2}, 10, HEAD | {"dim": 64}, 1_492_378),
        ({"_target_": WRN, "depth": 28, "width": 2}, 10, None, 1_467_610),
        ({"_target_": WRN, "depth": 28, "width": 8}, 100, HEAD | {"dim": 64}, 23_696_500),
        ({"_target_": "shared.nn.resnet.ResNet"}, 1000, HEAD | {"hidden": 2048}, 30_015_656),
    ],
)
def test_networks_have_the_papers_parameters(backbone, classes, projection, expected) -> None:
    with torch.device("meta"):
        network = Encoder(backbone, classes, projection)
    assert count(network) == expected
    if classes == 1000:  # MoPro's keys
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert shapes["classifier.weight"] == (1000, 2048)
        assert shapes["projection.fc1.weight"] == (2048, 2048)
        assert shapes["projection.fc2.weight"] == (128, 2048)
        assert {name.split(".")[0] for name in shapes} == {"backbone", "classifier", "projection"}


def test_wide_resnet_shapes() -> None:
    for depth in (9, 12, 4):
        with pytest.raises(ValueError, match="6n"):
            WideResNet(depth=depth)
    network = WideResNet(depth=10, width=2)
    stage2, last = network.feature_maps(torch.randn(2, 3, 16, 16))
    assert stage2.shape == (2, 64, 8, 8)
    assert last.shape == (2, 128, 4, 4)
    assert network(torch.randn(2, 3, 20, 20)).shape == (2, network.num_features) == (2, 128)


@pytest.mark.parametrize(
    ("reference", "arguments"),
    [
        (partial(resnet.ResNet, resnet.BasicBlock), {"block": "basic"}),
        (partial(resnet.ResNet, resnet.Bottleneck, groups=32, width_per_group=4), {
            "groups": 32, "width_per_group": 4,
        }),
    ],
)  # fmt: skip
def test_resnet_takes_torchvision_weights_and_gives_the_same_features(reference, arguments) -> None:
    theirs = reference(layers=[2, 1, 1, 1]).eval()
    ours = ResNet(**arguments, layers=(2, 1, 1, 1)).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state, strict=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_resnet_width_multiplies_stages_but_not_the_stem() -> None:
    with torch.device("meta"):
        wide = ResNet(layers=(1, 1, 1, 1), width=2)
    assert wide.conv1.out_channels == 64
    assert wide.num_features == 4096
    with pytest.raises(ValueError, match="block must be one of"):
        ResNet(block="bottle")


def test_small_stem_keeps_the_resolution() -> None:
    network = ResNet("basic", layers=(1,), base_width=12, stem="small", stem_channels=6)
    assert network.conv1.weight.shape == (6, 3, 3, 3)
    maps = []
    network.layer1.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    assert network(torch.randn(2, 3, 10, 10)).shape == (2, network.num_features) == (2, 12)
    assert maps == [(2, 12, 10, 10)]
    names = {name for name, _ in network.named_parameters()}
    assert {"conv1.weight", "bn1.weight", "layer1.0.downsample.0.weight"} <= names


def test_strides_and_number_of_stages() -> None:
    arguments = {"block": "basic", "layers": (1, 1), "base_width": 4, "stem": "small"}
    maps = []
    network = ResNet(**arguments, strides=(2, 1))
    network.layer2.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    network(torch.randn(1, 3, 9, 9))
    assert maps == [(1, 8, 5, 5)]
    with pytest.raises(ValueError, match="2 stages but 3 strides"):
        ResNet(**arguments, strides=(1, 2, 2))
    with pytest.raises(ValueError, match="stem must be"):
        ResNet(stem="tiny")


def test_resnet_weights_start_as_torchvisions() -> None:
    torch.manual_seed(0)
    weight = ResNet(layers=(1, 1, 1, 1)).layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert weight.mean().abs().item() < 1e-4


def test_resnet32_is_the_long_tail_literatures() -> None:
    network = CifarResNet(depth=32)
    convolutions = 3 * 16 * 9 + 10 * 16 * 16 * 9
    convolutions += (16 * 32 + 9 * 32 * 32) * 9 + (32 * 64 + 9 * 64 * 64) * 9
    assert count(network) == convolutions + 2 * (11 * 16 + 10 * 32 + 10 * 64)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 31
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.num_features) == (2, 64)
    assert len(network.layer2) == 5
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth=30)


def test_cifar_shortcut_takes_every_second_pixel_between_zeros() -> None:
    x = torch.arange(1.0, 2 * 4 * 16 + 1).reshape(2, 4, 4, 4)
    y = PaddedSubsampling(4, 8)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == y[:, 6:].abs().sum() == 0


def test_cifar_resnet_starts_from_kaimings_fan_in() -> None:
    torch.manual_seed(0)
    weight = CifarResNet(depth=8).layer3[0].conv1.weight  # 32 -> 64 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)


def test_layout_changes_no_output() -> None:
    network = SmallConvNet(channels=[8, 16], in_channels=3).double().eval()
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    plain = network(images)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last)), plain)


TINY = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [4]}


def test_linear_projection_is_on_the_sphere_in_float32() -> None:
    network = Encoder(TINY, None, {"hidden": 0, "dim": 3})
    assert isinstance(network.projection, LinearProjection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, z = network(torch.randn(5, 1, 8, 8))
    assert logits is None
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    features = network.backbone(images := torch.randn(5, 1, 8, 8))
    raw = network.projection.fc(features)
    torch.testing.assert_close(network(images)[1], raw / raw.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("projection", "named"),
    [
        ({"hidden": 3, "dim": 2}, "missing .* 'negative_slope'"),
        ({"dim": 2, "negative_slope": 0.1}, "missing .* 'hidden'"),
        ({"hidden": 0, "dim": 2, "size": 3}, "unexpected .* 'size'"),
        ({"hidden": 0, "dim": 2, "negative_slope": 0.1}, "linear head are 0, not 0, 0.1"),
    ],
)
def test_wrong_projection_is_named(projection, named) -> None:
    with pytest.raises(ValueError, match=named):
        Encoder(TINY, 3, projection)


def test_arms_of_one_seed_start_from_the_same_backbone_and_classifier() -> None:
    arms = []
    for projection in (None, {"hidden": None, "dim": 4, "negative_slope": 0.1}):
        torch.manual_seed(5)
        arms.append(Encoder(TINY, 3, projection))
    without, with_projection = arms
    state = with_projection.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in without.state_dict().items())
    assert without(torch.zeros(2, 1, 8, 8))[1] is None


def test_momentum_encoder_gives_no_gradient() -> None:
    averaged = MomentumEncoder(nn.Linear(2, 2), buffers="copy")
    assert not averaged(torch.randn(1, 2, requires_grad=True)).requires_grad


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


def test_queued_ids_are_kept_whole() -> None:
    """As of the images of large sets, or of hashes: float32 would take 2^24 for 2^24 + 1."""
    queue = FeatureQueue(4, 2, {"idx": 1, "probs": 3}, integers=["idx"])
    ids = torch.tensor([[2**24], [2**24 + 1], [2**62 + 1]])
    queue.enqueue(torch.ones(3, 2), idx=ids, probs=torch.full((3, 3), 0.5))
    assert queue["idx"].dtype == torch.int64
    assert queue["probs"].dtype == torch.float32
    assert queue["idx"].tolist() == [*ids.tolist(), [0]]
    with pytest.raises(ValueError, match=r"idx are integers, got torch\.float32"):
        queue.enqueue(torch.ones(1, 2), idx=torch.ones(1, 1), probs=torch.ones(1, 3))
    before = FeatureQueue(4, 2, {"idx": 1, "probs": 3})  # as older checkpoints have it
    before["idx"].fill_(-100)
    queue.load_state_dict(before.state_dict())
    assert queue["idx"].dtype == torch.int64
    assert (queue["idx"] == -100).all()
