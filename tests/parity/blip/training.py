"""Adapters of pre-training, of retrieval's training, and of captioning's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from methods.blip import network
from shared.losses.language import IGNORED
from shared.tasks import image_text_contrast

from ..recording import StepWatcher, fit, given_negatives, recording
from ..two_processes import WORLD, on_each_rank
from .building import (
    Config,
    Inputs,
    Outputs,
    batch_of,
    captioning,
    gradients,
    names,
    pretraining,
    retrieval,
)

NEGATIVES = ("neg_image_idx", "neg_text_idx")


def _targets(module: Any) -> list[tuple[Any, str]]:
    """What every step of pre-training and retrieval computes on its way."""
    teacher = module.momentum_encoders.module
    return [
        *((n, f"encode_{of}") for n in (module.encoders, teacher) for of in ("image", "text")),
        (module.encoders.text_encoder, "encode"),
        *((image_text_contrast, name) for name in ("similarity_logits", "soften")),
        (module.matching.head, "forward"),
        (module, "total_loss"),
    ]


def _seen(calls: dict[str, Any], step: int = 0) -> Outputs:
    """Outputs of one step by the names of the cases."""
    online, momentum = 2 * step, 2 * step + 1
    similarities = [call.result for call in calls["similarity_logits"][4 * step :][:4]]
    targets = [call.result for call in calls["soften"][2 * step :][:2]]
    terms = calls["total_loss"][step].arguments["terms"]
    return {
        **terms,
        "loss": calls["total_loss"][step].result,
        "image_feat": calls["encode_image"][online].result[1],
        "text_feat": calls["encode_text"][online].result[1],
        "image_feat_m": calls["encode_image"][momentum].result[1],
        "text_feat_m": calls["encode_text"][momentum].result[1],
        "sim_i2t": similarities[2],
        "sim_t2i": similarities[3],
        "targets_i2t": targets[0],
        "targets_t2i": targets[1],
        "itm_logits": calls["forward"][step].result,
        "image_embeds_cls": calls["encode_image"][online].result[0][:, 0],
        "text_cls": calls["encode"][step].result[:, 0],
    }


@contextmanager
def _decoder_states(module: Any) -> Iterator[list[Tensor]]:
    """The hidden states of the decoder; the loss reads them where there is a target."""
    states: list[Tensor] = []
    transformer = module.decoder.transformer
    hook = transformer.register_forward_hook(lambda _, __, out: states.append(out.detach()))
    yield states
    hook.remove()


def _decoder_logits(module: Any, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return module.decoder.head(hidden, module.decoder.transformer.embeddings.word)


def pretrain_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights).train()
    with (
        given_negatives(inputs[name] for name in NEGATIVES) as drawn,
        recording(*_targets(module)) as calls,
        _decoder_states(module) as states,
    ):
        module.training_step(batch_of(inputs), 0)
    weights_t2i, weights_i2t = drawn
    return {
        **_seen(calls),
        "lm_logits": _decoder_logits(module, states[0]),
        "neg_weights_t2i": weights_t2i,
        "neg_weights_i2t": weights_i2t,
        **{f"after.{name}": value for name, value in names(module).items()},
    }


def pretrain_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights).train()
    steps = [_of_step(inputs, f"step{n}.") for n in range(len(config["alpha_per_step"]))]
    of_first: Outputs = {}

    def before_update(_: Any) -> None:
        if not of_first:
            norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
            of_first.update(gradients(module), grad_total_norm=torch.stack(norms).norm())

    alphas = iter(config["alpha_per_step"])
    batches = [batch_of(step) for step in steps]
    with (
        given_negatives(step[name] for step in steps for name in NEGATIVES),
        patch.object(module.momentum_encoders, "weight", lambda *_: next(alphas)),
        recording(*_targets(module)) as calls,
    ):
        fit(module, batches, StepWatcher(before_update, lambda _: None))
    seen = {
        f"step{n}.{name}": value
        for n in range(len(steps))
        for name, value in _seen(calls, n).items()
    }
    after = {f"after.{name}": value for name, value in names(module).items()}
    return {**seen, **of_first, **after}


def _of_step(inputs: Inputs, prefix: str) -> Inputs:
    return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}


def retrieval_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """A step of retrieval's training, its gradients, and the state after it."""
    module = retrieval(config, weights).train()
    targets = [*_targets(module), (image_text_contrast, "multi_positive_targets")]
    with given_negatives(inputs[name] for name in NEGATIVES) as drawn, recording(*targets) as calls:
        module.training_step(batch_of(inputs), 0).backward()
    weights_t2i, weights_i2t = drawn
    return {
        **_seen(calls),
        "hard_targets": calls["multi_positive_targets"][0].result,
        "neg_weights_t2i": weights_t2i,
        "neg_weights_i2t": weights_i2t,
        **gradients(module),
        **{f"after.{name}": value for name, value in names(module).items()},
    }


def retrieval_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return retrieval_step(config, inputs, weights)


def caption_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = captioning(config, weights).train()
    with (
        recording((network, "decoder_labels")) as calls,
        _decoder_states(module) as states,
    ):
        loss = module.training_step(batch_of(inputs), 0)
    loss.backward()
    call = calls["decoder_labels"][0]
    assert call.arguments["prompt_length"] == config["prompt_length"]
    assert (call.result == IGNORED).any()
    return {
        "loss": loss,
        "logits": _decoder_logits(module, states[0]),
        "labels": call.result,
        **gradients(module),
    }


def retrieval_losses_two_ranks(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Two processes, each with its own share of the batch; gradients before any averaging."""
    shares = [_of_step(inputs, f"rank{rank}.") for rank in range(WORLD)]
    results = on_each_rank(_step_of_rank, config, shares, weights, torch.get_default_dtype())
    return {
        f"rank{rank}.{name}": value
        for rank, outputs in enumerate(results)
        for name, value in outputs.items()
    }


def _step_of_rank(
    rank: int, config: Config, shares: list[Inputs], weights: Inputs, dtype: torch.dtype
) -> Outputs:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        outputs = retrieval_step(config, shares[rank], weights)
    finally:
        torch.set_default_dtype(before)
    return {name: value.detach().clone() for name, value in outputs.items()}
