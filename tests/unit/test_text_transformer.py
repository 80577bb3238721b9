"""BERT against attention written out token by token; modes, masks, shared contexts, recording."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shared.nn.text_transformer import (
    Attention,
    KeyValue,
    Mixing,
    Past,
    TextTransformer,
    TransformerLayer,
    TwinAttention,
    attention_mask,
    recorded,
    share_layers,
)

WORDS, WIDTH, CONTEXT = 11, 8, 6
PATCHES = 3
NO_CONTEXT = {"cross_attention_from": None, "context_width": None}


def transformer(**changes: Any) -> TextTransformer:
    """Two layers on text, two that also see a context; in double precision, with lively weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": WIDTH, "num_layers": 4, "num_heads": 2,
        "intermediate_size": 10, "max_positions": 7, "dropout": 0.0,
        "cross_attention_from": 2, "context_width": CONTEXT,
    }  # fmt: skip
    return lively(TextTransformer(**sizes | changes))


def lively(module: Any) -> Any:
    """Weights of a standard deviation of 0.5 in all places, so that every one of them counts."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


def texts(count: int = 4, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask; the first text is of full length, the others are shorter."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([max(1, length - n) for n in range(count)])[:, None]
    mask = (torch.arange(length) < lengths).long()
    return torch.randint(1, WORDS, (count, length), generator=generator) * mask, mask


def contexts(count: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, PATCHES, CONTEXT, generator=generator, dtype=torch.double)


# --- written out ---


def attend(attention: Attention, hidden: Tensor, source: Tensor, causal: bool) -> Tensor:
    """(L, D), (N, C) -> (L, D): head by head and token by token."""
    q, k, v = attention.query(hidden), attention.key(source), attention.value(source)
    size = WIDTH // attention.heads
    mixed = torch.zeros_like(q)
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(q)):
            seen = token + 1 if causal else len(k)
            scores = torch.stack([q[token, part] @ k[n, part] for n in range(seen)])
            weights = (scores / math.sqrt(size)).exp()
            mixed[token, part] = (weights / weights.sum()) @ v[:seen, part]
    return attention.norm(hidden + attention.output(mixed))


def written_out(
    model: TextTransformer,
    ids: Sequence[int],
    context: Tensor | None = None,
    causal: bool = False,
    layers: int | None = None,
    first_position: int = 0,
    types: Sequence[int] | None = None,
) -> Tensor:
    """One text without padding -> (L, D)."""
    e = model.embeddings
    positions = e.position.weight[first_position:]
    hidden = torch.stack([e.word.weight[i] + positions[p] for p, i in enumerate(ids)])
    if e.token_type is not None:
        hidden = hidden + e.token_type.weight[[0] * len(ids) if types is None else list(types)]
    hidden = e.norm(hidden)
    for layer in model.layers[:layers]:
        assert isinstance(layer, TransformerLayer)
        hidden = attend(layer.self_attention, hidden, hidden, causal)
        if layer.cross_attention is not None:
            assert context is not None
            hidden = attend(layer.cross_attention, hidden, context, False)
        inner = layer.intermediate(hidden)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = layer.norm(hidden + layer.output(inner))
    return hidden


def assert_rows(found: Tensor, mask: Tensor, expected: Sequence[Tensor]) -> None:
    """Each text's tokens are as expected; what stands at padding does not count."""
    for row, length, wanted in zip(found, mask.sum(dim=1).tolist(), expected, strict=True):
        torch.testing.assert_close(row[:length], wanted)


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("changes", [{}, {"type_vocab_size": 0}, NO_CONTEXT])
def test_text_mode(changes: dict[str, Any]) -> None:
    """Layers below cross-attention alone; a model that has none is BERT."""
    model, (ids, mask) = transformer(**changes), texts()
    assert (model.embeddings.token_type is None) == ("type_vocab_size" in changes)
    layers = None if changes is NO_CONTEXT else 2
    expected = [written_out(model, row, layers=layers) for row in unpadded(ids, mask)]
    assert_rows(model.encode(ids, mask), mask, expected)
    if changes is NO_CONTEXT:
        assert model.fusion_layers == []
        assert_rows(model(ids, mask), mask, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_all_layers(causal: bool) -> None:
    model, (ids, mask), images = transformer(), texts(), contexts()
    found = model(ids, mask, model.project(images), causal)
    rows = zip(unpadded(ids, mask), images, strict=True)
    assert_rows(found, mask, [written_out(model, row, image, causal) for row, image in rows])


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("fusing", [True, False])
def test_leading_tokens_alone(fusing: bool, count: int) -> None:
    """Quicker, with the same gradients; also where texts share a context, or where there is none.
    Below layers with cross-attention all tokens are needed."""
    model = transformer(**{} if fusing else NO_CONTEXT)
    (ids, mask), images = texts(4), contexts(2)
    gradients = []
    for leading in (None, count):
        model.zero_grad()
        hidden = model.encode(ids, mask, leading=leading)
        if fusing:
            assert hidden.shape == (4, 6, WIDTH)
            hidden = model.fuse(hidden, mask, model.project(images), leading=leading)
        assert hidden.shape == (4, leading or 6, WIDTH)
        hidden[:, :count].square().sum().backward()
        gradients.append([hidden[:, :count], *(p.grad for p in model.parameters())])
    for whole, first in zip(*gradients, strict=True):
        torch.testing.assert_close(first, whole)


@pytest.mark.parametrize("fusion_layer", [2, 3])
def test_a_text_that_has_read_is_fused_with_each_context(fusion_layer: int) -> None:
    """The same, also if the one layer with cross-attention is the first and the last."""
    model, (ids, mask) = transformer(cross_attention_from=fusion_layer), texts(4)
    hidden = model.encode(ids, mask)
    read = model.read(hidden, mask)
    for images in (contexts(2), 1 - contexts(2)):
        context = model.project(images)
        for leading in (None, 1):
            at_once = model.fuse(hidden, mask, context, leading)
            in_turn = model.fuse(read, mask, context, leading, has_read=True)
            torch.testing.assert_close(in_turn, at_once)


# --- token types ---


def test_token_types() -> None:
    model, (ids, mask) = transformer(), texts()
    types = torch.tensor([[0, 0, 1, 1, 1, 1]] * 4)
    found = model.encode(ids, mask, types)
    expected = [
        written_out(model, row, layers=2, types=kinds)
        for row, kinds in zip(unpadded(ids, mask), unpadded(types, mask), strict=True)
    ]
    assert_rows(found, mask, expected)
    assert torch.equal(model.encode(ids, mask, torch.zeros_like(ids)), model.encode(ids, mask))


def test_token_types_that_the_model_does_not_have() -> None:
    model, (ids, mask) = transformer(type_vocab_size=0), texts()
    with pytest.raises(ValueError, match="token types given, but the model has no type embedding"):
        model.encode(ids, mask, torch.zeros_like(ids))
    with pytest.raises(IndexError):
        transformer(type_vocab_size=1).encode(ids, mask, torch.ones_like(ids))


# --- positions as in RoBERTa ---


def roberta(**changes: Any) -> TextTransformer:
    """Padding is 1, so that the first token has position 2."""
    form = {"pad_id": 1, "positions_after_pad": True, "max_positions": 8}
    return transformer(**form | NO_CONTEXT | {"type_vocab_size": 1} | changes)


def roberta_texts(count: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    ids, mask = texts(count, length)
    return torch.where(mask.bool(), ids.clamp_min(2), 1), mask


def test_positions_of_roberta_begin_after_that_of_padding() -> None:
    model, (ids, mask) = roberta(), roberta_texts()
    assert model.embeddings.max_length == 6
    expected = [written_out(model, row, first_position=2) for row in unpadded(ids, mask)]
    assert_rows(model.encode(ids, mask), mask, expected)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_positions_of_roberta_count_tokens_only(padding: list[int]) -> None:
    """So padding may stand on the left, and each text be moved as far as it likes."""
    model, (ids, mask) = roberta(), roberta_texts(3, 4)
    moved, seen = torch.ones(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for row, left in enumerate(padding):
        moved[row, left : left + 4], seen[row, left : left + 4] = ids[row], mask[row]
    found = model.encode(moved, seen)[seen.bool()]
    torch.testing.assert_close(found, model.encode(ids, mask)[mask.bool()])


def test_positions_of_bert_count_all_places() -> None:
    model, (ids, mask) = roberta(positions_after_pad=False), roberta_texts(3, 4)
    assert model.embeddings.max_length == 8
    found = model.encode(F.pad(ids, (1, 0), value=1), F.pad(mask, (1, 0)))[:, 1:]
    assert not torch.allclose(found[mask.bool()], model.encode(ids, mask)[mask.bool()])


def test_too_many_tokens_for_the_positions_of_roberta() -> None:
    """514 rows serve 512 tokens."""
    ids, mask = roberta_texts(length=7)
    with pytest.raises(ValueError, match="a text of 7 tokens exceeds the 6 positions of the model"):
        roberta().encode(ids, mask)


def test_padding_of_roberta_has_no_position() -> None:
    """Its row starts as 0 and is not trained; the one before it is never used."""
    fresh = TextTransformer(WORDS, WIDTH, 1, 2, 10, 8, pad_id=1, positions_after_pad=True)
    assert (fresh.embeddings.position.weight[1] == 0).all()
    model, (ids, mask) = roberta(), roberta_texts()
    model.encode(ids, mask).square().sum().backward()
    gradient = model.embeddings.position.weight.grad
    assert gradient is not None
    assert (gradient[:2] == 0).all()
    assert (gradient[2:] != 0).any(dim=1).all()


# --- masks ---


def test_attention_masks() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert attention_mask(mask).tolist() == [[[[True, True, False]]], [[[True] * 3]]]
    first, second = attention_mask(mask, causal=True)[:, 0].int().tolist()
    assert first == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert second == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(1, WORDS - 1))
def test_a_causal_token_does_not_see_later_ones(place: int, word: int) -> None:
    model, (ids, mask), images = transformer(), texts(1), contexts(1)
    context = model.project(images)
    changed = ids.clone()
    changed[0, place] = word
    before, after = (model(i, mask, context, True) for i in (ids, changed))
    torch.testing.assert_close(after[:, :place], before[:, :place])
    if word != ids[0, place]:
        assert not torch.allclose(after[:, place:], before[:, place:])
        both = (model(i, mask, context)[:, :place] for i in (ids, changed))
        assert place == 0 or not torch.allclose(*both), "without causal mode earlier ones see it"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3), st.booleans())
def test_padding_is_not_seen(seed: int, padding: int, causal: bool) -> None:
    """Whatever ids stand there and however much of it there is."""
    model, (ids, mask), images = transformer(), texts(3, 4), contexts(3)
    context = model.project(images)
    generator = torch.Generator().manual_seed(seed)
    wider = F.pad(mask, (0, padding))
    noise = torch.randint(0, WORDS, wider.shape, generator=generator)
    noisy = torch.where(wider.bool(), F.pad(ids, (0, padding)), noise)
    found = model(noisy, wider, context, causal)[:, :4]
    expected = model(ids, mask, context, causal)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def test_padding_of_a_context_is_not_seen() -> None:
    model, (ids, mask), images = transformer(), texts(), contexts()
    visible = torch.tensor([[1, 1, 0]]).expand(4, PATCHES)
    short = model(ids, mask, model.project(images[:, :2]))
    torch.testing.assert_close(model(ids, mask, model.project(images, mask=visible)), short)
    assert not torch.allclose(model(ids, mask, model.project(images)), short)


# --- contexts ---


def test_consecutive_texts_share_a_padded_context() -> None:
    model, (ids, mask), images = transformer(), texts(4), contexts(2)
    visible = torch.tensor([[1, 1, 0], [1, 0, 0]])
    shared = model(ids, mask, model.project(images, mask=visible))
    rows = torch.tensor([0, 0, 1, 1])
    repeated = model.project(images[rows], mask=visible[rows])
    torch.testing.assert_close(shared, model(ids, mask, repeated))


def test_contexts_are_picked_by_row() -> None:
    model, (ids, mask), images = transformer(), texts(4), contexts(2)
    visible = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = torch.tensor([1, 1, 0, 1])
    picked = [kv.rows(rows) for kv in model.project(images, mask=visible)]
    expected = model.project(images[rows], mask=visible[rows])
    for found, wanted in zip(picked, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    torch.testing.assert_close(model(ids, mask, picked), model(ids, mask, expected))
    assert KeyValue(images, images).rows(rows).mask is None
    (whole, *_) = model.project(images, mask=visible)
    part = whole.rows(slice(1))
    assert part.key.data_ptr() == whole.key.data_ptr(), "a slice copies nothing"
    assert part.mask is not None
    assert len(part.key) == len(part.mask) == 1


def test_a_gradient_reaches_every_text_of_a_context() -> None:
    """The context's is the sum over its texts."""
    model, (ids, mask) = transformer(), texts(4)
    together = contexts(2).requires_grad_()
    model(ids, mask, model.project(together)).square().sum().backward()
    apart = contexts(2).requires_grad_()
    rows = torch.tensor([0, 0, 1, 1])
    model(ids, mask, [kv.rows(rows) for kv in model.project(apart)]).square().sum().backward()
    assert together.grad is not None
    assert apart.grad is not None
    torch.testing.assert_close(together.grad, apart.grad)
    assert (together.grad != 0).any(dim=-1).all()


def test_contexts_that_do_not_fit_the_texts() -> None:
    model, (ids, mask) = transformer(), texts(4)
    with pytest.raises(ValueError, match="4 texts can't share 3 contexts evenly"):
        model(ids, mask, model.project(contexts(3)))
    with pytest.raises(ValueError):  # one context for each layer that looks at one
        model(ids, mask, model.project(contexts(4))[:1])


def test_projections_of_every_other_layer() -> None:
    model = transformer(num_layers=6)
    everything = model.project(contexts())
    assert len(everything) == 4
    picked = model.project(contexts(), every=2)
    for found, wanted in zip(picked, everything[::2], strict=True):
        assert torch.equal(found.key, wanted.key)
        assert torch.equal(found.value, wanted.value)


def test_a_width_of_the_context_and_layers_that_look_at_it_go_together() -> None:
    for changes in ({"cross_attention_from": None}, {"context_width": None}):
        with pytest.raises(ValueError, match="given together or not"):
            transformer(**changes)


# --- shared projections ---


def crosses(model: TextTransformer) -> list[Attention]:
    return [layer.cross_attention for layer in model.fusion_layers]  # type: ignore[misc]


def test_twins_share_parameters_which_count_once() -> None:
    alone, twins = transformer(num_layers=6), transformer(num_layers=6, share_projections=2)
    for number, (a, b) in enumerate(pairwise(crosses(twins))):
        assert (a.key is b.key) == (a.value is b.value) == (number % 2 == 0)
        assert a.query is not b.query
        assert a.output is not b.output
        assert a.norm is not b.norm
    one = 2 * (CONTEXT + 1) * WIDTH  # a pair of projections
    counts = [sum(p.numel() for p in model.parameters()) for model in (alone, twins)]
    assert counts[0] - counts[1] == 2 * one
    assert len(twins.state_dict()) == len(alone.state_dict()), "a file holds both names"


# --- recording ---


def test_recorded_maps_are_the_probabilities() -> None:
    """Of three texts that share a context in a row; they sum to 1."""
    model, (ids, mask), images = transformer(), texts(6), contexts(2)
    attention = crosses(model)[0]
    hidden = model.encode(ids, mask)
    with recorded(attention) as maps:
        fused = model.fuse(hidden, mask, model.project(images))
    assert [part.shape for part in maps] == [(2, 2, 18, PATCHES)]
    found = maps[0].unflatten(2, (3, 6)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(6, 2, 6).double())
    layer = model.fusion_layers[0]
    seen = layer.self_attention(hidden, layer.self_attention.project(hidden), attention_mask(mask))
    for text, image in enumerate([0, 0, 0, 1, 1, 1]):
        query, key = attention.query(seen[text]), attention.key(images[image])
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = query[:, part] @ key[:, part].T / 2
            torch.testing.assert_close(found[text, head], scores.softmax(dim=-1))
    torch.testing.assert_close(fused, model.fuse(hidden, mask, model.project(images)))


def test_recorded_self_attention_gives_nothing_to_padding() -> None:
    model, (ids, mask) = transformer(), texts()
    attention: Any = model.layers[1].self_attention  # type: ignore[union-attr]
    with recorded(attention) as maps:
        found = model.encode(ids, mask)
    (probabilities,) = maps
    assert (probabilities[~mask.bool()[:, None, None].expand_as(probabilities)] == 0).all()
    torch.testing.assert_close(found, model.encode(ids, mask))


def test_a_gradient_of_the_map_can_be_asked_for() -> None:
    """It tells which probability would change the class token, and is even where none would."""
    model, (ids, mask), images = transformer(), texts(), contexts()
    attention = crosses(model)[-1]
    with recorded(attention) as maps:
        output = model(ids, mask, model.project(images))[:, 0].sum()
        (gradient,) = torch.autograd.grad(output, maps)
    value = model.project(images)[-1].value  # (B, H, N, D / H)
    assert gradient.shape == (4, 2, 6, PATCHES)
    assert (gradient[:, :, 1:] == 0).all(), "the class token alone counts"
    assert (gradient[:, :, 0] != 0).any(dim=-1).all()
    # The output depends on the map only by what it mixes: equal values make it indifferent.
    even = [kv._replace(value=kv.value.mean(dim=2, keepdim=True).expand_as(value)) for kv in
            model.project(images)]  # fmt: skip
    with recorded(attention) as maps:
        output = model(ids, mask, even)[:, 0].sum()
        (gradient,) = torch.autograd.grad(output, maps)
    centred = gradient - gradient.mean(dim=-1, keepdim=True)
    assert centred.abs().max() < 1e-9


def test_maps_are_those_before_dropout_and_are_forgotten() -> None:
    model, (ids, mask), images = transformer(dropout=0.5), texts(), contexts()
    attention = crosses(model)[0]
    with recorded(attention) as maps:
        model.train()
        model(ids, mask, model.project(images))
        torch.testing.assert_close(maps[0].sum(dim=-1), torch.ones(4, 2, 6).double())
    assert attention.maps is None
    with pytest.raises(RuntimeError, match="oops"), recorded(attention):
        raise RuntimeError("oops")
    assert attention.maps is None


# --- training ---


def test_dropout_is_for_training_alone() -> None:
    model, (ids, mask), images = transformer(dropout=0.3), texts(), contexts()
    context = model.project(images)
    assert torch.equal(model(ids, mask, context), model(ids, mask, context))
    model.train()
    assert not torch.allclose(model(ids, mask, context), model(ids, mask, context))
    none = transformer().train()
    assert torch.equal(none(ids, mask, context), none(ids, mask, context))


def test_dropout_acts_in_every_place() -> None:
    """On the embeddings, on attention probabilities, after attention and after the feed-forward
    block: with all else off, each alone makes two passes differ."""
    model, (ids, mask), images = transformer(dropout=0.3), texts(), contexts()
    context = model.project(images)
    layer: Any = model.layers[3]
    for place in (model.embeddings, layer.self_attention, layer.cross_attention, layer):
        model.eval()
        place.training = True
        passes = [model(ids, mask, context) for _ in range(2)]
        assert not torch.allclose(*passes), place


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = TextTransformer(2000, 64, 2, 2, 256, cross_attention_from=1, context_width=32)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name
    assert (model.embeddings.word.weight[0] == 0).all()
    assert model.embeddings.norm.eps == model.layers[0].norm.eps == 1e-12  # type: ignore[union-attr]


# --- BLIP's modes: each call decides about cross-attention ---


def mixture(**changes: Any) -> TextTransformer:
    """Cross-attention in every layer, no token types."""
    return transformer(**{"cross_attention_from": 0, "type_vocab_size": 0} | changes)


def alone_written_out(model: TextTransformer, ids: Sequence[int]) -> Tensor:
    """One text through all layers without their cross-attention."""
    e = model.embeddings
    hidden = e.norm(
        torch.stack([e.word.weight[i] + e.position.weight[p] for p, i in enumerate(ids)])
    )
    for layer in model.layers:
        assert isinstance(layer, TransformerLayer)
        hidden = attend(layer.self_attention, hidden, hidden, False)
        hidden = layer.norm(hidden + layer.output(F.gelu(layer.intermediate(hidden))))
    return hidden


def test_a_text_by_itself_skips_cross_attention_in_every_layer() -> None:
    model, (ids, mask) = mixture(), texts()
    found = model.encode(ids, mask, alone=True)
    assert_rows(found, mask, [alone_written_out(model, row) for row in unpadded(ids, mask)])
    first = model.encode(ids, mask, alone=True, leading=1)
    torch.testing.assert_close(first, found[:, :1])


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_layers_look_at_an_image(causal: bool) -> None:
    model, (ids, mask), images = mixture(), texts(), contexts()
    found = model(ids, mask, model.project(images), causal)
    rows = zip(unpadded(ids, mask), images, strict=True)
    assert_rows(found, mask, [written_out(model, row, image, causal) for row, image in rows])


@pytest.mark.parametrize("split", [0, 1, 2, 3, 4])
def test_layers_in_two_parts(split: int) -> None:
    model, (ids, mask), images = transformer(), texts(), contexts()
    context = model.project(images)
    whole = model(ids, mask, context)
    below = max(0, split - 2)  # layers with cross-attention in the first part
    hidden = model.run(model.embeddings(ids), mask, context[:below], stop=split)
    torch.testing.assert_close(model.run(hidden, mask, context[below:], start=split), whole)


def test_modes_that_make_no_sense_are_refused() -> None:
    (ids, mask), images = texts(), contexts()
    with pytest.raises(ValueError, match=r"every layer has cross-attention: encode .* alone=True"):
        mixture().encode(ids, mask)
    with pytest.raises(ValueError, match="4 layers with cross-attention take a context each, got"):
        mixture()(ids, mask)
    model, three = transformer(), mixture().project(images)[:3]
    hidden = model.encode(ids, mask)
    with pytest.raises(ValueError, match=r"2 layers with cross-attention take a context .* got 3"):
        model.fuse(hidden, mask, three)
    plain = transformer(**NO_CONTEXT)
    with pytest.raises(ValueError, match="nothing to fuse"):
        plain.fuse(hidden, mask, [])


# --- tokens after others ---


@pytest.mark.parametrize("first", [1, 3, 5])
def test_tokens_after_a_past(first: int) -> None:
    """Positions, the mask of padding in front and causality go on where they were."""
    model, (ids, _), images = mixture(), texts(3), contexts(3)
    mask = torch.ones_like(ids)
    mask[1, 0] = 0  # hidden from all later tokens of its text
    context = model.project(images)
    whole = model(ids, mask, context, causal=True)
    past = [Past(6) for _ in model.layers]
    with torch.no_grad():
        model(ids[:, :first], mask[:, :first], context, causal=True, past=past)
        rest = model(ids[:, first:], mask, context, causal=True, past=past)
    torch.testing.assert_close(rest[[0, 2]], whole[[0, 2], first:])
    torch.testing.assert_close(rest[1], whole[1, first:])


def test_a_causal_mask_of_later_tokens_by_hand() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])
    found = attention_mask(mask, causal=True, past=2)
    assert found.shape == (2, 1, 2, 4)
    assert found[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 0, 1, 0], [1, 0, 1, 1]],
    ]


def test_a_past_beyond_the_positions_of_the_model() -> None:
    model, context = mixture(), mixture().project(contexts(1))
    past = [Past(9) for _ in model.layers]
    model(torch.ones(1, 7).long(), torch.ones(1, 7), context, causal=True, past=past)
    with pytest.raises(ValueError, match="a text of 8 tokens exceeds the 7 positions"):
        model(torch.ones(1, 1).long(), torch.ones(1, 8), context, causal=True, past=past)
    counting = roberta(max_positions=9)
    with pytest.raises(ValueError, match="need the whole text at once"):
        counting.embeddings(torch.ones(1, 1).long(), first=2)


# --- twins ---


def test_twins_look_at_two_contexts_and_are_merged() -> None:
    """Written out for one text: the mean in the first layer, a linear layer in the second."""
    model = mixture(num_layers=2, merge_from=1)
    (ids, mask), images = texts(3), contexts(6)
    found = model(ids, mask, model.project(images))
    for n, row in enumerate(unpadded(ids, mask)):
        e = model.embeddings
        hidden = torch.stack([e.word.weight[i] + e.position.weight[p] for p, i in enumerate(row)])
        hidden = e.norm(hidden)
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, TransformerLayer)
            cross = layer.cross_attention
            assert isinstance(cross, TwinAttention)
            hidden = attend(layer.self_attention, hidden, hidden, False)
            one, other = (
                _without_norm(twin, hidden, images[image])
                for twin, image in ((cross.first, n), (cross.second, n + 3))
            )
            merged = (one + other) / 2
            if number == 1:
                assert cross.merge is not None
                merged = cross.merge(torch.cat([one, other], dim=-1))
            hidden = cross.norm(hidden + merged)
            hidden = layer.norm(hidden + layer.output(F.gelu(layer.intermediate(hidden))))
        torch.testing.assert_close(found[n, : len(row)], hidden)


def _without_norm(attention: Mixing, hidden: Tensor, source: Tensor) -> Tensor:
    """(L, D), (N, C) -> (L, D) of the dense layer, by the attention that is written out above."""

    class Bare:
        query, key, value = attention.query, attention.key, attention.value
        output, heads = attention.output, attention.heads

        @staticmethod
        def norm(x: Tensor) -> Tensor:
            return x - hidden

    return attend(Bare, hidden, source, False)  # type: ignore[arg-type]


# --- sharing ---

SHARED = {  # of one layer and of the embeddings
    "all": {"embeddings", "self_attention", "cross_attention", "intermediate", "output", "norm"},
    "all_but_ca": {"embeddings", "self_attention", "intermediate", "output", "norm"},
    "all_but_sa": {"embeddings", "cross_attention", "intermediate", "output", "norm"},
    "none": set(),
}


@pytest.mark.parametrize("sharing", SHARED)
def test_shared_parts_are_one_tensor_in_training_and_in_a_copy(sharing: Any) -> None:
    encoder, decoder = mixture(), mixture()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    share_layers(decoder, encoder, sharing)
    theirs = dict(encoder.named_parameters())
    mine = dict(decoder.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        part = name.split(".")[2 if name.startswith("layers") else 0]
        assert (parameter is theirs[name]) == (part in SHARED[sharing]), name
    if sharing != "none":
        assert decoder.embeddings.word.weight is encoder.embeddings.word.weight


def test_the_gradient_of_a_shared_part_is_the_sum_of_both_uses() -> None:
    (ids, mask), images = texts(), contexts()
    gradients = []
    for parts in ((0,), (1,), (0, 1)):
        encoder, decoder = mixture(), mixture()
        share_layers(decoder, encoder, "all_but_sa")
        models = (encoder, decoder)
        for n in parts:
            model = models[n]
            model(ids, mask, model.project(images), causal=n == 1).square().sum().backward()
        gradients.append(encoder.layers[1].intermediate.weight.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_an_unknown_sharing_and_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="sharing must be one of"):
        share_layers(mixture(), mixture(), "most")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        share_layers(mixture(num_layers=3), mixture(), "all")
