"""Adapters of the networks by themselves: TimeSformer, both modes of the text transformer."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.checkpoints.pretrained_vision import load_vision
from shared.nn.timesformer import TimeSformer, nearest_frames

from ..recording import recording
from .building import Config, Inputs, Outputs, names, pretraining


def _vision(config: Config, weights: Inputs) -> TimeSformer:
    """The visual encoder of a module; a case of it alone has no prefix."""
    within = {f"visual_encoder.{name}": value for name, value in weights.items()}
    encoder = pretraining(config, within).eval().encoders.visual_encoder
    assert isinstance(encoder, TimeSformer)
    return encoder


def _in_a_row(tokens: Tensor) -> Tensor:
    """(B, T, 1 + N, C) -> (B, 1 + N T, C), time fastest, as the official code keeps them."""
    return torch.cat([tokens[:, 0, :1], tokens[:, :, 1:].transpose(1, 2).flatten(1, 2)], dim=1)


def timesformer(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoder, clips = _vision(config, weights), inputs["video"].transpose(1, 2)
    blocks = [(block, "forward") for block in encoder.blocks]
    with (
        recording(*blocks, (encoder, "embed"), (encoder, "forward_features")) as calls,
        recording((encoder.blocks[0].temporal_attn, "forward")) as temporal,
        recording((encoder.blocks[0].attn, "forward")) as spatial,
        recording((encoder.patch_embed, "forward")) as patches,
    ):
        pooled = encoder(clips)
    frames = calls["forward_features"][0].result
    # By itself, for in the block its last layer and `temporal_fc` are one.
    looked = encoder.blocks[0].temporal_attn(temporal["forward"][0].arguments["x"])
    return {
        "patch_embed": patches["forward"][0].result,
        "tokens_in": _in_a_row(calls["embed"][0].result),
        "block0.temporal_attn_out": looked,
        "block0.spatial_attn_out": spatial["forward"][0].result,
        **{f"block{n}": _in_a_row(call.result) for n, call in enumerate(calls["forward"])},
        "tokens_all": _in_a_row(frames),
        "video_embeds": pooled,
        # Two poolings that no model uses.
        "pooling_spatial": torch.cat([frames[:, 0, :1], frames[:, :, 1:].mean(dim=2)], dim=1),
        "pooling_none": frames,
    }


def timesformer_init_from_vit(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    within = {f"visual_encoder.{name}": value for name, value in weights.items()}
    module = pretraining(config, within).eval()
    encoder = module.encoders.visual_encoder
    vit = {k.removeprefix("vit."): v for k, v in inputs.items() if k.startswith("vit.")}
    with TemporaryDirectory() as folder:
        path = Path(folder, "vit.safetensors")
        save_file(vit, path)
        load_vision(encoder, str(path))
    after = names(module)
    prefix = "visual_encoder."
    loaded = {k.removeprefix(prefix): v for k, v in after.items() if k.startswith(prefix)}
    # The unused classifier is no part of ours; the official loader leaves it as it is.
    loaded |= {name: value for name, value in weights.items() if ".head." in name}
    return {
        **{f"model_after.{name}": value for name, value in loaded.items()},
        "video_embeds": encoder(inputs["video"].transpose(1, 2)),
    }


def temporal_embed_interpolation(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    positions = inputs["pos_embed"]
    found: Outputs = {}
    for before, after in ((4, 8), (4, 16), (4, 3), (4, 6), (8, 4), (8, 16), (8, 5)):
        resized = nearest_frames(inputs[f"time_embed_{before}"], after)
        found[f"time_embed_{before}_to_{after}"] = resized
    # The official loader takes the patches of a grid for a row; ours interpolates the grid.
    for side in (2, 4, 5):
        patches = nearest_frames(positions[:, 1:], side**2)
        found[f"pos_embed_to_{side}x{side}"] = torch.cat([positions[:, :1], patches], dim=1)
    encoder, clips = _vision(config, weights), inputs["video_other_size"].transpose(1, 2)
    with torch.no_grad():
        found["tokens_in_other_size"] = _in_a_row(encoder.embed(clips))
        found["patch_embed_other_size"] = encoder.patch_embed(clips.flatten(0, 1))
    return found


def text_encoder(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    within = {f"text_encoder.{name}": value for name, value in weights.items()}
    text = pretraining(config, within).eval().encoders.text_encoder
    below = list(text.layers)[: config["fusion_layer"]]
    with recording(*((layer, "forward") for layer in below)) as calls:
        last = text.encode(inputs["text_input_ids"], inputs["text_input_mask"])
    embedded = text.embeddings(inputs["text_input_ids"])
    return {"embeddings": embedded, "last_hidden_state": last, **_hidden(embedded, calls)}


def multimodal(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    prefix = "" if any(name.startswith("text_encoder.") for name in weights) else "text_encoder."
    within = {f"{prefix}{name}": value for name, value in weights.items()}
    text = pretraining(config, within).eval().encoders.text_encoder
    above = list(text.layers)[config["fusion_layer"] :]
    context = text.project(inputs["video_embeds"])
    with recording(*((layer, "forward") for layer in above)) as calls:
        last = text.fuse(inputs["text_embeds"], inputs["text_input_mask"], context)
    return {"last_hidden_state": last, **_hidden(calls["forward"][0].arguments["hidden"], calls)}


def _hidden(first: Tensor, calls: Outputs) -> Outputs:
    states = [first, *(call.result for call in calls["forward"])]
    return {f"hidden{n}": state for n, state in enumerate(states)}
