"""Batches of queries and codes, from files of CodeSearchNet, AdvTest and CosQA.

Shapes: B pairs, L tokens of the longest in a batch. Source: docs/papers/cascode.md, sections 3.1,
5.4 and 6.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.cascode.readers import (
    Accept,
    Codes,
    Encoded,
    Kind,
    Reader,
    code_search_net_files,
    encode_files,
    lines_file,
    named,
    only_file,
    query_tokens,
)
from methods.cascode.scoring import pad
from methods.cascode.tokenizer import CodeTokenizer, TokenRows
from shared.data.errors import DataCorruptError
from shared.data.loading.loader import EvaluationLoader, ResumableLoader, rank_and_world
from shared.data.text.length_buckets import LengthBuckets

Batch = dict[str, Any]
Stage = Literal["val", "test"]
Filter = Literal["graphcodebert"]


@dataclass(frozen=True)
class Split:
    """Q queries and N candidates of a language; a query's answers are the candidates of its url."""

    language: str
    queries: TokenRows  # without special tokens
    codes: TokenRows
    query_urls: list[str]
    code_urls: list[str]
    answers: list[int]  # (Q,) the first one, -1 if there is none
    allow_missing: bool  # whether there may be none


class CodeSearchData(pl.LightningDataModule):
    """Pairs to train on and splits to search in, from CodeSearchNet's layout.

    Training batch: `indices` (B,) int64, the pairs' numbers in the training set; `query_ids`,
    `query_mask`, `code_ids`, `code_mask` (B, L) int64; with `pairs` also `query_tokens` and
    `code_tokens`, `TokenRows` of B rows, to build pairs from. No two pairs of a batch have the same
    query or the same code, in lower case: each would be a false negative of the other. The codes of
    a batch are about equally long.

    Evaluation batch, of one language and kind: `kind`, "query" or "code"; `language`; `indices`
    (B,) int64, places in the `Split`; `ids`, `mask` (B, L) int64. The longest come first.

    Args:
        root: folder with <language>/{train,valid,test,codebase}.jsonl or .jsonl.gz, see
            `code_search_net_files`.
        lengths: tokens of a query, a code and a pair, special ones included.
        batch_size: pairs, total over all ranks. eval_batch_size: of one rank.
        languages: trained on together, evaluated one by one.
        subset: train on that many pairs, drawn with `subset_seed`; None for all.
        max_queries, max_candidates: at most so many in "val" and "test" of a language, drawn with
            `subset_seed`; candidates include all answers. None, or null for one of them, for all.
        codes: "tokens" as CodeSearchNet has them, which for Python include comments, or "original",
            those of the `original_string` without comments, as GraphCodeBERT.
        filter: "graphcodebert" leaves out queries as its authors do (docs/papers/cascode.md,
            section 6.2), and training pairs with them; candidates stay.
        allow_missing: accept queries whose url no candidate has; they count as not found.
        max_corrupt: share of entries that can't be used beyond which a run stops.
        pool_batches: batches that are sorted by length together; 1 takes pairs as they come.
        cache: folder that keeps token ids; None keeps none.
        val_split, test_split: names of files; None goes without.
    """

    identity: ClassVar[str] = "url"
    codes_have_one_query: ClassVar[bool] = True  # within a split

    def __init__(
        self,
        root: str,
        tokenizer: str,
        lengths: Mapping[str, int],
        batch_size: int,
        languages: Sequence[str] = ("python",),
        mode: str | None = None,
        pairs: bool = False,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        subset: int | None = None,
        subset_seed: int = 0,
        max_queries: Mapping[str, int | None] | None = None,
        max_candidates: Mapping[str, int | None] | None = None,
        filter: Filter | None = None,
        codes: Codes = "tokens",
        allow_missing: bool = False,
        max_corrupt: float = 0.01,
        pool_batches: int = 20,
        cache: str | None = None,
        val_split: str | None = "valid",
        test_split: str | None = "test",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # those of a subclass as well
        self._h: Any = self.hparams
        self.lengths = dict(lengths)
        if set(self.lengths) != {"query", "code", "pair"}:
            raise ValueError(f"lengths has keys query, code and pair, got {self.lengths}")
        if filter is not None and filter not in get_args(Filter):
            raise ValueError(f"filter is {', '.join(get_args(Filter))} or null, got {filter!r}")
        if codes not in get_args(Codes):
            raise ValueError(f"codes is {' or '.join(get_args(Codes))}, got {codes!r}")
        for name in ("max_queries", "max_candidates"):
            if unknown := set(self._h[name] or {}) - set(get_args(Stage)):
                raise ValueError(f"{name} has keys val and test, got {', '.join(unknown)}")
        if not languages or len(set(languages)) < len(languages):
            raise ValueError(f"languages lists each one once, got {list(languages)}")
        self._encoded: dict[tuple[Any, ...], Encoded] = {}
        self._splits: dict[Stage, list[Split]] = {}

    def training_files(self, language: str) -> list[Path]:
        """Files of queries with their codes."""
        return code_search_net_files(Path(self._h.root), language, "train")

    def evaluation_files(self, language: str, name: str) -> tuple[list[Path], list[Path]]:
        """Files of queries and files of candidates."""
        root = Path(self._h.root)
        asked = code_search_net_files(root, language, name)
        return asked, code_search_net_files(root, language, "codebase")

    def chosen(self) -> tuple[str, Accept] | None:
        """Which training pairs and queries are used, as `encode_files` takes it; None: all."""
        if self._h.filter is None:
            return None
        from methods.cascode.cleaning import query_problem

        return self._h.filter, lambda entry: query_problem(query_tokens(entry)) is None

    @cached_property
    def tokenizer(self) -> CodeTokenizer:
        return CodeTokenizer(self._h.tokenizer, self._h.mode)

    @cached_property
    def training(self) -> "TrainingPairs":
        """The training pairs of all languages, after `subset`."""
        h = self._h
        files = [self.training_files(language) for language in h.languages]
        parts = [self._texts(paths, "query", "code") for paths in files]
        kinds = get_args(Kind)
        queries, codes = (TokenRows.joined([p.tokens[kind] for p in parts]) for kind in kinds)
        numbers = [np.concatenate([part.numbers[kind] for part in parts]) for kind in kinds]
        if h.subset is not None and not 0 < h.subset <= len(queries):
            raise ValueError(f"subset={h.subset} but there are {len(queries)} training pairs")
        members = _drawn(len(queries), h.subset, h.subset_seed, 0x5B5)
        texts = queries, codes, numbers, members
        return TrainingPairs(self.tokenizer, self.lengths, *texts, h.pairs)

    def split(self, stage: Stage) -> list[Split]:
        """What validation ("val") or the test searches in, by language; none without a split."""
        if (name := self._h[f"{stage}_split"]) is not None and stage not in self._splits:
            languages = self._h.languages
            self._splits[stage] = [self._split(language, name, stage) for language in languages]
        return self._splits.get(stage, [])

    def texts(self, stage: Stage) -> list[tuple[list[str], list[str]]]:
        """Queries and candidates of each split in its order, as the files have them."""
        found = []
        for split in self.split(stage):
            name = self._h[f"{stage}_split"]
            asked, answering = self.evaluation_files(split.language, name)
            queries = {t.identity: t.query for t in Reader(asked, ["query"], self.identity)}
            reader = Reader(answering, ["code"], self.identity, codes=self._h.codes)
            codes = {text.identity: text.code for text in reader}
            found.append(
                ([queries[u] for u in split.query_urls], [codes[u] for u in split.code_urls])
            )
        return found

    def setup(self, stage: str) -> None:
        """Read the files and check sizes: bad input is refused before training."""
        if stage == "fit":
            next(self._schedule().batches(0))
        self.split("test" if stage == "test" else "val")
        for kind in ("query", "code"):
            self.tokenizer.single((), self.lengths[kind])
        self.tokenizer.pair((), (), self.lengths["pair"], self.lengths["query"])

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.training, self._schedule(), self._h.num_workers)

    def val_dataloader(self) -> EvaluationLoader | list:
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationLoader | list:
        return self._evaluation("test")

    def _schedule(self) -> LengthBuckets:
        h, pairs = self._h, self.training
        return LengthBuckets(
            pairs.codes.lengths[pairs.members],
            h.batch_size,
            h.seed,
            [numbers[pairs.members] for numbers in pairs.numbers],
            h.pool_batches,
            *rank_and_world(self),
        )

    def _evaluation(self, stage: Stage) -> EvaluationLoader | list:
        splits = self.split(stage)
        if not splits:
            return []
        rank, world = rank_and_world(self)
        # A rank without a batch would skip the end of the evaluation, where the others wait for it.
        texts = sum(len(split.queries) + len(split.codes) for split in splits)
        size = max(1, min(self._h.eval_batch_size, texts // world))
        batches = SplitBatches(self.tokenizer, self.lengths, splits, size)
        # What the loader counts and shares among ranks are whole batches here.
        return EvaluationLoader(batches, len(batches), 1, self._h.num_workers, rank, world)

    def _split(self, language: str, name: str, stage: Stage) -> Split:
        h = self._h
        asked, answering = self.evaluation_files(language, name)
        queries, codes = self._texts(asked, "query"), self._texts(answering, "code")
        url, times = Counter(queries.urls).most_common(1)[0]
        if self.codes_have_one_query and times > 1:
            raise DataCorruptError(f"{named(asked)}: {times} queries have {self.identity} {url!r}")
        most = (h.max_queries or {}).get(stage)
        chosen = _drawn(len(queries.urls), most, h.subset_seed, 0x9E7)
        query_urls = [queries.urls[place] for place in chosen]
        available = set(codes.urls)
        missing = [url for url in query_urls if url not in available]
        if missing and not h.allow_missing:
            lacking = f"{len(missing)} of {len(query_urls)} queries have no answer"
            raise DataCorruptError(
                f"{named(asked)}: {lacking} in {named(answering)}, the first is {missing[0]!r}. "
                "Add their codes, or set allow_missing=true to count them as not found"
            )
        most = (h.max_candidates or {}).get(stage)
        places = self._candidates(set(query_urls), codes.urls, most)
        code_urls = [codes.urls[place] for place in places]
        first = {url: place for place, url in reversed(list(enumerate(code_urls)))}
        return Split(
            language,
            queries.tokens["query"].take(chosen),
            codes.tokens["code"].take(places),
            query_urls,
            code_urls,
            [first.get(url, -1) for url in query_urls],
            h.allow_missing,
        )

    def _candidates(
        self, asked: set[str], urls: Sequence[str], most: int | None
    ) -> NDArray[np.int64]:
        """All answers, and others drawn up to `most` in all, in the order of the file."""
        if most is None or most >= len(urls):
            return np.arange(len(urls))
        is_answer = np.array([url in asked for url in urls])
        answers, others = np.flatnonzero(is_answer), np.flatnonzero(~is_answer)
        if len(answers) > most:
            found = f"max_candidates={most} but there are {len(answers)} answers"
            raise ValueError(f"{found}: raise it or lower max_queries")
        drawn = _drawn(len(others), most - len(answers), self._h.subset_seed, 0xC0D)
        return np.sort(np.concatenate([answers, others[drawn]]))

    def _texts(self, files: Sequence[Path], *kinds: Kind) -> Encoded:
        place = *files, *kinds
        if place not in self._encoded:
            longest = max(self.lengths["code"], self.lengths["pair"])
            kept: dict[Kind, int] = {"query": self.lengths["query"], "code": longest}
            chosen = self.chosen() if "query" in kinds else None
            limits = self._h.max_corrupt, self._h.cache, self._h.codes
            self._encoded[place] = encode_files(
                files, kinds, self.tokenizer, kept, self.identity, chosen, *limits
            )
        return self._encoded[place]


class AdvTestData(CodeSearchData):
    """CodeXGLUE's AdvTest: `root`/{train,valid,test}.jsonl, Python, names masked in valid and test.

    The candidates of a split are its own codes; `languages` stays as it is. Names of files and keys
    are those of the repository's README and scripts. Not verified, since the files can't be had
    here: which key names the tokens in which split, and that no url is asked twice.
    Source: microsoft/CodeXGLUE `Text-Code/NL-code-search-Adv`.
    """

    def training_files(self, language: str) -> list[Path]:
        return [lines_file(Path(self._h.root), "train")]

    def evaluation_files(self, language: str, name: str) -> tuple[list[Path], list[Path]]:
        files = [lines_file(Path(self._h.root), name)]
        return files, files


class CosQAData(CodeSearchData):
    """CosQA: `root`/cosqa-retrieval-{train,dev,test}-*.json and code_idx_map.txt, Python.

    Queries are what people typed (`doc`); several of them ask for one code (`retrieval_idx`).
    Candidates of both splits are all codes of the map; these still have their documentation, unlike
    the codes trained on, as in the official script. Names and keys were checked on the published
    dev file and map. Not verified: the content of the training file.
    Source: Jun-jie-Huang/CoCLR `data/search`; microsoft/CodeBERT@c0de43d
    `UniXcoder/downstream-tasks/code-search/run.py:TextDataset`.

    `only_matches` uses entries of `label` 1 only. The official script trains on those that people
    found not to match, too (CodeBERT issue 220). `languages` stays as it is.
    """

    identity = "retrieval_idx"
    codes_have_one_query = False

    def __init__(self, only_matches: bool = True, **base: Any) -> None:
        super().__init__(**base)

    def training_files(self, language: str) -> list[Path]:
        return [only_file(Path(self._h.root), "cosqa-retrieval-train-*.json")]

    def evaluation_files(self, language: str, name: str) -> tuple[list[Path], list[Path]]:
        root = Path(self._h.root)
        asked = only_file(root, f"cosqa-retrieval-{name}-*.json")
        return [asked], [only_file(root, "code_idx_map.txt")]

    def chosen(self) -> tuple[str, Accept] | None:
        if not self._h.only_matches:
            return None
        return "label 1", lambda entry: entry.get("label") == 1


@dataclass(frozen=True)
class TrainingPairs:
    """Makes training batches of N queries and codes, see `CodeSearchData`."""

    tokenizer: CodeTokenizer
    lengths: Mapping[str, int]
    queries: TokenRows
    codes: TokenRows
    numbers: Sequence[NDArray[np.int64]]  # of queries and codes, each (N,): equal for equal texts
    members: NDArray[np.int64]  # (M,) the pairs that are trained on; batches are places in it
    pairs: bool  # batches hold tokens

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, places: NDArray[np.int64]) -> Batch:
        indices = self.members[places]
        batch: Batch = {"indices": torch.from_numpy(indices)}
        for kind, rows in (("query", self.queries), ("code", self.codes)):
            tokens = rows.take(indices)
            ids, mask = _padded(self.tokenizer, tokens, self.lengths[kind])
            batch |= {f"{kind}_ids": ids, f"{kind}_mask": mask}
            if self.pairs:
                batch[f"{kind}_tokens"] = tokens
        return batch


class SplitBatches:
    """Makes evaluation batches of at most `size` texts from their numbers, see `CodeSearchData`."""

    def __init__(
        self, tokenizer: CodeTokenizer, lengths: Mapping[str, int], splits: list[Split], size: int
    ) -> None:
        self.tokenizer, self.lengths = tokenizer, lengths
        self._batches: list[tuple[str, str, TokenRows, NDArray[np.int64]]] = []
        for split in splits:
            for kind, rows in (("query", split.queries), ("code", split.codes)):
                order = np.argsort(-rows.lengths, kind="stable")
                for start in range(0, len(order), size):
                    places = order[start : start + size]
                    self._batches.append((split.language, kind, rows, places))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitems__(self, numbers: NDArray[np.int64]) -> Batch:
        (number,) = numbers
        language, kind, rows, places = self._batches[number]
        ids, mask = _padded(self.tokenizer, rows.take(places), self.lengths[kind])
        indices = torch.from_numpy(places)
        return {"language": language, "kind": kind, "indices": indices, "ids": ids, "mask": mask}


def _padded(tokenizer: CodeTokenizer, rows: TokenRows, length: int) -> tuple[Tensor, Tensor]:
    return pad([tokenizer.single(ids, length) for ids in rows], tokenizer.pad_id)


def _drawn(size: int, count: int | None, seed: int, purpose: int) -> NDArray[np.int64]:
    """`count` sorted numbers of range(size); all for None or if there are no more."""
    if count is None:
        return np.arange(size)
    return np.sort(np.random.default_rng([seed, purpose]).permutation(size)[:count])
