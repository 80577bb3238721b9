"""Adapters of fine-tuning: retrieval, with the scores that rank, and questions."""

import torch

from shared.losses.contrastive import similarity_logits
from shared.tasks.image_text_retrieval import RetrievalEvaluation

from ..recording import given_negatives, recording
from .building import (
    NEGATIVES,
    Config,
    Inputs,
    Outputs,
    answering,
    batch_of,
    gradients,
    retrieval,
)

OFFICIAL_CHECKPOINTING = "grad_official_checkpointing."


def retrieval_finetune_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = retrieval(config, weights)
    targets = [(module, "total_loss"), (module.matching.head, "forward")]
    with given_negatives(inputs[name] for name in NEGATIVES), recording(*targets) as calls:
        loss = module.training_step(batch_of(inputs["visual_inputs"], inputs), 0)
    loss.backward()
    terms, logits = calls["total_loss"][0].arguments["terms"], calls["forward"][0].result
    found = {
        "itc_loss": terms["loss_vtc"],
        "itm_loss": terms["loss_vtm"],
        "total_loss": loss,
        "itm_logits": logits,
        "itm_labels": (torch.arange(len(logits)) < len(logits) // 3).long(),
        **gradients(module),
    }

    module.eval()
    ids, mask = inputs["eval_text_ids"], inputs["eval_text_mask"]
    evaluation = RetrievalEvaluation(**module.hparams["evaluation"])
    texts = {"input_ids": ids, "attention_mask": mask, "text_image": torch.zeros(len(ids)).long()}
    videos = {"images": inputs["eval_video"], "indices": torch.zeros(1).long()}
    evaluation.collect(module, videos | texts)
    gallery = evaluation.collector.gallery()
    with torch.no_grad():
        tokens, video = module.encoders.encode_image(inputs["eval_video"])
        states, text = module.encoders.encode_text(ids, mask)
        text_encoder = module.encoders.text_encoder
        logits = module.matching.logits(text_encoder, tokens, states, mask)
        similarities = similarity_logits(video, text, module.contrast.temp)
    v2t, _ = evaluation.scores(module, gallery)
    return found | {
        "eval_itm_logits": logits,
        "eval_itc_scores": similarities,
        "eval_score": v2t[0].sigmoid(),
    }


def qa_finetune_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    batch = batch_of(inputs["visual_inputs"], inputs) | {"labels": inputs["labels"]}
    frozen = answering(config, weights, freeze_visual_core=True)
    frozen.training_step(batch, 0).backward()
    module = answering(config, weights, answers=[str(n) for n in range(config["num_labels"])])
    with recording((module.encoders.classifier, "forward")) as calls:
        loss = module.training_step(batch, 0)
    loss.backward()
    found = {"loss": loss, "logits": calls["forward"][0].result, **gradients(module)}
    for name, value in gradients(frozen).items():
        found[f"{OFFICIAL_CHECKPOINTING}{name.removeprefix('grad.')}"] = value
    module.eval()
    with recording((module.encoders.classifier, "forward")) as calls, torch.no_grad():
        answered = [int(answer) for answer, _ in module.answer(batch)]
    logits = calls["forward"][0].result
    return found | {"eval_logits": logits, "eval_pred": torch.tensor(answered)}
