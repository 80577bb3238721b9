"""ALPRO's equations, what its modules refuse, and what their controls break."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from methods.alpro.controls import MisalignedPairs, PermutedEntities
from methods.alpro.losses import (
    blackened,
    entity_loss,
    kept_clips,
    random_regions,
    region_means,
)
from methods.alpro.module import Pretraining
from methods.alpro.prompting import TEMPLATES, read_entities
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.text.wordpiece import WordPiece
from shared.tasks.image_text_retrieval import RetrievalEvaluation
from tests.unit.alpro_toy import (
    ANSWERS,
    CLS,
    ENTITIES,
    MASK,
    PRETRAINING,
    SEP,
    SIZE,
    UNK,
    batch,
    build,
    lively,
)


def terms_of(module: Any, given: dict[str, Any]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    original = module.total_loss

    def total_loss(terms: dict[str, Tensor], *rest: Any) -> Tensor:
        kept.update(terms)
        return original(terms, *rest)

    with patch.object(module, "total_loss", total_loss):
        module.training_step(given, 0)
    return kept


# --- prompted entities ---


def test_the_two_rules_of_kept_clips() -> None:
    labels = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.3, 0.34, 0.36]])
    assert kept_clips(labels, "paper", 0.5).tolist() == [True, True, False]
    assert kept_clips(labels, "official", 0.5).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="keep must be one of"):
        kept_clips(labels, "none", 0.5)  # type: ignore[arg-type]


def test_no_clip_kept_costs_nothing_and_has_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = entity_loss(logits, torch.full((2, 3), 1 / 3), torch.zeros(2).bool())
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_entity_loss_by_hand() -> None:
    """Odds of 3 to 1 and even; the second clip is not kept."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    labels = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    expected = -(0.5 * torch.tensor(0.75).log() + 0.5 * torch.tensor(0.25).log())
    kept = torch.tensor([True, False])
    torch.testing.assert_close(entity_loss(logits, labels, kept), expected)


def test_regions_are_boxes_of_whole_patches() -> None:
    uniforms = torch.rand(200, 64, 4, generator=torch.Generator().manual_seed(0))
    inside = random_regions(uniforms, 224, 16)
    assert inside.shape == (200, 14, 14)
    rows, columns = inside.any(dim=2).sum(1), inside.any(dim=1).sum(1)
    assert torch.equal(inside.flatten(1).sum(1), rows * columns), "full rectangles"
    shares = inside.flatten(1).float().mean(1)
    assert 0.2 < shares.min() < shares.max() <= 0.5
    assert float(shares.mean()) == pytest.approx(0.33, abs=0.02), (
        "docs/papers/alpro.md, section 3.7"
    )


@pytest.mark.parametrize(("size", "patch_size"), [(16, 16), (32, 16), (48, 16)])
def test_small_frames_have_a_region_too(size: int, patch_size: int) -> None:
    uniforms = torch.rand(50, 2, 4, generator=torch.Generator().manual_seed(0))
    inside = random_regions(uniforms, size, patch_size)
    assert inside.flatten(1).any(dim=1).all()


def test_black_is_outside_and_means_are_inside() -> None:
    inside = torch.tensor([[[True, False], [False, False]]])
    clips = torch.ones(1, 2, 3, 4, 4)
    shown = blackened(clips, inside, torch.tensor([-1.0, -2.0, -3.0]))
    assert (shown[..., :2, :2] == 1).all()
    assert shown[0, 1, :, 3, 3].tolist() == [-1, -2, -3]
    patches = torch.arange(4.0)[None, :, None]
    assert region_means(patches, torch.tensor([[[False, True], [False, True]]])).item() == 2


def test_entities_are_the_first_words(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("man 10\nwoman\t9\n\ndog\n")
    assert read_entities(tmp_path / "a.txt", 2) == ["man", "woman"]
    with pytest.raises(DataCorruptError, match="line 3: no entity"):
        read_entities(tmp_path / "a.txt", 4)
    with pytest.raises(DataCorruptError, match=r"names 4 entities: lower method\.num_entities=5"):
        read_entities(tmp_path / "a.txt", 5)
    with pytest.raises(DataNotFoundError):
        read_entities(tmp_path / "b.txt", 1)


def test_prompts_are_named_by_the_words_of_the_paper() -> None:
    assert {kind: len(templates) for kind, templates in TEMPLATES.items()} == {
        "video": 12,
        "image": 12,
    }
    assert TEMPLATES["video"][4].format("dog") == "A video of the dog."


def test_the_prompter_names_its_entities_and_stays_as_it_is() -> None:
    module = lively(build("pretrained"))
    words = "a the one video photo picture of good . man dog cat red".split()  # noqa: SIM905
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = WordPiece([*special, *words], closed=True)
    prompter = module.train().prompter
    prompter.name(["man", "dog", "cat", "man", "red"], tokenizer)
    for prompts in (prompter.video_prompts, prompter.image_prompts):
        assert torch.equal(prompts[0], prompts[3])
        assert not torch.allclose(prompts[0], prompts[1])
        assert (prompts.norm(dim=1) < 1).all(), "means of unit vectors"
    assert not torch.allclose(prompter.video_prompts, prompter.image_prompts)
    assert not any(part.training for part in prompter.modules())
    clips = batch()["images"]
    labels = {kind: prompter(clips, kind) for kind in ("video", "image")}
    torch.testing.assert_close(labels["video"].sum(1), torch.ones(SIZE))
    assert not torch.allclose(labels["video"], labels["image"])
    module.training_step(batch(), 0).backward()
    assert all(p.grad is None and not p.requires_grad for p in prompter.parameters())


# --- the step ---


def test_every_parameter_learns_from_a_step() -> None:
    module = lively(build("pretrained"))
    module.training_step(batch(), 0).backward()
    idle = {n for n, p in module.named_parameters() if p.requires_grad and not p.grad.abs().any()}
    # Keys and values of tokens have biases that softmax does not see; a type that no text has.
    assert not {n for n in idle if "key.bias" not in n}


def test_special_tokens_are_never_masked() -> None:
    module = build("pretrained", mlm_probability=1.0)
    ids = torch.tensor([[CLS, 7, UNK, MASK, SEP, 0]])
    _, labels = module.mask(ids)
    assert (labels != -100).tolist() == [[False, True, False, False, False, False]]


def test_without_alignment_and_prompts_two_losses_remain() -> None:
    module = lively(build("pretrained", align=False, prompt=False))
    terms = terms_of(module, batch())
    loss = module.training_step(batch(), 0)
    torch.testing.assert_close(loss, terms["loss_mlm"] + terms["loss_vtm"])
    assert set(terms) == {"loss_mlm", "loss_vtm", "loss_vtc"}
    loss.backward()
    assert all(p.grad is not None for p in module.parameters()), "no parameter is left out by DDP"


def test_the_temperature_is_clamped_before_it_is_used() -> None:
    for value, expected in ((2.0, 0.5), (-1.0, 0.001)):
        module = lively(build("retrieval"))
        with torch.no_grad():
            module.contrast.temp.fill_(value)
        module.training_step(batch(), 0)
        assert float(module.contrast.temp.detach()) == pytest.approx(expected)


def test_a_sharp_temperature_still_draws_by_similarity() -> None:
    """The own pair takes no probability, however much more similar it is."""
    module = build("retrieval")
    features = torch.nn.functional.normalize(torch.eye(4) + torch.tensor([0, 0.1, 0, 0]), dim=1)
    with torch.no_grad():
        module.contrast.temp.fill_(0.001)
    uniforms = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    videos, _ = module.contrast.negatives(module.matching, features, features, uniforms)
    assert videos[[0, 2, 3]].tolist() == [1, 1, 1]


def test_one_pair_has_no_negative() -> None:
    with pytest.raises(ValueError, match="raise batch_size"):
        build("retrieval").training_step(batch(size=1), 0)


@pytest.mark.parametrize(
    ("control", "changed"), [(MisalignedPairs, "loss_vtc"), (PermutedEntities, "loss_pem")]
)
def test_a_control_breaks_one_loss(control: type[Pretraining], changed: str) -> None:
    terms = []
    for kind in (Pretraining, control):
        torch.manual_seed(0)
        module = lively(kind(**PRETRAINING))
        module.prompter.forward = lambda clips, kind: torch.eye(SIZE, ENTITIES)
        terms.append(terms_of(module, batch()))
    plain, other = terms
    differs = {name for name in plain if not torch.allclose(plain[name], other[name])}
    assert differs == {changed}


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size=8: they must be equal"):
        build("retrieval", vision={"width": 16, "depth": 1, "heads": 2})


def test_entities_are_asked_for_before_training() -> None:
    module = build("pretrained")
    with (
        patch.object(Pretraining, "global_step", 0),
        pytest.raises(ValueError, match=r"method\.entities is null"),
    ):
        module.on_train_start()


# --- what is judged ---


def test_scores_are_odds_of_match() -> None:
    module = lively(build("retrieval")).eval()
    evaluation = RetrievalEvaluation(**module.hparams["evaluation"])
    evaluation.collect(module, batch())
    v2t, t2v = evaluation.scores(module, evaluation.collector.gallery())
    given = batch()
    with torch.no_grad():
        tokens, _ = module.encoders.encode_image(given["images"])
        states, _ = module.encoders.encode_text(given["input_ids"], given["attention_mask"])
        pairs = module.matching.logits(
            module.encoders.text_encoder,
            tokens,
            states.repeat(SIZE, 1, 1),
            given["attention_mask"].repeat(SIZE, 1),
        )
    expected = (pairs[:, 1] - pairs[:, 0]).view(SIZE, SIZE)
    torch.testing.assert_close(v2t, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(t2v, expected.T, atol=1e-5, rtol=1e-4)


def test_answers_are_among_the_list_though_there_are_more_classes() -> None:
    module = lively(build("vqa", answers=["red"])).eval()
    assert {text for text, _ in module.answer(batch())} == {"red"}
    with pytest.raises(ValueError, match="no answers"):
        build("vqa").answer(batch())


def test_a_frozen_core_learns_nothing_and_the_rest_does() -> None:
    module = lively(build("vqa", freeze_visual_core=True))
    module.training_step(batch(), 0).backward()
    frozen = {n for n, p in module.named_parameters() if p.grad is None}
    core = ("attn.", "temporal_attn.", "mlp.")
    assert frozen == {
        n for n, _ in module.encoders.named_parameters(prefix="encoders")
        if "visual_encoder" in n and any(f".{part}" in n for part in core)
    }  # fmt: skip
    assert len(frozen) == 2 * 12


def test_sizes_of_the_toy() -> None:
    assert build("pretrained").entity_head[2].out_features == ENTITIES
    assert build("vqa").encoders.classifier[2].out_features == ANSWERS
