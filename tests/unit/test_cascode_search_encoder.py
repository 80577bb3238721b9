"""The encoder in numpy: its vectors are those of torch, and torch is not imported."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert_files import BERT, ROBERTA, Sizes, folder_of, random_state
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.folders import UNIXCODER
from methods.cascode.inference import SearchModel, load_search_model
from methods.cascode.search import encoder, models
from methods.cascode.search.encoder import PickledError, TextEncoder, gelu
from methods.cascode.search.models import DEFAULT, PACKAGE, Settings
from methods.cascode.search.store import SearchError
from shared.data.errors import CheckpointError

WORDS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sort", "list", "return", *"adf()xyz"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", UNIXCODER, *"abcdefgnorstu"],
}
KINDS = {
    "bert": ("hub, with constants", replace(BERT, vocab=16, positions=20)),
    "prefixed": ("BERT", replace(BERT, vocab=16, positions=20, heads=2)),
    "roberta": ("hub", replace(ROBERTA, vocab=18, positions=22, layers=3)),
}
TEXTS = ["sort a list", "", "f", "def f ( a ) return a " * 9, "a x y", "z z", "return f ( x )" * 2]
TORCH = "torch", "scipy", "lightning", "pytorch_lightning"


def model(path: Path, kind: str = "bert", seed: int = 0, **change: Any) -> Path:
    """A folder with random weights and a vocabulary; `change` is of sizes."""
    of, sizes = KINDS[kind]
    sizes = replace(sizes, **change)
    return with_words(folder_of(random_state(of, sizes, seed), sizes, path), sizes)


def with_words(folder: Path, sizes: Sizes) -> Path:
    if not sizes.after_pad:
        (folder / "vocab.txt").write_text("\n".join(WORDS["bert"]) + "\n")
        return folder
    numbers = {word: number for number, word in enumerate(WORDS["roberta"])}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def assert_equal(source: str | Path, texts: list[str], *pooled: Any) -> TextEncoder:
    """That both paths give the same; vectors of unit length differ by 1e-6 at most."""
    ours, theirs = TextEncoder(source, *pooled), load_search_model(source, "float32", *pooled)
    for name in ("name", "fingerprint", "dimension", "precision", "can_rerank"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("encode_queries", "encode_codes"):
        found, expected = getattr(ours, name)(texts), getattr(theirs, name)(texts)
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(found, expected, atol=5e-6, rtol=1e-5)
    return ours


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_torch(kind, pooling, normalize, tmp_path, monkeypatch):
    """Of texts of all lengths, in one batch or in several."""
    folder = model(tmp_path / "model", kind)
    ours = assert_equal(folder, TEXTS, pooling, normalize)
    assert (ours.tokenizer.mode == UNIXCODER) == (kind == "roberta")
    vectors = ours.encode_codes(TEXTS)
    monkeypatch.setattr(encoder, "POSITIONS", 30)
    np.testing.assert_allclose(ours.encode_codes(TEXTS), vectors, atol=5e-6, rtol=1e-5)
    done: list[int] = []
    ours.encode_codes(TEXTS, done.append)
    assert len(done) > 1
    assert sum(done) == len(TEXTS)
    assert ours.encode_queries([]).shape == (0, 8)


@pytest.mark.parametrize("form", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision(form, tmp_path):
    kind, sizes = KINDS["bert"]
    state = {
        key: value.to(form) if value.is_floating_point() else value
        for key, value in random_state(kind, sizes).items()
    }
    assert_equal(with_words(folder_of(state, sizes, tmp_path / "model"), sizes), TEXTS)


def test_weights_under_the_oldest_names(tmp_path):
    """And at places that are no multiple of four bytes."""
    kind, sizes = KINDS["bert"]
    before = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]
    state = random_state(kind, sizes)
    for today, oldest in before:
        state = {key.replace(today, oldest): value for key, value in state.items()}
    folder = with_words(folder_of(state, sizes, tmp_path / "model"), sizes)
    content = (path := folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little") + 1
    moved = content[8 : 7 + length] + b" " + content[7 + length :]
    path.write_bytes(length.to_bytes(8, "little") + moved)
    assert_equal(folder, TEXTS)


def test_the_packaged_model():
    try:
        metadata.distribution(DEFAULT.removeprefix(PACKAGE))
    except metadata.PackageNotFoundError:
        pytest.skip("the packaged model is not installed")
    codes = [f"def f{n}(path):\n    return read(path, {n}) " * (1 + 3 * n % 40) for n in range(40)]
    assert_equal(DEFAULT, ["retry a request with growing pauses", "", "Zäh ß 猫", *codes])


def test_a_fingerprint_is_of_all_that_changes_vectors(tmp_path):
    folder = model(tmp_path / "model")
    again = model(tmp_path / "again")
    others = [
        (model(tmp_path / "weights", seed=1),),
        (model(tmp_path / "heads", heads=2),),
        (folder, "cls"),
        (folder, "mean", False),
    ]
    words = model(tmp_path / "words")
    (words / "vocab.txt").write_text("\n".join([*WORDS["bert"], "more"]) + "\n")
    eps = model(tmp_path / "eps")
    config = json.loads((eps / "config.json").read_text())
    (eps / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    marks = [TextEncoder(*other).fingerprint for other in [(folder,), (words,), (eps,), *others]]
    assert len(set(marks)) == len(marks)
    assert marks[0] == TextEncoder(again).fingerprint
    assert len(marks[0]) == 16


def test_what_it_cannot_do(tmp_path):
    ours = TextEncoder(model(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="model cannot judge pairs: it has no second stage"):
        ours.score_pairs([("a", "f")])
    with pytest.raises(ValueError, match="pooling is one of mean, cls, pooler, got 'max'"):
        TextEncoder(tmp_path / "model", "max")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no folder of a model"):
        TextEncoder(tmp_path)


def test_light_models_are_loaded_where_that_is_possible(tmp_path, monkeypatch):
    folder = str(model(tmp_path / "model"))
    for precision in ("auto", "float32", "bfloat16"):
        assert isinstance(models.load(Settings(folder, precision), light=True), TextEncoder)
    assert isinstance(models.load(Settings(folder, "float32")), SearchModel)
    kind, sizes = KINDS["bert"]
    state = random_state(kind, sizes)
    pickled = with_words(folder_of(state, sizes, tmp_path / "old", pickled=True), sizes)
    with pytest.raises(PickledError, match=r"pytorch_model\.bin: .* by torch alone"):
        TextEncoder(pickled)
    light = models.load(Settings(str(pickled), "float32"), light=True)
    assert isinstance(light, SearchModel)
    assert light.fingerprint == load_search_model(pickled).fingerprint
    with pytest.raises(SearchError, match=r"no usable model: no checkpoint at .*none\.ckpt"):
        models.load(Settings(str(tmp_path / "none.ckpt")), light=True)
    with pytest.raises(SearchError, match="no usable model: pooling is one of"):
        models.load(Settings(folder, pooling="max"), light=True)


def test_a_query_without_torch(tmp_path):
    """Vectors come without it; what needs it says what to install."""
    script = f"""
import sys
sys.modules |= dict.fromkeys({TORCH!r})
import methods.cascode.search.query
from methods.cascode.search.models import Settings, load
from methods.cascode.search.store import SearchError
for folder in {[str(model(tmp_path / kind, kind)) for kind in KINDS]}:
    assert load(Settings(folder), light=True).encode_queries(["sort a list"]).shape == (1, 8)
try:
    load(Settings({str(tmp_path / "last.ckpt")!r}), light=True)
except SearchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "last.ckpt needs more than is installed" in done.stdout
    assert "torch" in done.stdout
    assert "pip install 'tenfold[train]'" in done.stdout


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_gelu_is_that_of_erf(values):
    _assert_gelu(np.array(values, np.float32))


def test_gelu_everywhere():
    _assert_gelu(np.linspace(-12, 12, 200_001, dtype=np.float32).reshape(3, -1))


def _assert_gelu(values: Any) -> None:
    inputs = values.astype(np.float64).ravel()
    expected = [x * math.erfc(-x / math.sqrt(2)) / 2 for x in inputs]
    found = gelu(values).ravel()
    assert (np.abs(found - expected) <= 2e-7 * np.maximum(1, np.abs(inputs))).all()
