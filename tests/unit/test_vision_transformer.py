"""The vision transformer against attention written out; positions of other grids; its maps."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.nn.vision_transformer import VisionTransformer, interpolate_positions, recorded_block

WIDTH, HEADS, PATCH = 12, 3, 4


def vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": PATCH, "width": WIDTH, "depth": 2}
    model = VisionTransformer(**sizes | {"heads": HEADS, "mlp_ratio": 2.0} | changes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def images(count: int = 2, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2)).double()


def probabilities(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(1 + N, C) -> attention (H, 1 + N, 1 + N), and values (H, 1 + N, C / H)."""
    qkv = block.attn.qkv(block.norm1(hidden)).view(len(hidden), 3, HEADS, WIDTH // HEADS)
    query, key, value = qkv.permute(1, 2, 0, 3)
    return (query @ key.mT / math.sqrt(WIDTH // HEADS)).softmax(dim=-1), value


def written_out(model: VisionTransformer, image: Tensor) -> Tensor:
    """(3, S, S) -> (1 + N, C)."""
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    side = image.shape[-1] // PATCH
    rows = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, S / P, S / P, P, P)
    patches = [(weight * rows[:, y, x]).sum((1, 2, 3)) + bias
               for y in range(side) for x in range(side)]  # fmt: skip
    hidden = torch.cat([model.cls_token[0], torch.stack(patches)]) + model.pos_embed[0]
    for block in model.blocks:
        attention, value = probabilities(block, hidden)
        mixed = (attention @ value).transpose(0, 1).reshape(len(hidden), WIDTH)
        hidden = hidden + block.attn.proj(mixed)
        hidden = hidden + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(hidden))))
    return F.layer_norm(hidden, (WIDTH,), model.norm.weight, model.norm.bias, 1e-6)


def test_all_tokens_after_the_final_norm() -> None:
    model, batch = vit(), images()
    found = model(batch)
    assert found.shape == (2, 1 + 4, WIDTH)
    for tokens, image in zip(found, batch, strict=True):
        torch.testing.assert_close(tokens, written_out(model, image))
    assert model.grid == 2


def test_keys_are_those_of_deit() -> None:
    keys = vit().state_dict().keys()
    assert {key for key in keys if "blocks" not in key} == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "norm.weight", "norm.bias",
    }  # fmt: skip
    parts = {key.split(".", 2)[2].rsplit(".", 1)[0] for key in keys if "blocks" in key}
    assert parts == {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}


def test_drop_path_rises_linearly_and_is_for_training() -> None:
    plain = vit().train()  # without any dropout
    assert torch.equal(plain(images()), plain(images()))
    model = vit(depth=3, drop_path=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert torch.equal(model(images()), model(images()))
    model.train()
    batch = images(1).expand(32, -1, -1, -1)
    assert not torch.allclose(model(batch), model(batch))


@pytest.mark.parametrize(
    ("checkpointing", "times"), [(True, [2, 2, 2]), (2, [1, 2, 2]), (0, [1] * 3)]
)
def test_gradient_checkpointing_changes_no_gradient(
    checkpointing: bool | int, times: list[int]
) -> None:
    """What keeps no activations is computed a second time: all blocks, or so many of the last."""
    gradients = []
    for chosen in (False, checkpointing):
        model = vit(depth=3, gradient_checkpointing=chosen).train()
        calls = [0, 0, 0]
        for n, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, n=n, c=calls: c.__setitem__(n, c[n] + 1))
        model(images()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert calls == times
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved)


def test_more_checkpointed_blocks_than_there_are() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing=4 of 3 blocks"):
        vit(depth=3, gradient_checkpointing=4)


# --- positions ---


def test_interpolation_by_hand() -> None:
    """2 x 2 -> 4 x 4 of a plane that is 0 and 1 along a row, so that a result is the bicubic weight
    (a = -0.75) of the second pixel and of what lies beyond the border on its side."""
    positions = torch.tensor([9.0, 0.0, 1.0, 0.0, 1.0])[None, :, None]
    found = interpolate_positions(positions, 4)
    assert found.shape == (1, 17, 1)
    assert float(found[0, 0]) == 9.0
    rows = found[0, 1:, 0].view(4, 4)
    assert torch.equal(rows, rows[:1].expand(4, 4)), "row-major: columns differ, rows do not"
    a = -0.75

    def near(t: float) -> float:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1

    def far(t: float) -> float:
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a

    first = far(1.25)  # centre at -0.25: pixel 1 is the last of the four taps
    second = near(0.75) + far(1.75)  # centre at 0.25: pixel 1, and 2 beyond the border
    expected = torch.tensor([first, second, 1 - second, 1 - first])
    torch.testing.assert_close(rows[0], expected)


def test_interpolation_treats_channels_and_axes_alike() -> None:
    positions = torch.randn(1, 10, 5)
    found = interpolate_positions(positions, 7)
    permutation = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        interpolate_positions(positions[..., permutation], 7), found[..., permutation]
    )
    flipped = positions.clone()
    flipped[0, 1:] = positions[0, 1:].view(3, 3, 5).transpose(0, 1).reshape(9, 5)
    expected = found[0, 1:].view(7, 7, 5).transpose(0, 1).reshape(49, 5)
    torch.testing.assert_close(interpolate_positions(flipped, 7)[0, 1:], expected)


def test_what_has_no_square_grid_is_refused_and_the_same_grid_is_left_alone() -> None:
    positions = torch.randn(1, 10, 5)
    assert interpolate_positions(positions, 3) is positions
    with pytest.raises(ValueError, match="10 position embeddings form no square grid"):
        interpolate_positions(torch.zeros(1, 11, 4), 3)
    with pytest.raises(ValueError, match=r"\(1, 1 \+ s\^2, C\), got \(10, 4\)"):
        interpolate_positions(torch.zeros(10, 4), 3)


# --- maps ---


@pytest.mark.parametrize("block", [0, 1])
def test_recorded_block(block: int) -> None:
    """Each pass adds the block's probabilities; outside nothing is kept."""
    model, batch = vit(), images()
    plain = model(batch)
    fused = model.blocks[block].attn.fused_attn
    with recorded_block(model, block) as maps:
        torch.testing.assert_close(model(batch), plain)
        model(batch[:1])
    model(batch)
    assert [tuple(found.shape) for found in maps] == [(2, HEADS, 5, 5), (1, HEADS, 5, 5)]
    torch.testing.assert_close(maps[0].sum(dim=-1), torch.ones(2, HEADS, 5).double())
    assert model.blocks[block].attn.fused_attn == fused
    for found, image in zip(maps[0], batch, strict=True):
        hidden = torch.cat([model.cls_token[0], model.patch_embed(image[None])[0]])
        hidden = hidden + model.pos_embed[0]
        for before in model.blocks[:block]:
            hidden = before(hidden[None])[0]
        expected, _ = probabilities(model.blocks[block], hidden)
        torch.testing.assert_close(found, expected)


def test_a_gradient_of_a_recorded_map_can_be_asked_for() -> None:
    model = vit()
    with recorded_block(model, 1) as maps:
        output = model(images())[:, 0].square().sum()
    (gradient,) = torch.autograd.grad(output, maps[0])
    assert (gradient[:, :, 1:] == 0).all(), "in the last block only the class token's row counts"
    assert (gradient[:, :, 0] != 0).any()


def test_recording_ends_with_an_error_too() -> None:
    model = vit()
    with pytest.raises(RuntimeError, match="oops"), recorded_block(model, 0) as maps:
        raise RuntimeError("oops")
    model(images())
    assert maps == []


def test_a_stem_makes_the_patches() -> None:
    model, batch = vit(stem={"cell": 2, "channels": [6, WIDTH]}), images()
    hidden = model.patch_embed.backbone(batch)
    assert hidden.shape == (2, WIDTH, 2, 2)
    model.eval()
    hidden = model.patch_embed.backbone(batch)
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), hidden.flatten(2).mT], 1)
    expected = model.norm(model.blocks(tokens + model.pos_embed))
    torch.testing.assert_close(model(batch), expected)
    assert model.grid == 2
    # A patch sees more than its own pixels.
    moved = batch.clone()
    moved[:, :, :, PATCH - 1] += 1.0
    changed = (model.patch_embed.backbone(moved) != hidden).any(dim=1)
    assert changed.any(dim=0).all()
    with pytest.raises(ValueError, match="patches of 4 px and width 12, not 8"):
        vit(stem={"cell": 2, "channels": [6, WIDTH]}, patch_size=8)
    with pytest.raises(ValueError, match="width 8, not 4 and 12"):
        vit(stem={"cell": 2, "channels": [6, 8]})
