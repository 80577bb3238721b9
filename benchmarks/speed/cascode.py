"""CasCode's two stages at work beside PyPI `sentence-transformers`, on the same weights."""

import json
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.speed.peer_environment import PeerPackage
from benchmarks.speed.protocol import Comparison, SpeedError

PEER = PeerPackage(
    requirement="sentence-transformers==6.2.0",
    dependencies=(
        "huggingface-hub",
        "numpy",
        "pyyaml",
        "regex",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tokenizers==0.23.3",
        "tqdm",
        "transformers==5.24.0",
        "typer",
    ),
)
OURS_MODULE = "benchmarks.speed.cascode_ours"
PEER_MODULE = "benchmarks.speed.cascode_peer"
MINILM = Path(__file__).resolve().parents[2] / "data" / "minilm"

SETTINGS: dict[str, Any] = {
    "judge": None,  # checkpoint of a `Slow` or `Shared` with MiniLM's tokens; none: a random head
    "lengths": {"query": 128, "code": 256, "pair": 384},  # tokens
    "texts": 1000,
    "encoded": 256,  # codes of a step
    "queries": {"10": 16, "100": 2},  # that are asked together, by K
    "batch_sizes": [16, 32, 64],  # of which the peer takes its fastest
    "compared": 32,
    "judged": 400,  # queries of both stages' mean reciprocal rank
    "seed": 0,
}
WARM_UP_STEPS = 1
UNIT = "codes"
NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}

HEADER = """\
code search in two stages, on all-MiniLM-L6-v2 (6 layers, width 384): vectors, and scores of pairs
peer: sentence-transformers 6.2.0, SentenceTransformer.encode and CrossEncoder.predict
texts: functions of Python's library without their documentation, whose first paragraphs are the
queries; at most 256 tokens of a code, 384 of a pair; making tokens of texts is part of the time
checked before timing, in float32: vectors and scores are equal, the mean reciprocal ranks (percent)
are the peer's but for 0.2; what bf16 costs in rank stands in the card
answers: ms per query, from text to order, of 16 (K 10) or 2 (K 100) queries that are asked together
what differs:
- batches of about as many tokens here; there of 16, 32 or 64 texts, what is fastest for a row
- pairs: the last layer computes the first token here, all tokens there
- ours keeps freed memory, on huge pages
- bf16: weights and layers in it, vectors and scores in float32"""

ENCODING = (
    Comparison("float32", "float32 encoding", "float32 encoding"),
    Comparison("bf16, peer float32", "bf16 encoding", "float32 encoding"),
    Comparison("bf16 on both sides", "bf16 encoding", "bf16 encoding"),
)
ANSWERING = (
    Comparison("K 10, float32", "float32 10", "float32 10"),
    Comparison("K 10, bf16, peer float32", "bf16 10", "float32 10"),
    Comparison("K 10, bf16 on both sides", "bf16 10", "bf16 10"),
    Comparison("K 100, float32", "float32 100", "float32 100"),
    Comparison("K 100, bf16, peer float32", "bf16 100", "float32 100"),
    Comparison("K 100, bf16 on both sides", "bf16 100", "bf16 100"),
)
EQUAL = {"vectors": 1e-5, "scores": 1e-4, "mean reciprocal ranks": 0.2}


def make_data(folder: Path, settings: dict[str, Any] = SETTINGS, minilm: Path = MINILM) -> Path:
    """Write both stages in Hugging Face's layout, and texts; returns `folder`.

    Args:
        minilm: where MiniLM is, or is put once it was fetched.
    """
    from benchmarks.miniatures.code import sources
    from methods.cascode.encoders import text_config
    from methods.cascode.module import Shared
    from methods.cascode.official import export, load_initial
    from shared.checkpoints.reading import load_module

    sources.minilm(minilm)
    torch.manual_seed(settings["seed"])
    judge: Any = Shared(text=text_config(minilm))
    load_initial(judge, minilm)
    searcher = judge.encoder
    if settings["judge"]:
        trained: Any = load_module(settings["judge"])
        searcher, judge.encoder, judge.classifier = (
            trained.searcher, trained.encoder, trained.classifier
        )  # fmt: skip
    slow = export(judge)
    judge.encoder = searcher
    fast = export(judge)
    encoder = {k.removeprefix("roberta."): v for k, v in fast.items() if k.startswith("roberta.")}
    write_model(folder / "fast", minilm, encoder, {"architectures": ["BertModel"]})
    # RoBERTa's head is what the classifier of a BERT is: its pooler, and a layer on that.
    names = {"roberta.": "bert.", "classifier.dense.": "bert.pooler.dense."}
    names |= {"classifier.out_proj.": "classifier."}
    classifier = {renamed(key, names): value for key, value in slow.items()}
    labels = {"id2label": {"0": "no match", "1": "match"}, "label2id": {"no match": 0, "match": 1}}
    form = {"architectures": ["BertForSequenceClassification"], **labels}
    write_model(folder / "slow", minilm, classifier, form)
    queries, codes = zip(*texts(settings["texts"], settings["seed"]), strict=True)
    (folder / "texts.json").write_text(json.dumps({"queries": queries, "codes": codes}))
    return folder


def write_model(
    folder: Path, minilm: Path, state: dict[str, Tensor], changes: dict[str, Any]
) -> None:
    """MiniLM's folder with other weights, and `changes` of its config."""
    folder.mkdir()
    for name in ("tokenizer.json", "vocab.txt"):
        shutil.copyfile(minilm / name, folder / name)
    config = json.loads((minilm / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(key: str, names: dict[str, str]) -> str:
    """The key with another beginning."""
    old = next(name for name in names if key.startswith(name))
    return names[old] + key.removeprefix(old)


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Queries and codes of so many functions of Python's library.

    Raises:
        SpeedError: it has fewer, as where it is installed without sources.
    """
    found: dict[str, str] = {}
    codes: set[str] = set()
    for query, code in library_functions():
        if query not in found and code not in codes:
            found[query] = code
            codes.add(code)
    if len(found) < count:
        raise SpeedError(f"{len(found)} functions in Python's library here, {count} are needed")
    return random.Random(seed).sample(sorted(found.items()), count)


def library_functions() -> Iterator[tuple[str, str]]:
    """First paragraph of the documentation, and code without it; of some length each.

    Words with brackets are special tokens to the peer, as "[SEP]", and text to us.
    """
    from methods.cascode.extraction import SourceError, functions

    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if NO_LIBRARY.intersection(path.relative_to(library).parts):
            continue
        try:
            found = functions(path.read_text(encoding="utf-8"), "python")
        except (SourceError, UnicodeDecodeError):
            continue
        for function in found:
            query = " ".join(function.documentation.split("\n\n")[0].split())
            code = " ".join(function.code.split())
            if 3 <= len(query.split()) <= 50 and len(code.split()) >= 5 and "[SEP]" not in code:
                yield query, code
