"""BERT from Hugging Face's folders and ViTs from files, written here, into our networks."""

import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from bert_files import Sizes, random_state
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.checkpoints.reading import CheckpointError
from shared.nn.text_transformer import LanguageHead, TextTransformer
from shared.nn.vision_transformer import VisionTransformer, interpolate_positions

WORDS, WIDTH, INNER, LAYERS, POSITIONS = 13, 8, 20, 3, 9


# --- BERT ---


def bert() -> dict[str, Tensor]:
    """A tiny BERT for pre-training, with the keys of Hugging Face's file."""
    sizes = Sizes(WORDS, POSITIONS, 2, WIDTH, INNER, LAYERS)
    state = random_state("BERT", sizes, seed=3)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    return state | {"bert.embeddings.position_ids": torch.arange(POSITIONS)[None]}


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first checkpoints of BERT are saved."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.\w+", lambda m: names[m[0]], k): v for k, v in state.items()}


def of_body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a model without heads is saved: no prefix."""
    return {k.removeprefix("bert."): v for k, v in state.items() if not k.startswith("cls.")}


def text(**changes: Any) -> TextTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 2,
        "intermediate_size": INNER, "max_positions": POSITIONS, "cross_attention_from": 2,
        "context_width": 5,
    }  # fmt: skip
    return TextTransformer(**sizes | changes)


def folder(path: Path, state: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    state = {key: value.clone() for key, value in state.items()}  # none of them shared
    (save_file if name.endswith("safetensors") else torch.save)(state, path / name)
    return path


LAYER = {
    "attention.self.query": "self_attention.query",
    "attention.self.key": "self_attention.key",
    "attention.self.value": "self_attention.value",
    "attention.output.dense": "self_attention.output",
    "attention.output.LayerNorm": "self_attention.norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "norm",
}


def assert_body(module: TextTransformer, state: dict[str, Tensor]) -> None:
    """All but the cross-attention is BERT's; that is as initialised."""
    tables = ("word", "position", "token_type")
    names = {f"embeddings.{t}_embeddings.weight": f"embeddings.{t}.weight" for t in tables}
    for part in ("weight", "bias"):
        names[f"embeddings.LayerNorm.{part}"] = f"embeddings.norm.{part}"
        for n in range(LAYERS):
            for theirs, mine in LAYER.items():
                names[f"encoder.layer.{n}.{theirs}.{part}"] = f"layers.{n}.{mine}.{part}"
    fresh, ours = text().state_dict(), module.state_dict()
    for theirs, mine in names.items():
        assert torch.equal(ours[mine], state[f"bert.{theirs}"]), mine
    left = ours.keys() - names.values()
    assert left == {key for key in ours if "cross_attention" in key}
    assert all(torch.equal(ours[key], fresh[key]) for key in left)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict, "model.safetensors"),
        (dict, "pytorch_model.bin"),
        (old_names, "model.safetensors"),
        (of_body, "model.safetensors"),
        (lambda state: old_names(of_body(state)), "model.safetensors"),
    ],
)
def test_bert_without_its_heads(change: Any, name: str, tmp_path: Path) -> None:
    state, module = change(bert()), text()
    path = folder(tmp_path / "bert", state, name)
    if name == "model.safetensors":  # which come first
        folder(path, {key: value + 1 for key, value in state.items()}, "pytorch_model.bin")
    report = load_hugging_face(module, path)
    assert_body(module, bert())
    again = text()
    assert str(load_hugging_face(again, path / name)) == str(report)  # the file itself
    assert_body(again, bert())
    left = re.compile(r"cls\.|.*(pooler\.|position_ids)")
    assert all(map(left.match, report.dropped))
    assert len(report.dropped) == sum(left.match(key) is not None for key in state)
    assert set(report.fresh.values()) == {"BERT has no cross-attention"}
    assert len(report.mapped) + len(report.dropped) == len(state)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_bert_from_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = folder(tmp_path / "hub" / "some" / "bert", bert(), name)
    (hub / "config.json").write_text("{}")
    (hub / "tf_model.h5").write_text("another framework's")
    asked: list[list[str]] = []

    def download(model: str, allow_patterns: list[str]) -> str:
        """A hub that is there, but for what it does not know."""
        if not (there := tmp_path / "hub" / model).is_dir():
            raise ConnectionError("no\nnetwork")
        asked.append(allow_patterns)
        for file in there.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, cache)
        return str(cache)

    (cache := tmp_path / "cache").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    module = text()
    load_hugging_face(module, "hub:some/bert")
    assert_body(module, bert())
    assert {file.name for file in cache.iterdir()} == {name, "config.json"}
    assert len(asked) == (1 if name.endswith("safetensors") else 2)
    with pytest.raises(CheckpointError, match=r"cannot provide it \(no network\); without"):
        load_hugging_face(module, "hub:some/other")
    (hub / name).unlink()
    (cache / name).unlink()
    with pytest.raises(CheckpointError, match="hub:some/bert holds no model"):
        load_hugging_face(module, "hub:some/bert")


@pytest.mark.parametrize("change", [dict, old_names])
def test_bert_with_its_word_prediction(change: Any, tmp_path: Path) -> None:
    state, module, head = bert(), text(), LanguageHead(WORDS, WIDTH)
    report = load_hugging_face(module, folder(tmp_path / "bert", change(state)), head)
    assert_body(module, state)
    theirs = {"dense": "transform.dense", "norm": "transform.LayerNorm"}
    for mine, value in head.state_dict().items():
        part, _, name = mine.partition(".")
        there = f"{theirs[part]}.{name}" if name else part
        assert torch.equal(value, state[f"cls.predictions.{there}"]), mine
    assert len(head.state_dict()) == 5
    assert report.dropped["cls.predictions.decoder.weight"].startswith("tied")
    assert "cls.seq_relationship.weight" in report.dropped


def test_a_file_without_word_prediction_leaves_it_as_it_is(tmp_path: Path) -> None:
    head = LanguageHead(WORDS, WIDTH)
    before = head.dense.weight.clone()
    report = load_hugging_face(text(), folder(tmp_path / "bert", of_body(bert())), head)
    assert torch.equal(head.dense.weight, before)
    assert "5 left as initialised: the file has no word prediction" in str(report)


def refusal(module: nn.Module, load: Any) -> str:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load()
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "was changed"
    return str(caught.value)


def test_what_is_no_bert_is_refused(tmp_path: Path) -> None:
    module, state = text(), bert()

    def refused(path: Path) -> str:
        return refusal(module, lambda: load_hugging_face(module, path))

    for path in (tmp_path / "none", folder(tmp_path / "empty", state, "other.bin")):
        message = refused(path)
        assert f"{path}: neither model.safetensors nor pytorch_model.bin is there" in message
        assert "Hugging Face's layout" in message
    more = state | {"bert.encoder.layer.3.output.dense.bias": torch.zeros(WIDTH)}
    assert "1 unexpected" in refused(folder(tmp_path / "deeper", more))
    wide = state | {"bert.embeddings.word_embeddings.weight": torch.zeros(WORDS + 1, WIDTH)}
    resized = f"({WORDS + 1}, {WIDTH}) there, text.embeddings.word.weight ({WORDS}, {WIDTH})"
    assert resized in refused(folder(tmp_path / "words", wide))
    del state["bert.encoder.layer.1.output.dense.bias"]
    assert "1 missing:\n  text.layers.1.output.bias" in refused(folder(tmp_path / "lacks", state))
    (tmp_path / "lacks" / "model.safetensors").write_bytes(b"damaged")
    assert "refused checkpoint" in refused(tmp_path / "lacks")


# --- ViT ---


def vit(image_size: int = 16, **changes: Any) -> VisionTransformer:
    sizes: dict[str, Any] = {"patch_size": 4, "width": 12, "depth": 2, "heads": 3}
    return VisionTransformer(image_size, **sizes | changes)


def deit(image_size: int = 12) -> dict[str, Tensor]:
    """Of a smaller picture, with a classifier."""
    torch.manual_seed(4)
    sizes: dict[str, Any] = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    model = timm.models.vision_transformer.VisionTransformer(image_size, num_classes=7, **sizes)
    return {key: torch.randn_like(value) for key, value in model.state_dict().items()}


def assert_vit(module: VisionTransformer, state: dict[str, Tensor]) -> None:
    ours = module.state_dict()
    assert ours.keys() == {key for key in state if not key.startswith("head.")}
    for key, value in ours.items():
        expected = interpolate_positions(state[key], 4) if key == "pos_embed" else state[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("layout", ["wrapped.pth", "bare.pth", "model.safetensors"])
def test_a_vit_with_a_classifier_and_another_grid(layout: str, tmp_path: Path) -> None:
    state, module = deit(), vit()
    content: Any = {"model": state} if layout == "wrapped.pth" else state
    (save_file if layout == "model.safetensors" else torch.save)(content, tmp_path / layout)
    report = load_vision(module, str(tmp_path / layout))
    assert_vit(module, state)
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert report.interpolated == ["pos_embed (1, 10, 12) -> (1, 17, 12)"]
    assert "interpolated: pos_embed" in str(report)


def test_the_vit_of_a_model_of_ours(tmp_path: Path) -> None:
    state, module = deit(image_size=16), vit()
    own = {key: value for key, value in state.items() if not key.startswith("head.")}
    whole = {f"encoders.visual_encoder.{key}": value for key, value in own.items()}
    whole["encoders.text_encoder.embeddings.word"] = torch.zeros(2, 12)
    torch.save({"state_dict": whole, "model": {}}, tmp_path / "last.ckpt")
    assert len(load_vision(module, str(tmp_path / "last.ckpt")).mapped) == len(own)
    assert_vit(module, state)

    torch.save({"state_dict": {"backbone.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    message = refusal(module, lambda: load_vision(module, str(tmp_path / "last.ckpt")))
    assert "last.ckpt is of a model without a vision transformer: give timm:NAME" in message


def test_a_vit_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    state, module = deit(), vit()
    message = refusal(module, lambda: load_vision(module, "timm:no_such_model"))
    assert "timm cannot provide 'no_such_model'" in message

    create_model = Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(timm, "create_model", create_model)
    message = refusal(module, lambda: load_vision(module, "timm:deit_base_patch16_224"))
    assert "(no route to host); without a network give a file" in message

    create_model.side_effect, create_model.return_value.state_dict.return_value = None, state
    load_vision(module, "timm:deit_base_patch16_224")
    create_model.assert_called_with("deit_base_patch16_224", pretrained=True)
    assert_vit(module, state)


def test_a_model_of_the_lower_layers_takes_those_alone(tmp_path: Path) -> None:
    lower = text(num_layers=2, cross_attention_from=None, context_width=None)
    path = folder(tmp_path / "bert", bert())
    with pytest.raises(CheckpointError, match=r"layer\.2\."):
        load_hugging_face(lower, path)
    report = load_hugging_face(lower, path, lower_layers=True)
    assert {key.split("layer.")[1][0] for key in report.dropped if "layer." in key} == {"2"}
    first = bert()["bert.encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(lower.layers[0].self_attention.query.weight, first)


def test_what_is_no_such_vit_is_refused(tmp_path: Path) -> None:
    module = vit()

    def refused(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "vit.pth")
        return refusal(module, lambda: load_vision(module, str(tmp_path / "vit.pth")))

    for name in ("none.pth", "none.safetensors"):
        message = refusal(module, lambda name=name: load_vision(module, str(tmp_path / name)))
        assert f"{name}: give timm:NAME, a file of ViT weights, or null" in message
    distilled = deit() | {"dist_token": torch.zeros(1, 1, 12), "pos_embed": torch.zeros(1, 11, 12)}
    message = refused(distilled)
    assert "dist_token" in message
    assert "10 position embeddings form no square grid" in message
    state = deit()
    del state["blocks.1.attn.qkv.bias"]
    assert "1 missing:\n  blocks.1.attn.qkv.bias" in refused(state)
    (tmp_path / "text.safetensors").write_text("no weights")
    message = refusal(module, lambda: load_vision(module, str(tmp_path / "text.safetensors")))
    assert "refused checkpoint" in message


def test_new_words_keep_their_rows_and_token_types_are_dropped(tmp_path: Path) -> None:
    """BLIP's two words behind those of BERT, in the embeddings and the bias of the prediction."""
    state = bert()
    longer = text(vocab_size=WORDS + 2, type_vocab_size=0)
    head = LanguageHead(WORDS + 2, WIDTH)
    with torch.no_grad():
        head.bias.fill_(5.0)
    before = longer.embeddings.word.weight.detach().clone()
    report = load_hugging_face(longer, folder(tmp_path / "bert", state), head, new_words=2)
    words = state["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(longer.embeddings.word.weight[:WORDS], words)
    assert torch.equal(longer.embeddings.word.weight[WORDS:], before[WORDS:])
    assert torch.equal(head.bias[:WORDS], state["cls.predictions.bias"])
    assert head.bias[WORDS:].tolist() == [5.0, 5.0]
    assert report.dropped["bert.embeddings.token_type_embeddings.weight"]
    with pytest.raises(CheckpointError, match="word_embeddings"):
        load_hugging_face(text(vocab_size=WORDS + 3), folder(tmp_path / "bert", state), None, 2)
