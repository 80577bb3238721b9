"""Adapters of what models are judged by: ranks of pairs, answers by kind."""

from typing import Any

import torch
from torch import Tensor

from shared.evaluation.retrieval import CUTOFFS, ranks_of, recalls
from shared.evaluation.vqa import accuracies, exact_match, judged

Inputs = dict[str, Any]
KINDS = ("what", "who", "how", "where", "when")  # in the order of the case
KNOWN = 6  # answers in the case's list; others are never right


def retrieval_metrics(config: Inputs, inputs: Inputs, weights: Inputs) -> Inputs:
    """The case repeats some pairs, as the official sampler does; ours never does."""
    texts, videos = inputs["pair_txt_id"], inputs["pair_vid_id"]
    places = list(zip(texts.tolist(), videos.tolist(), strict=True))
    first = torch.tensor(
        [place for place, pair in enumerate(places) if places.index(pair) == place]
    )
    scores = inputs["pair_score"].new_full((int(texts.max()) + 1, int(videos.max()) + 1), torch.nan)
    scores[texts[first], videos[first]] = inputs["pair_score"][first]
    owner = inputs["gt_vid_of_txt"]
    ranks = ranks_of(scores.T, scores, owner)
    metrics = recalls(scores.T, scores, owner, medians=True)
    found = {}
    for name, prefix, own in zip(("video2text", "text2video"), ("txt", "img"), ranks, strict=True):
        values = [metrics[f"{prefix}_r{k}"] for k in CUTOFFS]
        values += [metrics[f"{prefix}_median_rank"], 1 + float(own.double().mean())]
        found[name] = torch.tensor(values, dtype=torch.float32)
    return found


def qa_metrics(config: Inputs, inputs: Inputs, weights: Inputs) -> Inputs:
    names = [str(number) for number in range(KNOWN)]
    numbers = torch.arange(len(inputs["pred"]))
    truth = [f"answer {n}" if n >= KNOWN else names[n] for n in inputs["gt"].tolist()]
    kinds = [KINDS[kind] for kind in inputs["answer_type"].tolist()]
    batch = {
        "indices": numbers,
        "question_ids": numbers,
        "answers": [[text] for text in truth],
        "kinds": [[kind] for kind in kinds],
    }
    rows = judged(batch, [names[label] for label in inputs["pred"].tolist()], exact_match)
    right = torch.tensor([row.accuracy for row in rows])
    percents = accuracies(rows)  # with two decimals

    def share(chosen: Tensor, name: str) -> Tensor:
        value = right[chosen].mean() if chosen.any() else torch.tensor(0.0)
        assert abs(percents.get(name, 0.0) - 100 * float(value)) < 0.01
        return value

    of_kind = [torch.tensor([kind in row.kinds for row in rows]) for kind in KINDS]
    counts = torch.stack([chosen.sum() for chosen in of_kind])
    shares = [share(c, f"vqa_accuracy_{k}") for c, k in zip(of_kind, KINDS, strict=True)]
    return {
        "overall_acc": share(torch.ones_like(of_kind[0]), "vqa_accuracy"),
        "type_acc": torch.stack(shares),
        "type_count": counts,
        "type_ratio": counts / len(rows),
    }
