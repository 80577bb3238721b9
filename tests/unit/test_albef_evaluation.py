"""Retrieval's evaluation on a tiny model: the official rows, hard negatives, half precision."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from methods.albef.retrieval import Retrieval
from shared.data.image_text.pairs import ImageTextData
from shared.evaluation.retrieval import NOT_SCORED, recalls
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from tests.unit.albef_toy import TEXT, retrieval

IMAGES, WORDS, LONGEST = 13, 40, 9
COUNTS = [1 + entry % 3 for entry in range(IMAGES)]  # texts of each image


def tiny(**evaluation: Any) -> Retrieval:
    text = {"vocab_size": WORDS, "num_layers": 4, "cross_attention_from": 2}
    module = retrieval(text=TEXT | text, evaluation=evaluation)
    with torch.no_grad():  # as after training: pairs differ clearly
        for name, p in module.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p.mul_(8 if "text_encoder" in name else 1.5)
    return module.eval()


def samples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    owners = torch.repeat_interleave(torch.arange(IMAGES), torch.tensor(COUNTS))
    mask = torch.arange(LONGEST) < torch.randint(2, LONGEST, (len(owners), 1), generator=generator)
    ids = torch.randint(1, WORDS, mask.shape, generator=generator) * mask
    return {
        "images": torch.randn(IMAGES, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "attention_mask": mask.long(),
        "text_image": owners,
        "hard_text": (owners + 1 + torch.arange(len(owners)) % 5) % IMAGES,
    }


def batches(entries: list[list[int]], hard: bool = True) -> list[dict[str, Tensor]]:
    s = samples()
    made = []
    for batch in entries:
        indices = torch.tensor(batch)
        rows = torch.cat([(s["text_image"] == entry).nonzero()[:, 0] for entry in batch])
        names = ["input_ids", "attention_mask", "text_image", *(["hard_text"] if hard else [])]
        texts = {name: s[name][rows] for name in names}
        made.append({"images": s["images"][indices], "indices": indices, **texts})
    return made


ALL = [[3, 12, 0, 7, 5], [1, 2, 4, 6], [11, 10, 9, 8]]


def evaluate(module: Any, entries: list[list[int]] = ALL, **of_batch: Any) -> dict[str, float]:
    for batch in batches(entries, **of_batch):
        module.validation_step(batch, 0)
    return module.evaluation.metrics(module, testing=False)


@pytest.fixture(scope="module")
def truth() -> tuple[Tensor, Tensor]:
    """(N, T, 2) logits of all pairs, each by itself, and similarities (N, T)."""
    module, s = tiny(k_test=2), samples()
    encoders, masks = module.encoders, s["attention_mask"][:, None]
    with torch.no_grad():
        tokens, image = encoders.encode_image(s["images"])
        hidden, text = encoders.encode_text(s["input_ids"], s["attention_mask"])
        rows = [
            [module.matching.logits(encoders.text_encoder, own[None], words[None], mask)
             for words, mask in zip(hidden, masks, strict=True)]
            for own in tokens
        ]  # fmt: skip
    return torch.stack([torch.cat(row) for row in rows]), image @ text.T


def official_scores(
    logits: Tensor, similarity: Tensor, k: int, plus: bool
) -> tuple[Tensor, Tensor]:
    """Row by row, as the protocol says."""
    both = []
    for scores, similar in ((logits, similarity), (logits.T, similarity.T)):
        found = torch.full_like(similar, NOT_SCORED)
        for row, values in enumerate(similar):
            top = values.topk(k)
            found[row, top.indices] = scores[row, top.indices] + (top.values if plus else 0)
        both.append(found)
    return both[0], both[1]


@pytest.mark.parametrize(
    ("k", "score"), [(2, "itm"), (11, "itm+itc"), ("all", "itm"), ("all", "itm+itc")]
)
def test_metrics_are_those_of_the_official_rows(
    k: int | str, score: str, truth: tuple[Tensor, Tensor]
) -> None:
    module = tiny(k_test=k, score=score, chunk=20)
    logits, similarity = truth
    owners = samples()["text_image"]
    plus = score == "itm+itc"
    if k == "all":
        scores = logits[..., 1] + (similarity if plus else 0)
        expected = recalls(scores, scores.T, owners)
    else:
        scores_both = official_scores(logits[..., 1], similarity, int(k), plus)
        expected = recalls(*scores_both, owners)
    found = evaluate(module, hard=False)
    similar = recalls(similarity, similarity.T, owners)
    assert found == expected | {f"itc_{name}": value for name, value in similar.items()}
    assert len({expected["txt_r1"], expected["txt_r5"], expected["img_r1"]}) > 1


@pytest.mark.parametrize("rerank", [False, "test"])
def test_without_matching_there_is_similarity_only(rerank: bool | str) -> None:
    module = tiny(k_test=3, rerank=rerank)
    found = evaluate(module, hard=False)
    assert found
    assert all(name.startswith("itc_") for name in found)
    for batch in batches(ALL, hard=False):
        module.test_step(batch, 0)
    tested = module.evaluation.metrics(module, testing=True)
    assert found.items() <= tested.items()
    assert ("r_mean" in tested) is (rerank == "test")


def test_auc_compares_true_pairs_with_the_given_negatives(truth: tuple[Tensor, Tensor]) -> None:
    module, s = tiny(k_test=2, rerank=False), samples()
    logits, _ = truth
    probability = logits.double().softmax(dim=-1)[..., 1]
    owners = s["text_image"].tolist()
    first = [owners.index(entry) for entry in range(IMAGES)]
    texts = range(len(owners))
    true = [probability[owners[t], t] for t in texts]
    hard = [probability[owners[t], first[int(s["hard_text"][t])]] for t in texts]
    expected = 100 * roc_auc_score([1] * len(true) + [0] * len(hard), [*true, *hard])
    assert evaluate(module)["itm_auc"] == pytest.approx(expected)
    assert abs(expected - 50) > 3  # so that swapped sides would show

    # A hard negative that was left out takes its pair with it.
    there = [entry for entry in range(IMAGES) if entry != 4]
    kept = [t for t in texts if owners[t] != 4 and s["hard_text"][t] != 4]
    values = [*(true[t] for t in kept), *(hard[t] for t in kept)]
    expected = 100 * roc_auc_score([1] * len(kept) + [0] * len(kept), values)
    assert evaluate(module, [there])["itm_auc"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="no text has a hard negative among"):
        evaluate(module, [[0]])


def test_each_evaluation_forgets_the_one_before() -> None:
    module = tiny(k_test=3)
    first = evaluate(module)
    assert evaluate(module, [[e] for e in range(IMAGES)]) == pytest.approx(first)
    assert evaluate(module, [[0, 1, 2]])["txt_r10"] == 100.0


def test_half_precision_leaves_ranks_but_of_close_neighbours() -> None:
    full, half = tiny(k_test="all"), tiny(k_test="all", precision="bfloat16")
    found = {}
    for name, module in (("full", full), ("half", half)):
        for batch in batches(ALL):
            module.validation_step(batch, 0)
        assert module.evaluation.collector.image_tokens[0].dtype == (
            torch.float32 if name == "full" else torch.bfloat16
        )
        found[name] = module.evaluation.scores(module, module.evaluation.collector.gallery())
    for a, b in zip(found["full"], found["half"], strict=True):
        assert 0 < (a - b).abs().max() < 0.05 * a.std()
        # So what is clearly better stays so, while close neighbours may change places.
        rank_of_best = (b > b.gather(1, a.argmax(dim=1, keepdim=True))).sum(dim=1)
        assert rank_of_best.max() <= 1
        assert (rank_of_best == 0).float().mean() > 0.8


def test_k_test_beyond_the_gallery_is_named() -> None:
    with pytest.raises(ValueError, match=r"k_test=14 .* 25 texts and 13 images"):
        evaluate(tiny(k_test=14))


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"k_test": 5}, None),
        ({"k_test": 6}, "k_test=6 .*, but split 'dev' has 5 images: .* from 1 to 5, or all"),
        ({"k_test": 6, "rerank": "test"}, None),
        ({"k_test": 8, "rerank": "test"}, "split 'test' has 7 images"),
        ({"k_test": 8, "rerank": False}, None),
        ({"k_test": "all"}, None),
    ],
)
def test_k_test_beyond_a_split_is_refused_before_training(
    changes: dict[str, Any], refused: str | None
) -> None:
    sizes = {"dev": 5, "test": 7}

    class Data(ImageTextData):
        def __init__(self) -> None:
            self.save_hyperparameters({"val_split": "dev", "test_split": "test"})

        def evaluated(self, split: str) -> Any:
            return range(sizes[split])

    module = tiny(**changes)
    module.trainer = SimpleNamespace(datamodule=Data())  # type: ignore[assignment]
    with pytest.raises(ValueError, match=refused) if refused else nullcontext():
        module.on_fit_start()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_test": 0}, "k_test is a positive number or all, got 0"),
        ({"k_test": "most"}, "k_test is a positive number or all, got 'most'"),
        (
            {"k_test": 1, "score": "itc"},
            r"score must be one of \('itm', .*'probability'\), got 'itc'",
        ),
        ({"k_test": 1, "precision": "bf16"}, "precision must be one of .*, got 'bf16'"),
        ({"k_test": 1, "rerank": "val"}, "rerank must be one of .*test.*, got 'val'"),
        ({"k_test": 1, "chunk": 0}, "chunk is a positive number of text positions, got 0"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalEvaluation(**changes)
