"""The thin base: total loss, the stop on non-finite losses, trusted classes."""

import pytest
import torch
from torch import nn

from shared.nn.building import build, trusted_class
from shared.nn.small_convnet import SmallConvNet
from shared.training.method import Method, NonFiniteLoss


def test_total_is_the_weighted_sum() -> None:
    terms = {"loss_x": torch.tensor(1.0), "loss_u": torch.tensor(2.0)}
    assert Method().total_loss(terms, {"loss_u": 0.5}).item() == 2.0
    assert Method().total_loss(terms, {"loss_x": 0.0}).item() == 2.0


@pytest.mark.parametrize("channels_last", [True, False])
def test_network_and_images_share_one_memory_format(channels_last: bool) -> None:
    method, network = Method(), nn.Conv2d(3, 8, 3)
    method.lay_out(network, channels_last)
    views = [torch.randn(2, 3, 5, 4), torch.randn(1, 3, 5, 4)]
    batch = method.concatenate(views)
    assert torch.equal(batch, torch.cat(views))
    for tensor in (batch, network.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last
    assert Method().concatenate(views).is_contiguous()  # the choice is this method's alone


@pytest.mark.parametrize(
    ("x", "u", "weights", "broken"),
    [
        (1.0, torch.nan, {}, "loss_u"),
        (1.0, torch.inf, {}, "loss_u"),
        (1.0, -torch.inf, {}, "loss_u"),
        (1.0, torch.nan, {"loss_u": 0.0}, "loss_u"),  # of weight zero
        (3e38, 3e38, {}, "their sum"),  # overflows though no term does
    ],
)
def test_non_finite_loss_is_named_with_step_and_batch(x, u, weights, broken) -> None:
    terms = {"loss_x": torch.tensor(x), "loss_u": torch.tensor(u)}
    with pytest.raises(NonFiniteLoss, match=rf"step 0: {broken} not finite.*indices \[4, 7\]"):
        Method().total_loss(terms, weights, torch.tensor([4, 7]))


def test_builds_networks_of_ours_only() -> None:
    config = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [4]}
    assert isinstance(build(config, nn.Module), SmallConvNet)
    assert config["channels"] == [4]
    assert "_target_" in config  # the config is not used up
    with pytest.raises(ValueError, match="needs a `_target_`"):
        build({"channels": [4]}, nn.Module)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.Linear", "os.system", "sharedother.Network", ""),  # not of this project
        # ours by path, not by definition
        *(f"shared.training.method.{name}" for name in ("import_module", "nn.Linear")),
        *(f"shared.nn.small_convnet.{name}" for name in ("Tensor", "Missing")),
        "shared.missing.Network",
        "shared.training.method.NonFiniteLoss",  # ours, but no network
    ],
)
def test_refuses_every_other_target(target: str) -> None:
    with pytest.raises(ValueError, match="does not name a Module"):
        trusted_class(target, nn.Module)
