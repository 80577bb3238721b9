"""Adapters of pre-training: contrast, matching, masked words, and the whole step."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.alpro import module as module_file
from methods.alpro import network as network_file
from methods.alpro.module import Pretraining
from shared.losses import contrastive
from shared.losses.language import IGNORED, MaskDraws
from shared.training.schedules import linear_rate

from ..recording import Call, StepWatcher, given_negatives, quiet_trainer, recording
from ..two_processes import WORLD, on_each_rank
from .building import (
    NEGATIVES,
    Config,
    Inputs,
    Outputs,
    batch_of,
    gradients,
    names,
    pretraining,
    retrieval,
)


def vtc_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    alone = _contrast(config, inputs, weights, 0)
    shares = on_each_rank(_contrast_of_rank, config, inputs, weights, torch.get_default_dtype())
    found = {f"{name}": value for name, value in alone.items()}
    for rank, share in enumerate(shares):
        for name in ("loss", "sim_v2t", "sim_t2v"):
            found[f"{name}_rank{rank}_of2"] = share[name]
    for name in alone:
        if name.startswith("grad."):
            mean = sum(share[name] for share in shares) / WORLD
            found[f"grad_mean_of_2_ranks.{name.removeprefix('grad.')}"] = mean
    return found


def _contrast(config: Config, inputs: Inputs, weights: Inputs, rank: int) -> Outputs:
    """VTC of class tokens that stand in for the encoders."""
    module = retrieval(config, weights)
    encoders = module.encoders
    video, text = (inputs[f"{of}_cls_rank{rank}"][:, None] for of in ("video", "text"))
    with (
        patch.object(encoders.visual_encoder, "forward", lambda _: video),
        patch.object(encoders.text_encoder, "encode", lambda *_: text),
        recording((contrastive, "similarity_logits")) as calls,
    ):
        loss = module.contrast(encoders.encode_image(video)[1], encoders.encode_text(text, text)[1])
    loss.backward()
    v2t, t2v = (call.result for call in calls["similarity_logits"])
    return {
        "loss": loss,
        "sim_v2t": v2t,
        "sim_t2v": t2v,
        "temp_after_clamp": module.contrast.temp,
        **gradients(module),
    }


def _contrast_of_rank(
    rank: int, config: Config, inputs: Inputs, weights: Inputs, dtype: torch.dtype
) -> Outputs:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        outputs = _contrast(config, inputs, weights, rank)
    finally:
        torch.set_default_dtype(before)
    return {name: value.detach().clone() for name, value in outputs.items()}


def _stepped(
    module: Pretraining, batch: Inputs, *stands_in: tuple[Any, str, Any]
) -> tuple[dict[str, Tensor], dict[str, list[Call]]]:
    """The terms of a step in which some functions are replaced, and what it computed on its way."""
    targets = [(module.encoders.text_encoder, "fuse"), (module.matching.head, "forward")]
    with ExitStack() as patches:
        for owner, name, instead in stands_in:
            patches.enter_context(patch.object(owner, name, instead))
        calls = patches.enter_context(recording(*targets, (module, "total_loss")))
        module.training_step(batch, 0)
    return calls["total_loss"][0].arguments["terms"], calls


def vtm_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights)
    video, text = (inputs[f"{of}_embeds"].clone().requires_grad_() for of in ("video", "text"))
    mask, size = inputs["text_atts"], len(inputs["text_atts"])
    features = torch.eye(size, config["embed_dim"])
    clean_and_masked = torch.cat([text, text.detach()])
    # Only the two similarities differ: those of a step are each other's transposes.
    similar = iter([inputs["sim_v2t"], inputs["sim_t2v"].T])
    found: Outputs = {}
    ids = torch.full_like(mask, 5)
    ids[:, 0] = 1
    for direction, similarity in zip(("v2t", "t2v"), similar, strict=True):
        with given_negatives(inputs[name] for name in NEGATIVES) as drawn:
            terms, calls = _stepped(
                module,
                batch_of(video, {"text_input_ids": ids, "text_input_mask": mask}),
                (module.encoders, "encode_image", lambda _: (video, features)),
                (
                    module.encoders,
                    "encode_text",
                    lambda *_: (clean_and_masked, features.repeat(2, 1)),
                ),
                (network_file, "similarity_logits", lambda *_, s=similarity: s),
            )
        found[f"sampling_weights_{direction}"] = drawn[1 if direction == "v2t" else 0]
    terms["loss_vtm"].backward()
    logits = calls["forward"][0].result
    return found | {
        "loss": terms["loss_vtm"],
        "logits": logits,
        "labels": (torch.arange(len(logits)) < size).long(),
        "encoder_out_pos": calls["fuse"][0].result[:size],
        "grad_input.text_embeds": text.grad,
        "grad_input.video_embeds": video.grad,
        **gradients(module),
    }


def mlm_masking(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config | {"hidden_size": 8}, weights)
    names_of = ("selected", "replace_mask", "random_word")
    draws = [inputs[f"draw_{name}"].bool() for name in names_of]
    ids, words = inputs["input_ids"], inputs["random_words"]

    def masked(*given: Tensor) -> tuple[Tensor, Tensor]:
        draws = MaskDraws(*given, words)
        with patch.object(MaskDraws, "from_uniforms", lambda *_: draws):
            return module.mask(ids)

    masked_ids, labels = masked(*draws)
    _, of_all = masked(torch.ones_like(draws[0]), *draws[1:])
    probability = (of_all != IGNORED).float() * module.hparams["mlm_probability"]
    return {"masked_ids": masked_ids, "labels": labels, "selection_probability": probability}


def mlm_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights)
    video = inputs["video_embeds"].clone().requires_grad_()
    features = torch.eye(len(video), config["embed_dim"])
    ids, mask = inputs["mlm_text_input_ids"], inputs["text_input_mask"]
    terms, calls = _stepped(
        module,
        batch_of(video, {"text_input_ids": ids, "text_input_mask": mask}),
        (module.encoders, "encode_image", lambda _: (video, features)),
        (module, "mask", lambda _: (ids, inputs["mlm_labels"])),
    )
    terms["loss_mlm"].backward()
    return {
        "loss": terms["loss_mlm"],
        "logits": _word_logits(module, calls),
        "grad_input.video_embeds": video.grad,
        **gradients(module),
    }


def _word_logits(module: Pretraining, calls: dict[str, list[Call]]) -> Tensor:
    """(B, L, V) at all places; the loss reads those that are predicted."""
    masked = calls["fuse"][1].result  # of the words alone
    with torch.no_grad():
        return module.encoders.predict_words(masked)


def pretrain_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights)
    ids, labels = inputs["mlm_text_input_ids"], inputs["mlm_labels"]
    batch: dict[str, Any] = batch_of(inputs["visual_inputs"], inputs)
    prompter = {n: p.detach().clone() for n, p in module.prompter.state_dict().items()}  # type: ignore[union-attr]
    rates = {"lr": config["learning_rate"], "min_lr": 1e-8, "warmup_ratio": config["warmup_ratio"]}
    rate = linear_rate(config["global_step"], config["num_train_steps"], **rates)
    found: Outputs = {}

    def before_update(optimizer: Any) -> None:
        norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        found.update(gradients(module), grad_norm_before_clip=torch.stack(norms).norm())
        found["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
        found["mlm_logits"] = _word_logits(module, calls)

    targets = [(module.encoders.text_encoder, "fuse"), (module.matching.head, "forward")]
    targets += [(module, "total_loss"), (module, "entity_labels"), (module.entity_head, "forward")]
    with (
        given_negatives(inputs[name] for name in NEGATIVES),
        patch.object(module, "mask", lambda _: (ids, labels)),
        patch.object(module_file, "random_regions", lambda *_: inputs["mpm_mask"] == 0),
        patch.object(module, "rate", lambda *_: rate),
        patch.object(module, "on_train_start", lambda: None),
        recording(*targets) as calls,
    ):
        watcher = StepWatcher(before_update, lambda _: None)
        clip = {"gradient_clip_val": config["grad_norm"]}
        trainer = quiet_trainer(watcher, devices=1, max_steps=1, max_epochs=-1, **clip)
        batches = [batch | {"kind": config["batch_type"]}]
        trainer.fit(module, DataLoader(batches, batch_size=None))
    terms = calls["total_loss"][0].arguments["terms"]
    matched, entities = sorted((c.result for c in calls["forward"]), key=lambda x: -len(x))
    moved = [(module.prompter.state_dict()[n] - p).abs().max() for n, p in prompter.items()]  # type: ignore[union-attr]
    official = {"vtc": "itc", "vtm": "itm", "mlm": "mlm", "pem": "mpm"}
    return {
        **{f"{theirs}_loss": terms[f"loss_{ours}"] for ours, theirs in official.items()},
        "total_loss": calls["total_loss"][0].result,
        "itm_logits": matched,
        "mpm_logits": entities,
        "mpm_labels": calls["entity_labels"][0].result,
        "prompter_max_change": torch.stack(moved).max(),
        **found,
        **{f"after.{name}": value for name, value in names(module).items()},
    }
