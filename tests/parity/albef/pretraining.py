"""Adapters of the network, of pre-training and of retrieval's training."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest.mock import patch

from torch import Tensor

from methods.albef import official
from methods.albef.module import Pretraining
from methods.albef.retrieval import Retrieval
from shared.tasks import image_text_contrast

from ..recording import (
    StepWatcher,
    fit,
    given_negatives,
    gradients_as_weights,
    recording,
    snapshot,
)
from .building import Config, batch_of, distilled

Inputs, Outputs = dict[str, Tensor], dict[str, Any]
Alignment = Pretraining | Retrieval


def alignment_arguments(c: Config) -> Config:
    return distilled(c) | {
        "embed_dim": c["embed_dim"],
        "queue_size": c.get("queue_size", 8),
        "temperature": 0.07,
        "hard_negatives": True,
        "negatives": "local",
        "evaluation": {"k_test": 1},
        "seed": 0,
    }


def pretraining_module(c: Config, weights: Inputs) -> Pretraining:
    tokens = {f"{name}_id": c["special_tokens"][name] for name in ("cls", "mask")}
    module = Pretraining(mlm_probability=0.15, **tokens, **alignment_arguments(c))
    official.load(module, complete(module, weights))
    return module


def complete(module: Alignment, weights: Inputs) -> Inputs:
    """The case's weights; what a case leaves out keeps the values of `module`, official keys."""
    return names(module) | weights


def names(module: Alignment) -> Inputs:
    """The module's present state under official names."""
    exported = official.export(module)
    exported.pop("tenfold", None)
    return snapshot(exported)


def module_of(c: Config, weights: Inputs) -> Alignment:
    """Pre-training's or retrieval's module: their text encoders are saved under different names."""
    of_pretraining = any(".bert." in key for key in weights)
    return (pretraining_module if of_pretraining else retrieval_module)(c, weights).eval()


def retrieval_module(c: Config, weights: Inputs) -> Retrieval:
    module = Retrieval(**alignment_arguments(c))
    official.load(module, complete(module, weights))
    return module


def vit(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoder = module_of(config, weights).encoders.visual_encoder
    with recording(
        (encoder.patch_embed, "forward"), *((b, "forward") for b in encoder.blocks)
    ) as calls:
        tokens = encoder(inputs["image"])
    patches, *blocks = calls["forward"]
    outputs = {f"block{n}": call.result for n, call in enumerate(blocks)}
    return {"patch_tokens": patches.result, "image_embeds": tokens, **outputs}


def text_encoder(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoders = module_of(config, weights).encoders
    with recording((encoders.text_encoder.embeddings, "forward")) as calls:
        tokens, features = encoders.encode_text(inputs["input_ids"], inputs["attention_mask"])
    (embedded,) = calls["forward"]
    return {"embedding_output": embedded.result, "text_embeds": tokens, "text_feat": features}


def multimodal(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = module_of(config, weights)
    encoder, images = module.encoders.text_encoder, inputs["image_embeds"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    tokens = encoder.encode(ids, mask)
    with recording((encoder, "fuse")) as calls:
        logits = module.matching.logits(encoder, images, tokens, mask)
    return {
        "text_embeds": tokens,
        "fusion": calls["fuse"][0].result,
        "multi_modal": encoder(ids, mask, encoder.project(images)),
        "itm_logits": logits,
    }


@contextmanager
def given_masks(module: Pretraining, inputs: Inputs) -> Iterator[None]:
    def given(ids: Tensor) -> tuple[Tensor, Tensor]:
        ours, labels = type(module).mask(module, ids)
        assert ours.shape == labels.shape == ids.shape
        return inputs["mlm_input_ids"], inputs["mlm_labels"]

    with patch.object(module, "mask", given):
        yield


def _contrast(calls: dict[str, Any]) -> Outputs:
    """What every training step computes on its way to the contrastive loss."""
    names = ("sim_i2t_m", "sim_t2i_m", "sim_i2t", "sim_t2i")
    outputs = {
        name: call.result for name, call in zip(names, calls["similarity_logits"], strict=True)
    }
    i2t, t2i = calls["soften"]
    return outputs | {"sim_i2t_targets": i2t.result, "sim_t2i_targets": t2i.result}


def _terms_of_step(module: Alignment, inputs: Inputs, suffix: str) -> Outputs:
    with recording((module, "total_loss")) as calls:
        module.training_step(batch_of(inputs), 0)
    terms = calls["total_loss"][0].arguments["terms"]
    return {f"{name}_{suffix}": value for name, value in terms.items()}


def _queues(module: Alignment) -> Outputs:
    queues = ("image_queue", "text_queue", "queue_ptr", "idx_queue")
    return {name: value for name, value in names(module).items() if name in queues}


def pretrain_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    negatives = [(inputs["neg_image_idx"], inputs["neg_text_idx"])]
    module = pretraining_module(config, weights).train()
    teacher = module.momentum_encoders.module
    targets = [
        *((n, f"encode_{of}") for n in (module.encoders, teacher) for of in ("image", "text")),
        *((n.text_encoder, "fuse") for n in (module.encoders, teacher)),
        *((image_text_contrast, name) for name in ("similarity_logits", "soften")),
        (image_text_contrast, "soft_target_nce"),
        (module.matching.head, "forward"),
        (module, "total_loss"),
    ]
    with (
        given_negatives(chain(*negatives)) as drawn,
        given_masks(module, inputs),
        recording(*targets) as calls,
    ):
        module.training_step(batch_of(inputs), 0)
    images, images_m = (call.result for call in calls["encode_image"])
    texts, texts_m = (call.result for call in calls["encode_text"])
    size = len(inputs["image"])
    _, fused, fused_m = (call.result for call in calls["fuse"])
    terms = calls["total_loss"][0].arguments["terms"]
    weights_t2i, weights_i2t = drawn
    outputs = {
        **terms,
        "image_embeds": images[0],
        "image_feat": images[1],
        "text_embeds": texts[0][:size],
        "text_feat": texts[1][:size],
        "image_feat_m": images_m[1],
        "text_feat_m": texts_m[1][:size],
        **_contrast(calls),
        "loss_i2t": calls["soft_target_nce"][0].result,
        "loss_t2i": calls["soft_target_nce"][1].result,
        "weights_i2t": weights_i2t,
        "weights_t2i": weights_t2i,
        "vl_output": calls["forward"][0].result,
        # Words are predicted at selected positions only; the case has them all.
        "mlm_logits": module.encoders.predict_words(fused),
        "logits_m": teacher.predict_words(fused_m),
        "temp_after_clamp": module.contrast.temp,
        **_queues(module),
    }
    module = pretraining_module(config | {"alpha": 0.0}, weights).train()
    with given_negatives(chain(*negatives)), given_masks(module, inputs):
        return outputs | _terms_of_step(module, inputs, "alpha0")


def pretrain_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining_module(config, weights).train()
    gradients: list[Inputs] = []
    states: list[Inputs] = []

    def before_update(_: Any) -> None:
        with gradients_as_weights(module):
            gradients.append(names(module))

    watcher = StepWatcher(before_update, lambda _: states.append(names(module)))
    negatives = [
        (inputs[f"neg_image_idx{step}"], inputs[f"neg_text_idx{step}"]) for step in ("", "_step2")
    ]
    with (
        given_negatives(chain(*negatives)),
        given_masks(module, inputs),
        recording((module, "total_loss")) as calls,
    ):
        fit(module, [batch_of(inputs)] * 2, watcher)
    first, second = (call.arguments["terms"] for call in calls["total_loss"])
    return {
        "loss": calls["total_loss"][0].result,
        **first,
        **{f"step2_{name}": value for name, value in second.items()},
        **{f"grad.{name}": value for name, value in gradients[0].items()},
        **{f"after.{name}": value for name, value in states[0].items()},
    }


def retrieval_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    negatives = [(inputs["neg_image_idx"], inputs["neg_text_idx"])]
    module = retrieval_module(config, weights).train()
    teacher = module.momentum_encoders.module
    targets = [
        (teacher, "encode_image"),
        (teacher, "encode_text"),
        *((image_text_contrast, name) for name in ("similarity_logits", "soften")),
        (image_text_contrast, "multi_positive_targets"),
        (module.matching.head, "forward"),
        (module, "total_loss"),
    ]
    with given_negatives(chain(*negatives)) as drawn, recording(*targets) as calls:
        module.training_step(batch_of(inputs), 0).backward()
    with gradients_as_weights(module):
        gradients = names(module)
    weights_t2i, weights_i2t = drawn
    outputs = {
        **calls["total_loss"][0].arguments["terms"],
        "sim_targets": calls["multi_positive_targets"][0].result,
        **_contrast(calls),
        "weights_i2t": weights_i2t,
        "weights_t2i": weights_t2i,
        "vl_output": calls["forward"][0].result,
        "image_feat_m": calls["encode_image"][0].result[1],
        "text_feat_m": calls["encode_text"][0].result[1],
        **{f"grad.{name}": value for name, value in gradients.items()},
        **_queues(module),
    }
    module = retrieval_module(config | {"alpha": 0.0}, weights).train()
    with given_negatives(chain(*negatives)):
        return outputs | _terms_of_step(module, inputs, "nodistill")
