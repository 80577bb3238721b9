"""The models that the search tool loads: folders, checkpoints of ours, and how soon."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bert_files
import numpy as np
import pytest
import torch
from bert_files import BERT, save_run
from torch import Tensor

from methods.cascode import official
from methods.cascode.folders import UNIXCODER
from methods.cascode.inference import SearchModel, load_search_model
from methods.cascode.losses import match_scores
from methods.cascode.module import Fast, Shared, Slow
from methods.cascode.official import load_searcher
from methods.cascode.scoring import pad
from methods.cascode.tokenizer import CodeTokenizer
from shared.checkpoints.reading import CheckpointError

TOKENS = "[PAD] [UNK] [CLS] [SEP] [MASK] sort a list def f ( ) return"
WORDS = TOKENS.split()
SIZES = replace(BERT, vocab=16, positions=20, heads=2, inner=12)
TEXT = bert_files.text(SIZES)
LENGTHS = {"query": 6, "code": 9, "pair": 14}
TEXTS = ["sort a list", "f", "def f ( a ) return a " * 4]


def folder_of(path: Path, words: list[str] = WORDS, seed: int = 1) -> Path:
    """A small BERT with its vocabulary."""
    torch.manual_seed(seed)
    state = official.export(Fast(text=TEXT))
    weights = {key.removeprefix("encoder."): value for key, value in state.items()}
    bert_files.folder_of(weights, SIZES, path)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    return path


def checkpoint_of(module: Any, tokenizer: CodeTokenizer, path: Path) -> Path:
    return save_run(module, path, tokenizer=tokenizer.state(), lengths=LENGTHS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "model")


def rows_of(tokenizer: CodeTokenizer, text: str, most: int) -> tuple[Tensor, Tensor]:
    return pad([tokenizer.single(tokenizer.encode([text])[0], most)], tokenizer.pad_id)


def test_vectors_of_a_folder_are_those_of_its_encoder(folder):
    """Whatever they were batched with; cut to what its positions hold."""
    model = load_search_model(folder, precision="float32")
    encoder, tokenizer = load_searcher(folder).eval(), CodeTokenizer(folder)
    vectors = model.encode_codes(TEXTS)
    assert (vectors.shape, model.dimension, vectors.dtype) == ((3, 8), 8, np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = encoder(*rows_of(tokenizer, text, 20))[0].detach().numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    np.testing.assert_allclose(model.encode_queries(TEXTS), vectors, atol=1e-6)


def test_a_folder_judges_no_pairs_and_its_pooling_is_asked_for(folder):
    model = load_search_model(folder, precision="float32")
    assert not model.can_rerank
    with pytest.raises(CheckpointError, match=r"model cannot judge pairs: it has no second stage"):
        model.score_pairs([("a", "f")])
    model = load_search_model(folder, precision="float32", pooling="cls", normalize=False)
    assert (model.encoder.pooling, model.encoder.normalize) == ("cls", False)
    assert not np.allclose(np.linalg.norm(model.encode_codes(TEXTS), axis=1), 1)


def test_a_vocabulary_of_unixcoder_gets_its_mode(tmp_path):
    words = [*WORDS, UNIXCODER]
    assert load_search_model(folder_of(tmp_path / "plain")).tokenizer.mode is None
    assert load_search_model(folder_of(tmp_path / "uni", words)).tokenizer.mode == UNIXCODER


def test_a_fingerprint_is_of_weights_tokeniser_and_lengths(folder, tmp_path):
    tokenizer, encoder = CodeTokenizer(folder), load_searcher(folder)

    def mark(encoder: Any = encoder, tokenizer: CodeTokenizer = tokenizer, **lengths: int) -> str:
        return SearchModel("m", encoder, tokenizer, LENGTHS | lengths, None, "float32").fingerprint

    other = folder_of(tmp_path / "other", seed=2)
    words = CodeTokenizer(folder_of(tmp_path / "words", [*WORDS, "more"]))
    assert mark() == mark(load_searcher(folder), CodeTokenizer(folder))
    marks = [mark(), mark(load_searcher(other)), mark(tokenizer=words), mark(query=5)]
    assert len(set(marks)) == 4


@pytest.mark.parametrize("form", [Slow, Shared])
def test_a_checkpoint_brings_tokeniser_lengths_and_judge(form, folder, tmp_path):
    tokenizer = CodeTokenizer(folder)
    torch.manual_seed(3)
    fast = checkpoint_of(Fast(text=TEXT), tokenizer, tmp_path / "fast.ckpt")
    module = form(text=TEXT, **({"fast": str(fast)} if form is Slow else {})).eval()
    path = checkpoint_of(module, tokenizer, tmp_path / "last.ckpt")
    model = load_search_model(path, precision="float32")
    assert model.can_rerank
    assert (model.lengths, model.tokenizer.state()) == (LENGTHS, tokenizer.state())
    first = load_search_model(fast if form is Slow else path, precision="float32")
    assert not np.allclose(first.encode_queries(TEXTS)[0], first.encode_queries(TEXTS)[1])
    np.testing.assert_array_equal(model.encode_queries(TEXTS), first.encode_queries(TEXTS))

    pairs = [(query, code) for query in TEXTS[:2] for code in TEXTS]
    scores = model.score_pairs(pairs)
    for (query, code), score in zip(pairs, scores, strict=True):
        ids, types = tokenizer.pair(*tokenizer.encode([query, code]), 14, 6)
        given = torch.tensor([ids]), torch.ones(1, len(ids)), torch.tensor([types])
        with torch.no_grad():
            expected = match_scores(module.classifier(module.encoder.first(*given)))
        assert float(score) == pytest.approx(expected.item(), abs=1e-6)


def test_bfloat16_is_close_and_the_head_stays_exact(folder, tmp_path):
    module = Shared(text=TEXT)
    path = checkpoint_of(module, CodeTokenizer(folder), tmp_path / "last.ckpt")
    exact = load_search_model(path, precision="float32")
    rough = load_search_model(path, precision="bfloat16")
    assert exact.fingerprint == rough.fingerprint
    assert rough.encoder.text.embeddings.word.weight.dtype == torch.bfloat16
    assert rough.judge is not None
    assert rough.judge[1].output.weight.dtype == torch.float32
    np.testing.assert_allclose(rough.encode_codes(TEXTS), exact.encode_codes(TEXTS), atol=0.05)


def test_a_missing_or_damaged_checkpoint(folder, tmp_path):
    path = tmp_path / "no.ckpt"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*no\.ckpt"):
        load_search_model(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="refused checkpoint"):
        load_search_model(path)
    slow = Slow(text=TEXT, fast=str(tmp_path / "gone.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        load_search_model(checkpoint_of(slow, CodeTokenizer(folder), tmp_path / "slow.ckpt"))


def test_a_query_waits_for_no_training_library(folder):
    """They take longer to import than all that a query needs; extraction needs no torch either."""
    script = f"""
import sys
import methods.cascode.extraction.trees
assert "torch" not in sys.modules
import methods.cascode.search.cli
from methods.cascode.search.models import Settings, load
load(Settings({str(folder)!r})).encode_queries(["sort a list"])
heavy = "pytorch_lightning", "lightning_fabric", "timm", "torchvision", "hydra", "wandb"
print(*(name for name in heavy if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
