"""Adapters of visual question answering."""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from methods.albef import official
from methods.albef import vqa as vqa_module
from methods.albef.vqa import VQA
from shared.evaluation.vqa import Answered, accuracies, percent, soft_accuracy

from ..recording import gradients_as_weights, recording
from .building import Config, batch_of, distilled

Inputs, Outputs = dict[str, Tensor], dict[str, Any]


def vqa(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Ranking first, with the weights as saved: a training step moves the momentum copies."""
    assert config["decoder_fusion_layer"] == 0
    assert config["decoder_encoder_width"] == config["text"]["hidden_size"]
    candidates = zip(inputs["cand_ids"], inputs["cand_mask"], strict=True)
    answers = {str(n): ids[mask.bool()].tolist() for n, (ids, mask) in enumerate(candidates)}
    module = VQA(
        decoder_layers=config["decoder_num_hidden_layers"],
        k_test=config["k_test"],
        candidates_per_pass=2 * len(inputs["image"]),  # several passes
        answers=answers,
        **distilled(config),
    )
    official.load(module, weights)
    return {**_ranking(module, inputs), **_training(module, inputs)}


def _batch(inputs: Inputs) -> Inputs:
    answers = {"answer_counts": inputs["k"], "answer_weights": inputs["weights"]}
    answers |= {name: inputs[name] for name in ("answer_ids", "answer_mask")}
    return batch_of(inputs) | answers


def _ranking(module: VQA, inputs: Inputs) -> Outputs:
    module.eval()
    names = ("first_token_log_probs", "log_probs", "forward")
    targets = [(module.ranking, name) for name in names]
    with recording(*targets) as calls, torch.no_grad():
        probabilities = module.predict_step(_batch(inputs), 0)
    first = calls["first_token_log_probs"][0].result
    candidates, scores = calls["forward"][0].result
    rest = calls["log_probs"][0].result
    topk_probs, topk_ids = probabilities.topk(candidates.shape[1], dim=1)
    return {
        "first_token_probs": first.exp(),
        "candidate_log_prob_sum": scores,
        "candidate_answer_loss": -(first.gather(1, candidates) + rest).view(-1, 1),
        "topk_ids": topk_ids,
        "topk_probs": topk_probs,
    }


def _training(module: VQA, inputs: Inputs) -> Outputs:
    module.train()
    online, teacher = module.encoders, module.momentum_encoders.module
    batch = _batch(inputs)
    # The loss reads logits where there is a target; a case has them everywhere.
    hidden: dict[str, Tensor] = {}
    hooks = [
        network.text_decoder.register_forward_hook(
            lambda _, __, output, name=name: hidden.update({name: output.detach()})
        )
        for name, network in (("online", online), ("teacher", teacher))
    ]
    with recording((vqa_module, "text_sums")) as calls:
        loss = module.training_step(batch, 0)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        logits, logits_m = (
            network.word_head(hidden[name], network.text_decoder.embeddings.word)
            for name, network in (("online", online), ("teacher", teacher))
        )
    loss.backward()
    with gradients_as_weights(online):
        gradients = official.export(module)
    with patch.object(module.momentum_encoders, "alpha", 0.0):
        plain = module.training_step(batch, 0)
    return {
        "loss": loss,
        "loss_nodistill": plain,
        "answer_loss_each": calls["text_sums"][0].result,
        "answer_logits": logits,
        "logits_m": logits_m[:, :-1],
        **{f"grad.{name}": value.clone() for name, value in gradients.items()},
    }


def vqa_accuracy(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    pairs = zip(config["predictions"], config["ground_truth"], strict=True)
    right = [soft_accuracy(prediction, answers) for prediction, answers in pairs]
    rows = enumerate(zip(config["predictions"], right, config["answer_types"], strict=True))
    metrics = accuracies([Answered(i, i, text, value, (kind,)) for i, (text, value, kind) in rows])
    overall = metrics.pop("vqa_accuracy")
    kinds = [metrics[f"vqa_accuracy_{kind}"] for kind in ("yes_no", "number", "other")]
    return {
        "overall": torch.tensor(overall),
        "per_question": torch.tensor([percent([accuracy]) for accuracy in right]),
        "per_answer_type": torch.tensor(kinds),
    }
