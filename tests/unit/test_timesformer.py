"""TimeSformer: a new one is a ViT, what it mixes and what not, other lengths and sizes."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.checkpoints.pretrained_vision import load_vision
from shared.nn.timesformer import TimeSformer, nearest_frames
from shared.nn.vision_transformer import VisionTransformer

SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 8, "depth": 2, "heads": 2}


def timesformer(**changes: Any) -> TimeSformer:
    torch.manual_seed(0)
    return TimeSformer(**{"frames": 3, **SIZES, **changes})


def lively(model: TimeSformer) -> TimeSformer:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def clips(count: int = 2, frames: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_a_new_one_from_a_vit_sees_a_still_clip_as_the_vit_its_frame(tmp_path) -> None:
    torch.manual_seed(3)
    vit = VisionTransformer(**SIZES)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    model = timesformer()
    report = load_vision(model, str(tmp_path / "vit.pth"))
    assert report.complete
    assert set(report.fresh) == {"time_embed"} | {
        f"blocks.{n}.temporal_fc.{end}" for n in range(2) for end in ("weight", "bias")
    }
    for block in model.blocks:
        assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(block.temporal_norm1.bias, block.norm1.bias)
    frames = clips(frames=1)
    torch.testing.assert_close(model(frames.repeat(1, 3, 1, 1, 1)), vit(frames[:, 0]))


def test_a_vit_behind_a_stem_becomes_one_that_sees_a_still_clip_as_it_does(tmp_path) -> None:
    """The patches of both come from oriented gradients and residual blocks, frame by frame."""
    stem = {"stem": {"cell": 4, "channels": [4, 8]}}
    vit = VisionTransformer(**SIZES, **stem)
    with torch.no_grad():
        vit.patch_embed.backbone(clips(8)[:, 0])  # statistics that a new one has not
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = timesformer(**stem)
    assert load_vision(model, str(tmp_path / "vit.pth")).complete
    frames = clips(frames=1)
    seen = model.eval()(frames.repeat(1, 3, 1, 1, 1))
    torch.testing.assert_close(seen, vit.eval()(frames[:, 0]))
    model.train()(clips()).sum().backward()
    assert model.patch_embed.backbone[2].weight.grad.abs().any()


@pytest.mark.parametrize(
    ("mixed", "training", "count"), [(True, True, 0), (True, False, 4), (False, True, 4)]
)
def test_attention_is_multiplied_out_where_fusing_it_is_slower(mixed, training, count) -> None:
    model = lively(timesformer()).eval()
    expected = model(clips())
    with (
        patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as of,
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        torch.set_grad_enabled(training),
    ):
        tokens = model(clips())
    assert of.call_count == count
    torch.testing.assert_close(tokens.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_class_token_alone_is_that_of_all_tokens(depth: int) -> None:
    model = lively(timesformer(depth=depth)).eval()
    torch.testing.assert_close(model.class_token(clips()), model(clips())[:, 0])


def test_attention_over_time_passes_two_linear_layers_as_one() -> None:
    """The same, with the same gradients of both, as one after the other."""
    block = lively(timesformer(depth=1)).blocks[0]
    places = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(2))
    weights = [block.temporal_attn.proj.weight, block.temporal_attn.proj.bias]
    weights.append(block.temporal_fc.weight)
    plain = F.linear(block.temporal_attn(places), block.temporal_fc.weight)
    torch.testing.assert_close(block.through_time(places), plain)
    found = [
        torch.autograd.grad(moved.square().sum(), weights)
        for moved in (block.through_time(places), plain)
    ]
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_order_of_frames_counts_only_by_their_embeddings() -> None:
    model = lively(timesformer()).eval()
    forwards, backwards = clips(), clips().flip(1)
    assert not torch.allclose(model(forwards), model(backwards), atol=1e-3)
    with torch.no_grad():
        model.time_embed.zero_()
    torch.testing.assert_close(model(forwards), model(backwards), atol=1e-5, rtol=1e-4)


def test_a_patch_sees_its_own_place_in_other_frames_and_by_one_block_no_other() -> None:
    """Of one block's temporal step: patches of other frames reach a patch through the class token
    in the next block only."""
    model = lively(timesformer(depth=1)).eval()
    before, after = clips(1), clips(1)
    after[:, 2, :, :8, :8] += 1  # the first patch of the last frame
    changed = (model.forward_features(before) - model.forward_features(after)).abs().amax(-1)[0]
    assert (changed[2] > 1e-4).all(), "its own frame"
    assert (changed[0, 1] > 1e-4).all(), "its own place"
    assert (changed[0, 0] > 1e-4).all(), "the class token is the clip's"
    # Other patches of frame 0 see the changed place there, which has seen the last frame.
    assert (changed[0, 2:] > 1e-6).all()
    torch.testing.assert_close(changed[0, 0], changed[1, 0])


@pytest.mark.parametrize(
    ("frames", "taken"), [(6, [0, 0, 1, 1, 2, 2]), (2, [0, 1]), (4, [0, 0, 1, 2])]
)
def test_other_lengths_take_the_nearest_times(frames: int, taken: list[int]) -> None:
    model = lively(timesformer())
    assert torch.equal(nearest_frames(model.time_embed, frames), model.time_embed[:, taken])
    assert model(clips(frames=frames)).shape == (2, 17, 8)


def test_other_sizes_take_the_nearest_positions() -> None:
    """Twice the size: each position stands for four patches."""
    model = lively(timesformer())
    wide = clips(size=32).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    assert model(wide).shape == (2, 65, 8)
    patches = model.embed(wide)[:, :, 1:] - model.patch_embed(wide.flatten(0, 1)).unflatten(
        0, (2, 3)
    )
    grid = patches[0, 0].unflatten(0, (8, 8))
    torch.testing.assert_close(grid[0, 0], grid[1, 1])
    assert not torch.allclose(grid[0, 1], grid[0, 2])


@pytest.mark.parametrize("checkpointing", [True, 1])
def test_gradient_checkpointing_changes_no_gradient(checkpointing: bool | int) -> None:
    gradients = []
    for chosen in (False, checkpointing):
        model = lively(timesformer(gradient_checkpointing=chosen)).train()
        model(clips()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        assert plain is not None
        torch.testing.assert_close(gradients[1][name], plain, msg=name)


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="frames=0"):
        timesformer(frames=0)
