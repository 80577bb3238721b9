"""Our code search: `SearchModel`, as the search tool uses it, and the order of `Cascade`.

What a variant does is "encoding", or the K of queries that are answered.
"""

import json
import random
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.miniatures.code import sources
from benchmarks.speed.cascode_peer import Search
from benchmarks.speed.protocol import SpeedError
from methods.cascode.extraction import SourceError, functions
from methods.cascode.folders import text_config
from methods.cascode.inference import Precision, SearchModel
from methods.cascode.model import PairHead
from methods.cascode.module import Shared
from methods.cascode.official import export, load_initial, load_searcher, read
from methods.cascode.ranking import Cascade, ranks, top_k
from methods.cascode.tokenizer import CodeTokenizer
from shared.checkpoints.reading import load_module
from shared.training.allocator import keep_freed_memory

MINILM = Path(__file__).resolve().parents[2] / "data" / "minilm"
NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
PRECISIONS: dict[str, Precision] = {"float32": "float32", "bf16": "bfloat16"}


class Ours(Search):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        keep_freed_memory()

    def networks(self) -> tuple[Any, Any, PairHead]:
        """The searcher, the judge's encoder and its head."""
        slow = self.folder / "slow"
        return load_searcher(self.folder / "fast"), load_searcher(slow), judging_head(slow)

    def parameters(self) -> Iterable[Tensor]:
        return [p for network in self.networks() for p in network.parameters()]

    def step(self, precision: str, what: str) -> Callable[[], float]:
        model = self.model(precision)
        if what == "encoding":
            codes = self.codes[: self.settings["encoded"]]
            return lambda: float(len(model.encode_codes(codes)) > 0)
        queries = self.queries[: self.settings["queries"][what]]
        index = torch.from_numpy(model.encode_codes(self.codes))
        return lambda: float(len(self.answers(model, index, queries, int(what))[0]) > 0)

    def model(self, precision: str) -> SearchModel:
        if precision not in self.models:
            searcher, encoder, head = self.networks()
            tokenizer, lengths = CodeTokenizer(self.folder / "fast"), self.settings["lengths"]
            self.models[precision] = SearchModel(
                "speed", searcher, tokenizer, lengths, (encoder, head), PRECISIONS[precision]
            )
        return self.models[precision]

    def answers(
        self, model: SearchModel, index: Tensor, queries: list[str], depth: int
    ) -> tuple[Tensor, Tensor]:
        """(Q, N) places of the codes, best first, and the rank of each query's own code."""
        scores = torch.from_numpy(model.encode_queries(queries)) @ index.T
        candidates = top_k(scores, depth)
        pairs = self.pairs(queries, candidates.tolist())
        judged = torch.from_numpy(model.score_pairs(pairs)).view(candidates.shape)
        order = Cascade(scores, candidates, judged)
        return order.ranking(), order.ranks(range(len(queries)), range(len(index)))

    def vectors(self, queries: list[str], codes: list[str]) -> list[Any]:
        model = self.model("float32")
        return [model.encode_queries(queries), model.encode_codes(codes)]

    def scores(self, pairs: list[Any]) -> list[float]:
        return self.model("float32").score_pairs(pairs).tolist()

    def ranks(self, judged: list[str]) -> list[list[int]]:
        queries, index = map(torch.from_numpy, self.vectors(self.queries, self.codes))
        scores = queries @ index.T
        found = [ranks(scores, range(len(scores)), range(len(index)))]
        if judged:
            found.append(self.answers(self.model("float32"), index, judged, 10)[1])
        return [of.tolist() for of in found]


def judging_head(folder: Path) -> PairHead:
    """What the classifier of a BERT is: its pooler, and a layer on that."""
    state = read(folder)
    weight = state["classifier.weight"]
    head = PairHead(weight.shape[1], dropout=0.0)
    head.dense.load_state_dict({n: state[f"bert.pooler.dense.{n}"] for n in ("weight", "bias")})
    head.output.load_state_dict({"weight": weight, "bias": state["classifier.bias"]})
    return head


def make_data(folder: Path, settings: dict[str, Any], minilm: Path = MINILM) -> None:
    """Write both stages in Hugging Face's layout, and texts; MiniLM is fetched to `minilm` once."""
    sources.minilm(minilm)
    torch.manual_seed(settings["seed"])
    judge: Any = Shared(text=text_config(minilm))
    load_initial(judge, minilm)
    searcher = judge.encoder
    if settings["judge"]:
        trained: Any = load_module(settings["judge"])
        searcher, judge.encoder = trained.searcher, trained.encoder
        judge.classifier = trained.classifier
    slow = export(judge)
    judge.encoder = searcher
    fast = export(judge)
    encoder = {k.removeprefix("roberta."): v for k, v in fast.items() if k.startswith("roberta.")}
    write_model(folder / "fast", minilm, encoder, {"architectures": ["BertModel"]})
    # RoBERTa's head is what the classifier of a BERT is: its pooler, and a layer on that.
    names = {"roberta.": "bert.", "classifier.dense.": "bert.pooler.dense."}
    names |= {"classifier.out_proj.": "classifier."}
    classifier = {
        new + key.removeprefix(old): value
        for key, value in slow.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    labels = {"id2label": {"0": "no match", "1": "match"}, "label2id": {"no match": 0, "match": 1}}
    form = {"architectures": ["BertForSequenceClassification"], **labels}
    write_model(folder / "slow", minilm, classifier, form)
    queries, codes = zip(*texts(settings["texts"], settings["seed"]), strict=True)
    (folder / "texts.json").write_text(json.dumps({"queries": queries, "codes": codes}))


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


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Queries and codes of so many functions of Python's library; SpeedError if it has fewer."""
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
    """First paragraph of the documentation, and code without it; of some length each, and without
    "[SEP]", which is a special token to the peer and text to us."""
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
