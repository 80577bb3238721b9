"""CasCode's speed comparison on a tiny encoder, without the peer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from benchmarks.speed import __main__ as speed
from benchmarks.speed import cascode
from benchmarks.speed.protocol import SpeedError
from methods.cascode import official
from methods.cascode.module import Shared
from methods.cascode.scoring import score_pairs
from shared.checkpoints.writing import AtomicCheckpointIO

SIZES = {
    "model_type": "bert", "vocab_size": 30, "max_position_embeddings": 40, "type_vocab_size": 2,
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
SPEC = speed.load("cascode")
SETTINGS = SPEC["settings"] | {
    "texts": 12, "encoded": 5, "queries": {"10": 3, "100": 2}, "compared": 4, "judged": 6,
    "lengths": {"query": 8, "code": 16, "pair": 20},
}  # fmt: skip


def library() -> Iterator[tuple[str, str]]:
    for n in range(20):
        query, code = f"w{n % 7} w{n} asks", f"def w{n} ( ) : return w{(3 * n) % 20} w{n}"
        yield query, code
        yield query, f"{code} again"  # the same question


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the data for settings; in place of MiniLM there is an encoder of width 8."""

    def tiny(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(SIZES))
        words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(26))]
        tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text("\n".join(words))
        torch.manual_seed(5)
        state = official.export(Shared(text=official.text_config(folder)))
        encoder = {k.removeprefix("roberta."): v for k, v in state.items() if "classifier" not in k}
        save_file(encoder, folder / "model.safetensors")

    monkeypatch.setattr(cascode.sources, "minilm", tiny)
    monkeypatch.setattr(cascode, "library_functions", library)
    (tmp_path / "data").mkdir()
    minilm = tmp_path / "minilm"

    def write(**changes: Any) -> Path:
        cascode.make_data(tmp_path / "data", SETTINGS | changes, minilm)
        return tmp_path / "data"

    return write


def ours(folder: Path, **changes: Any) -> cascode.Ours:
    return cascode.Ours(SETTINGS | {"threads": 1, "data": str(folder)} | changes)


def test_both_stages_in_hugging_faces_layout(data: Any, tmp_path: Path) -> None:
    """The peer reads them by its own means: names as BERT's classes have them."""
    folder = data()
    encoder = load_file(tmp_path / "minilm" / "model.safetensors")
    fast = load_file(folder / "fast" / "model.safetensors")
    slow = load_file(folder / "slow" / "model.safetensors")
    assert fast.keys() == encoder.keys()
    head = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"}
    assert slow.keys() == {f"bert.{key}" for key in fast} | head | {"classifier.bias"}
    for key, value in encoder.items():
        assert torch.equal(fast[key], value)
        assert torch.equal(slow[f"bert.{key}"], value)
    assert slow["classifier.weight"].shape == (2, 8)
    config = json.loads((folder / "slow" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 2
    assert (folder / "slow" / "tokenizer.json").is_file()


def test_texts_are_drawn_once_each(data: Any) -> None:
    texts = json.loads((data() / "texts.json").read_text())
    assert len(set(texts["queries"])) == len(set(texts["codes"])) == 12
    assert cascode.texts(12, 0) == list(zip(texts["queries"], texts["codes"], strict=True))
    assert cascode.texts(12, 1) != cascode.texts(12, 0)
    with pytest.raises(SpeedError, match="20 functions in Python's library here, 21 are needed"):
        cascode.texts(21, 0)


def test_functions_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test").mkdir()
    kept = 'def f(a):\n    """Adds one to it.\n\n    More."""\n    return a + 1\n'
    short = 'def g(a):\n    """Adds."""\n    return a + 1\n'
    special = 'def h(a):\n    """Adds a separator to it."""\n    return a + "[SEP]"\n'
    (tmp_path / "module.py").write_text(kept + short + special)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "test" / "module.py").write_text(kept)
    monkeypatch.setattr(cascode.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert list(cascode.library_functions()) == [("Adds one to it.", "def f(a): return a + 1")]


def test_our_side_searches_and_gives_its_values(data: Any) -> None:
    folder = data()
    side = ours(folder)
    assert side.describe()["images_per_step"] == 5
    values = side.values()
    assert values.keys() == SPEC["equal"].keys()
    assert len(values["vectors"]) == 2 * 4 * 8
    assert len(values["scores"]) == 4 * 4
    assert len(values["mean reciprocal ranks"]) == 1
    # The weights are given: the values are those of any other process.
    assert ours(folder).values() == values
    for variant in ("float32 encoding", "bf16 encoding", "float32 10", "bf16 10"):
        seconds, losses = side.run(variant, 2)
        assert min(seconds) > 0
        assert losses == [1.0, 1.0]


def test_a_trained_judge(data: Any, tmp_path: Path) -> None:
    """Its scores are those of its checkpoint, and both stages are compared by what they find."""
    data(judge=None)
    judge = Shared(text=official.text_config(tmp_path / "minilm"))
    for parameter in judge.state_dict().values():
        parameter.copy_(torch.randn(parameter.shape))
    checkpoint = {
        "_target_": "methods.cascode.module.Shared",
        "hyper_parameters": dict(judge.hparams),
        "state_dict": judge.state_dict(),
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "judge.ckpt")
    (tmp_path / "trained").mkdir()
    settings = SETTINGS | {"judge": str(tmp_path / "judge.ckpt")}
    cascode.make_data(tmp_path / "trained", settings, tmp_path / "minilm")
    side = ours(tmp_path / "trained", judge=settings["judge"])
    values, model = side.values(), side.model("float32")
    pairs = [(q, c) for q in side.queries[:4] for c in side.codes[:4]]
    tokens = [tuple(model.tokenizer.encode(pair)) for pair in pairs]
    found = score_pairs(
        judge.encoder.eval(), judge.classifier.eval(), model.tokenizer, tokens, 20, 8
    )  # type: ignore[arg-type]
    assert values["scores"] == pytest.approx(found.tolist(), abs=1e-4)
    first, both = values["mean reciprocal ranks"]
    assert 0 < first <= 100
    assert 0 < both <= 100
