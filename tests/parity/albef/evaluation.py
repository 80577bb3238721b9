"""Adapter of retrieval's evaluation."""

import torch
from torch import Tensor

import shared.tasks.image_text_retrieval as evaluation_module
from shared.tasks.image_text_retrieval import RetrievalEvaluation

from ..recording import recording
from .building import Config
from .pretraining import Inputs, Outputs, module_of


def evaluation_rerank(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = module_of(config, weights)
    evaluation = RetrievalEvaluation(config["k_test"])
    for batch in _batches(inputs):
        evaluation.collect(module, batch)
    with recording((evaluation_module, "recalls"), (RetrievalEvaluation, "scores")) as calls:
        metrics = evaluation.metrics(module)
    scores = dict(zip(("score_i2t", "score_t2i"), calls["scores"][0].result, strict=True))
    scores["sims"] = calls["recalls"][0].arguments["i2t"]
    return scores | {name: torch.tensor(value) for name, value in metrics.items()}


def _batches(inputs: Inputs) -> list[dict[str, Tensor]]:
    """Every second image first, as the texts of a batch follow its images."""
    entries = torch.arange(len(inputs["image"]))
    batches = []
    for indices in (entries[1::2], entries[::2]):
        texts = torch.isin(inputs["txt2img"], indices)
        rows = {name: inputs[name][texts] for name in ("input_ids", "attention_mask")}
        images = {"images": inputs["image"][indices], "indices": indices}
        batches.append(rows | images | {"text_image": inputs["txt2img"][texts]})
    return batches
