"""Adapters of the networks by themselves: ViT, the three modes of the text transformer, NLVR2."""

import torch
from torch import Tensor

from methods.blip import official
from methods.blip.network import opened
from methods.blip.nlvr import NLVR
from shared.losses.language import decoder_labels, smoothed_losses, text_sums
from shared.nn.generation import CachedDecoder

from ..recording import recording
from .building import SMOOTHING, Config, Inputs, Outputs, captioning, frame, gradients, retrieval


def _vision(weights: Inputs) -> Inputs:
    """A case of the ViT alone has no prefix."""
    return {f"visual_encoder.{name}": value for name, value in weights.items()}


def vit(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoder = retrieval(config, _vision(weights)).eval().encoders.visual_encoder
    with recording(*((block, "forward") for block in encoder.blocks)) as calls:
        tokens = encoder(inputs["image"])
    blocks = {f"block{n}": call.result for n, call in enumerate(calls["forward"])}
    return {"tokens": tokens, **blocks}


def pos_embed_interpolation(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    larger = config | {"image_size": config["target_image_size"]}
    encoder = retrieval(larger, _vision(weights)).eval().encoders.visual_encoder
    return {"pos_embed_resized": encoder.pos_embed, "tokens": encoder(inputs["image"])}


def text_encoder(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoder = retrieval(config, weights).eval().encoders.text_encoder
    states = encoder.encode(inputs["input_ids"], inputs["attention_mask"], alone=True)
    return {"last_hidden_state": states}


def image_grounded_encoder(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoders = retrieval(config, weights).eval().encoders
    tokens, _ = encoders.encode_image(inputs["image"])
    ids, mask = opened(inputs["input_ids"], encoders.enc_id), inputs["attention_mask"]
    context = encoders.text_encoder.project(tokens)
    return {
        "image_embeds": tokens,
        "last_hidden_state": encoders.text_encoder(ids, mask, context),
    }


def image_grounded_decoder(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = captioning(config, weights).eval()
    transformer, head = module.decoder.transformer, module.decoder.head
    ids, mask = inputs["decoder_input_ids"], inputs["attention_mask"]
    tokens = module.visual_encoder(inputs["image"])
    context = transformer.project(tokens)
    targets = [(part, "forward") for part in (transformer.embeddings, *transformer.layers)]
    with recording(*targets) as calls:
        hidden = transformer(ids, mask, context, causal=True)
    logits = head(hidden, transformer.embeddings.word)
    predicted = inputs["labels"][:, 1:] >= 0
    assert torch.equal(decoder_labels(ids, mask)[:, 1:] >= 0, predicted)
    losses = smoothed_losses(logits[:, :-1][predicted], ids[:, 1:][predicted], SMOOTHING)
    torch.testing.assert_close(module.decoder(ids, mask, context), losses)

    length = int(mask[0].sum())
    one = [keys_values.rows(slice(1)) for keys_values in context]
    cached = CachedDecoder(transformer, head, one, length)
    for token in ids[0, :length]:
        last = cached(token.view(1, 1))
    states = {f"hidden{n}": call.result for n, call in enumerate(calls["forward"])}
    return {
        "image_embeds": tokens,
        "logits": logits,
        "loss_mean": losses.mean(),
        "loss_per_sequence": text_sums(losses, predicted),
        "cached_last_logits": last,
        **states,
    }


def _nlvr(config: Config) -> NLVR:
    tokens = config["special_tokens"]
    return NLVR(merge_from=config["merge_from_layer"], enc_id=tokens["enc"], **frame(config))


def _pairs(inputs: Inputs) -> dict[str, Tensor]:
    return {
        "images": torch.cat([inputs["image0"], inputs["image1"]]),
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": inputs["targets"],
        "indices": torch.arange(len(inputs["targets"])),
    }


def nlvr(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module, batch = _nlvr(config), _pairs(inputs)
    official.load(module, weights)
    prediction, _ = module.eval().outcome(batch)
    encoder = module.encoders.text_encoder
    ids = opened(batch["input_ids"], module.encoders.enc_id)
    context = encoder.project(module.encoders.visual_encoder(batch["images"]))
    states = encoder(ids, batch["attention_mask"], context)
    loss = module.train().training_step(batch, 0)
    loss.backward()
    return {
        "loss": loss,
        "prediction": prediction,
        "last_hidden_state": states,
        **gradients(module),
    }


def nlvr_init_from_med(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module, kept = _nlvr(config), "init."
    own = official.export(module)
    given = {key.removeprefix(kept): v for key, v in inputs.items() if key.startswith(kept)}
    assert given.keys() <= own.keys()
    official.load(module, own | given)
    official.start_from(module, weights)
    loaded = {f"loaded.{name}": value for name, value in official.export(module).items()}
    prediction, _ = module.eval().outcome(_pairs(inputs))
    return {"prediction": prediction, **loaded}
