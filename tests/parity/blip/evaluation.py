"""Adapters of what models are judged by: retrieval of images and videos, pairs, the filter."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.blip.filtering import PairFilter, bootstrapped_pairs
from methods.blip.retrieval import Retrieval
from shared.evaluation.retrieval import CUTOFFS
from shared.tasks.image_text_retrieval import RetrievalEvaluation

from ..recording import recording
from .building import Config, Inputs, Outputs, retrieval, scorer


def _scores(module: Retrieval, batches: list[Inputs], k_test: int) -> tuple[Tensor, Tensor]:
    """Scores of image to text and text to image, after the metrics were computed of them."""
    evaluation = RetrievalEvaluation(k_test, score="itm+itc")
    for batch in batches:
        evaluation.collect(module, batch)
    with recording((RetrievalEvaluation, "scores")) as calls:
        metrics = evaluation.metrics(module)
    assert all(0 <= value <= 100 for value in metrics.values())
    i2t, t2i = calls["scores"][0].result
    return i2t, t2i


def _ranks(scores: Tensor, targets: list[list[int]]) -> np.ndarray:
    """The best rank among each row's targets. Scores of -100 are many, and the official code lets
    numpy's reversed sort decide between them; ours counts a tie as lost."""
    ranks = []
    for row, own in zip(scores.numpy(), targets, strict=True):
        order = np.argsort(row)[::-1]
        ranks.append(min(int(np.where(order == target)[0][0]) for target in own))
    return np.array(ranks)


def _recalls(prefix: str, ranks: np.ndarray) -> dict[str, Any]:
    values = {f"{prefix}_r{k}": 100 * float((ranks < k).mean()) for k in CUTOFFS}
    return values | {f"{prefix}_r_mean": sum(values.values()) / len(values)}


def _as_tensors(metrics: dict[str, Any]) -> Outputs:
    return {f"metric.{name}": torch.tensor(value) for name, value in metrics.items()}


def evaluation_rerank(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = retrieval(config, weights).eval()
    owners = inputs["txt2img"]
    batches = []
    for indices in torch.arange(len(inputs["image"])).split(config["eval_batch"]):
        texts = torch.isin(owners, indices)
        rows = {name: inputs[name][texts] for name in ("input_ids", "attention_mask")}
        images = {"images": inputs["image"][indices], "indices": indices}
        batches.append(rows | images | {"text_image": owners[texts]})
    i2t, t2i = _scores(module, batches, config["k_test"])
    # The evaluation stands by image, the case in the order of its texts.
    texts = torch.cat([(owners == image).nonzero()[:, 0] for image in range(len(i2t))])
    i2t, t2i = i2t[:, texts.argsort()].float(), t2i[texts.argsort()].float()
    of_image = [(owners == image).nonzero()[:, 0].tolist() for image in range(len(i2t))]
    metrics = _recalls("txt", _ranks(i2t, of_image))
    metrics |= _recalls("img", _ranks(t2i, [[owner] for owner in owners.tolist()]))
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    return {"score_i2t": i2t, "score_t2i": t2i, **_as_tensors(metrics)}


def evaluation_rerank_video(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = retrieval(config, weights).eval()
    assert inputs["video"].shape[1] == config["num_frames"]
    batches = []
    for indices in torch.arange(len(inputs["video"])).split(config["eval_batch"]):
        rows = {name: inputs[name][indices] for name in ("input_ids", "attention_mask")}
        videos = {"images": inputs["video"][indices], "indices": indices}
        batches.append(rows | videos | {"text_image": indices})
    v2t, t2v = (scores.float() for scores in _scores(module, batches, config["k_test"]))
    own = [[n] for n in range(len(v2t))]
    of_videos = _ranks(t2v, own)
    metrics = _recalls("txt", _ranks(v2t, own)) | _recalls("vid", of_videos)
    metrics["vid_mdR"] = float(np.median(of_videos + 1))
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["vid_r_mean"]) / 2
    return {"score_v2t": v2t, "score_t2v": t2v, **_as_tensors(metrics)}


def itm_score(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = scorer(config, weights)
    pair = inputs["image"], inputs["input_ids"], inputs["attention_mask"]
    outputs: Outputs = {}
    for name, enc_token in (("enc", True), ("cls", False)):
        judge = PairFilter(module, enc_token=enc_token)
        outputs[f"itm_logits_{name}"] = judge.logits(*pair)
        outputs[f"itm_prob_{name}"] = judge.probabilities(*pair)
    return outputs


def itc_score(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    encoders = scorer(config, weights).encoders
    _, image = encoders.encode_image(inputs["image"])
    _, text = encoders.encode_text(inputs["input_ids"], inputs["attention_mask"])
    return {"sim": image @ text.T, "image_feat": image, "text_feat": text}


def capfilt_filter(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = scorer(config, weights)
    likelier, judge = PairFilter(module), PairFilter(module, config["threshold"])
    outputs: Outputs = {}
    for kind in ("web", "synthetic"):
        names = ("input_ids", "attention_mask")
        pair = inputs["image"], *(inputs[f"{kind}_{name}"] for name in names)
        outputs |= {
            f"{kind}_itm_logits": judge.logits(*pair),
            f"{kind}_match_prob": judge.probabilities(*pair),
            f"{kind}_keep_argmax": likelier.keeps(*pair).long(),
            f"{kind}_keep_at_threshold": judge.keeps(*pair).long(),
        }
    kept = (outputs[f"{kind}_keep_argmax"] for kind in ("web", "synthetic"))
    return outputs | {"bootstrapped_pairs": bootstrapped_pairs(*kept)}
