"""BLIP's pre-training and retrieval at toy size: what is shared, what is seen, what is drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bert_files import Sizes, random_state
from safetensors.torch import save_file
from torch import Tensor

from shared.losses.language import smoothed_losses, text_sums
from shared.training.method import Method
from tests.parity.recording import recording
from tests.unit.albef_toy import given, trainer
from tests.unit.blip_toy import (
    BOS,
    ENC,
    QUEUE,
    SIZE,
    TEXT,
    WORDS,
    batch,
    build,
    lively,
    pretraining,
    retrieval,
)

SHARINGS = ("all", "all_but_ca", "all_but_sa", "none")


def terms_of(module: Method, data: dict, step: int = 0) -> dict[str, Tensor]:
    with recording((module, "total_loss")) as calls:
        module.training_step(data, step)
    return calls["total_loss"][0].arguments["terms"]


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_fits_and_everything_learns(kind: str) -> None:
    module = build(kind)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(limit_val_batches=0).fit(module, given([batch(0), batch(1)]))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)
    assert module.contrast.queue.pointer == 0  # two batches of four fill eight places
    assert int(module.contrast.queue.written) == QUEUE


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_decoder_sees_the_image_by_its_own_projections(sharing: str) -> None:
    """Keys and values of the encoder serve it only where they are the decoder's, too."""
    module, data = lively(pretraining(sharing=sharing)), batch()
    loss = terms_of(module, data)["loss_lm"]
    transformer, head = module.decoder.transformer, module.decoder.head
    ids = data["input_ids"].clone()
    ids[:, 0] = BOS
    tokens, _ = module.encoders.encode_image(data["images"])
    context = transformer.project(tokens)
    hidden = transformer(ids, data["attention_mask"], context, causal=True)
    logits = head(hidden, transformer.embeddings.word)
    predicted = data["attention_mask"][:, 1:].bool()
    expected = smoothed_losses(logits[:, :-1][predicted], ids[:, 1:][predicted], 0.1)
    torch.testing.assert_close(loss, expected.mean())
    assert text_sums(expected, predicted).shape == (SIZE,)


def test_the_sizes_of_sharing() -> None:
    """As in the paper's table 3: all < all but cross-attention, all but self-attention < none."""
    counts = {}
    for sharing in SHARINGS:
        module = pretraining(sharing=sharing)
        counts[sharing] = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert counts["all"] < min(counts["all_but_ca"], counts["all_but_sa"])
    assert max(counts["all_but_ca"], counts["all_but_sa"]) < counts["none"]


def test_one_optimiser_entry_of_everything_with_decay() -> None:
    module = pretraining()
    optimizer = module.configure_optimizers()
    (group,) = optimizer.param_groups
    learned = [p for p in module.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in learned]
    assert group["weight_decay"] == 0.05
    assert any(p is module.contrast.temp for p in learned)


def test_texts_are_read_alone_for_contrast_and_with_enc_for_matching() -> None:
    module, data = pretraining(), batch()
    encoder = module.encoders.text_encoder
    with recording((encoder, "encode"), (encoder.embeddings, "forward")) as calls:
        ids, features = module.encoders.encode_text(data["input_ids"], data["attention_mask"])
    assert calls["encode"][0].arguments["alone"] is True
    assert (ids[:, 0] == ENC).all()
    assert torch.equal(ids[:, 1:], data["input_ids"][:, 1:])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(SIZE))
    assert (data["input_ids"][:, 0] != ENC).all(), "the batch is left as it was"


def test_videos_are_their_frames() -> None:
    """Tokens in a row; features averaged before they get unit length."""
    encoders, videos = lively(retrieval()).encoders.eval(), torch.randn(2, 3, 3, 16, 16)
    tokens, features = encoders.encode_image(videos)
    each, _ = zip(*(encoders.encode_image(frame) for frame in videos.unbind(1)), strict=True)
    torch.testing.assert_close(tokens, torch.cat(each, dim=1))
    mean = torch.stack([encoders.vision_proj(frame[:, 0]) for frame in each]).mean(dim=0)
    torch.testing.assert_close(features, mean / mean.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_the_temperature_is_clamped_before_it_is_used(kind: str) -> None:
    terms = []
    for temperature in (2.0, 0.5):
        module = build(kind)
        with torch.no_grad():
            module.contrast.temp.fill_(temperature)
        terms.append(terms_of(module, batch()))
        assert float(module.contrast.temp.detach()) == 0.5
    assert float(terms[0]["loss_ita"]) == float(terms[1]["loss_ita"])


def test_images_of_equal_id_are_positives_and_no_negatives() -> None:
    module = retrieval()
    module.contrast.queue["idx"][:, 0] = torch.tensor([7, -100, 1, 1, -100, 8, 3, -100])
    data = batch(identities=[7, 7, 1, 2])
    with recording((module.contrast, "targets"), (module.matching, "mine")) as calls:
        module.training_step(data, 0)
    targets = calls["targets"][0].result
    assert targets[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3, *[0] * 7])
    assert targets[2].tolist() == pytest.approx([0, 0, 1 / 3, 0, 0, 0, 1 / 3, 1 / 3, *[0] * 4])
    image_of_text, text_of_image = calls["mine"][0].result
    for drawn in (image_of_text, text_of_image):
        assert (data["image_ids"][drawn] != data["image_ids"]).all()
    assert module.contrast.queue["idx"].dtype == torch.long


def test_large_ids_stay_apart() -> None:
    """2^24 and 2^24 + 1 are one number in float32."""
    module, ids = retrieval(), [2**24, 2**24 + 1, 5, 6]
    module.training_step(batch(identities=ids), 0)
    assert module.contrast.queue["idx"][:4, 0].tolist() == ids
    targets = module.contrast.targets(torch.tensor(ids), queued=True)
    assert (targets > 0).sum(dim=1).tolist() == [2, 2, 2, 2]


def test_retrieval_draws_negatives_by_online_features() -> None:
    module, data = lively(retrieval()), batch()
    with recording((module.matching, "mine"), (module.encoders, "encode_image"),
                   (module.encoders, "encode_text")) as calls:  # fmt: skip
        module.training_step(data, 0)
    image, text = calls["encode_image"][0].result[1], calls["encode_text"][0].result[1]
    i2t = calls["mine"][0].arguments["i2t"]
    torch.testing.assert_close(i2t, image @ text.T / module.contrast.temp)
    assert not i2t.requires_grad


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("pretraining", [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]), ("retrieval", [0.0, 0.2, *[0.4] * 4])],
)
def test_alpha_rises_over_epochs(kind: str, expected: list[float]) -> None:
    module, seen = build(kind), []
    original = module.momentum_encoders.weight

    def weight(*arguments: Any) -> float:
        seen.append(original(*arguments))
        return seen[-1]

    module.momentum_encoders.weight = weight
    fitting = trainer(limit_val_batches=0, max_epochs=3)
    fitting.fit(module, given([batch(0), batch(1)]))
    assert seen == pytest.approx(expected)


def test_rates_of_pretraining() -> None:
    module = pretraining()
    assert [module.rate(0, n) for n in range(4)] == pytest.approx([1e-3, 5.5e-3, 1e-2, 1e-2])
    assert [module.rate(epoch, 0) for epoch in (1, 2, 9)] == pytest.approx([5e-3, 2.5e-3, 1e-3])


def test_rates_of_fine_tuning_are_those_of_epochs() -> None:
    module = retrieval()
    assert [module.rate(epoch, n) for epoch in (0, 1) for n in (0, 9)] == pytest.approx(
        [1e-2, 1e-2, 5.5e-3, 5.5e-3]
    )


# --- what pre-training starts from ---


@pytest.mark.parametrize("sharing", ["all_but_sa", "none"])
def test_encoder_and_decoder_start_from_bert_but_for_two_words(
    sharing: str, tmp_path: Path
) -> None:
    sizes = Sizes(WORDS - 2, TEXT["max_positions"], 2, TEXT["hidden_size"], 16, 2)
    state = random_state("BERT", sizes, seed=3)
    folder = tmp_path / "bert"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    module = pretraining(sharing=sharing, initial={"vision": None, "text": str(folder)})
    before = module.encoders.text_encoder.embeddings.word.weight.detach().clone()
    module.setup("fit")
    words = state["bert.embeddings.word_embeddings.weight"]
    query = state["bert.encoder.layer.1.attention.self.query.weight"]
    copy = module.momentum_encoders.module.text_encoder
    for text in (module.encoders.text_encoder, module.decoder.transformer, copy):
        assert torch.equal(text.embeddings.word.weight[:-2], words)
        assert torch.equal(text.layers[1].self_attention.query.weight, query)
    assert torch.equal(module.encoders.text_encoder.embeddings.word.weight[-2:], before[-2:])
    assert torch.equal(module.decoder.head.bias[:-2], state["cls.predictions.bias"])
