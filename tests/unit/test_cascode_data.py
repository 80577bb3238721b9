"""CodeSearchData, AdvTest and CosQA: readers, bad files, splits, batches, ranks, resumption."""

import gzip
import json
import re
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.miniatures.synthetic_code import CODES, OPERATIONS, code
from methods.cascode.data import AdvTestData, CodeSearchData, CosQAData
from methods.cascode.readers import Reader, code_text, original_text, query_text
from methods.cascode.tokenizer import CodeTokenizer
from shared.data.errors import DataCorruptError, DataNotFoundError

LENGTHS = {"query": 12, "code": 32, "pair": 42}
LANGUAGES = ("python", "javascript")
WORDS = "sort a list of numbers def f ( x ) : return sorted open file"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    code(root, train=40, test=12, languages=LANGUAGES)
    return root


def corpus_data(corpus: Path, **changed: Any) -> CodeSearchData:
    given = {"tokenizer": str(corpus / "vocab.txt"), "lengths": LENGTHS, "batch_size": 8}
    return CodeSearchData(str(corpus), **given | {"pool_batches": 2} | changed)


def entry(number: int, query: str = "sort a list", source: str = "def f ( x ) :") -> Entry:
    return {
        "url": f"url{number}",
        "docstring_tokens": query.split(),
        "code_tokens": [*source.split(), f"x{number}"],
        "code": f'"""{query}"""',
        "original_string": f'"""{query}"""',
    }


def write_lines(path: Path, entries: Iterable[Entry | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in entries]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_lines(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def small(root: Path, **changed: Any) -> CodeSearchData:
    """Its files are written unless they are there."""
    parts = {"train": range(8), "valid": range(2), "test": range(2, 4), "codebase": range(6)}
    for part, numbers in parts.items():
        path = root / "python" / f"{part}.jsonl"
        if not path.exists():
            write_lines(path, [entry(n, f"query {n} of {part}") for n in numbers])
    return CodeSearchData(**arguments(root) | changed)


def arguments(root: Path) -> dict[str, Any]:
    """What every data module needs; writes its vocabulary."""
    (root / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = str(root / "vocab.txt")
    return {"root": str(root), "tokenizer": tokenizer, "lengths": LENGTHS, "batch_size": 4}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_texts_never_come_from_fields_with_the_documentation():
    given = entry(1, "sort a list", "def f")
    assert query_text(given) == "sort a list"
    assert code_text(given) == "def f x1"
    del given["code_tokens"]
    with pytest.raises(ValueError, match="'code_tokens' is nothing"):
        code_text(given)


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (query_text, {"docstring_tokens": ["a", " b\n", "c  d"], "doc": "x"}, "a b c d"),
        (query_text, {"docstring_tokens": "its own", "doc": "what\tone  asks "}, "what one asks"),
        (query_text, {"doc": "what people ask"}, "what people ask"),
        (query_text, {"docstring_tokens": "only a text"}, "only a text"),
        (code_text, {"code_tokens": ["f", "(", '"a\r\n b"', ")"]}, 'f ( "a b" )'),
        (code_text, {"code_tokens": ["f"], "function_tokens": ["Func", "("]}, "Func ("),  # AdvTest
        (code_text, {"code_tokens": "def f ( x ) :"}, "def f ( x ) :"),  # CosQA
    ],
)
def test_texts(text, given, expected):
    assert text(given) == expected


@pytest.mark.parametrize(
    ("language", "source", "expected"),
    [
        (
            "python",
            'def f(x, *a):\n    """Sorts."""\n    # quickly\n    return x.y==f"{a}  b"\n',
            'def f ( x , * a ) : return x . y == f"{a} b"',
        ),
        ("java", "/** S. */ int f() { a->b[1]; } // x", "int f ( ) { a -> b [ 1 ] ; }"),
        ("go", 'func F() string { return "// no" }', 'func F ( ) string { return "// no" }'),
    ],
)  # fmt: skip
def test_original_codes_are_read_without_comments(language, source, expected):
    assert original_text({"original_string": source, "language": language}) == expected


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"language": "python", "original_string": "def f(:\n  (\n"}, "is no python"),
        ({"language": "java", "original_string": "// nothing"}, "nothing but comments"),
        ({"language": 3, "original_string": "def f(): pass"}, "are no texts"),
        ({"language": "python", "original_string": ["def"]}, "are no texts"),
    ],
)
def test_an_original_code_that_cannot_be_read_is_counted(tmp_path, changed, problem):
    whole = {"language": "python", "original_string": "def f():\n    return 1\n"}
    path = write_lines(tmp_path / "a.jsonl", [entry(1) | whole, entry(2) | changed])
    urls, reader = read(path, codes="original")
    assert urls == ["url1"]
    assert reader.unusable == 1
    assert problem in reader.problem


@pytest.mark.parametrize("language", ["java", "python"])
@pytest.mark.parametrize("source", ['"' + '\\"' * 1_000_000, "'\\'" * 500_000, '"""' * 300_001])
def test_no_original_code_takes_long(language, source):
    start = time.monotonic()
    with suppress(ValueError):
        original_text({"original_string": f"x = {source[:9_900]}\n{source}", "language": language})
    assert time.monotonic() - start < 5


# --- files ---


def read(path: Path, *kinds: Any, **options: Any) -> tuple[list[str], Reader]:
    reader = Reader([path], kinds or ("query", "code"), **options)
    return [text.identity for text in reader], reader


def test_lines(tmp_path):
    """The last one may lack its end, if it is whole."""
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = write_lines(tmp_path / name, [entry(0), b"", entry(1), b"  "])
        assert read(path)[0] == ["url0", "url1"]
    path = write_lines(tmp_path / "b.jsonl", [entry(0), entry(1)])
    path.write_bytes(path.read_bytes()[:-1])
    assert read(path)[0] == ["url0", "url1"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"url": "u", "docstring_tokens": ["caf\xe9"]}', "not UTF-8"),
        (b'{"url": "u", "docstring', "no JSON"),
        (b"[1, 2]", "no object but list"),
        (b"null", "no object but NoneType"),
        (json.dumps(entry(0) | {"url": ""}).encode(), "its 'url' is ''"),
        (json.dumps(entry(0) | {"url": True}).encode(), "its 'url' is True"),
        (json.dumps({"docstring_tokens": ["a"]}).encode(), "its 'url' is None"),
        (json.dumps({"url": "u", "code_tokens": ["a"]}).encode(), "'docstring_tokens' is nothing"),
        (json.dumps(entry(0) | {"docstring_tokens": []}).encode(), "no word in its 'docstring_tok"),
        (json.dumps(entry(0) | {"docstring_tokens": [" "]}).encode(), "no word in its"),
        (json.dumps(entry(0) | {"docstring_tokens": [1]}).encode(), "is list, expected a list of"),
        (json.dumps(entry(0) | {"code_tokens": None}).encode(), "'code_tokens' is NoneType"),
        (json.dumps(entry(0) | {"code_tokens": ["\ud800"]}).encode(), "half a character"),
        (b"[" * 100_000, "no JSON|nested too deeply"),
    ],
)
def test_a_broken_line_is_left_out_and_named(tmp_path, line, problem):
    path = write_lines(tmp_path / "a.jsonl", [entry(1), line, entry(2), line])
    found, reader = read(path)
    assert found == ["url1", "url2"]
    assert (reader.total, reader.unusable) == (4, 2)
    assert reader.problem.startswith(f"{path}, line 2: ")
    assert re.search(problem, reader.problem), reader.problem


def test_only_what_is_wanted_must_be_there(tmp_path):
    """Candidates whose documentation was filtered out have none."""
    silent = {"url": "silent", "code_tokens": ["f"], "docstring_tokens": []}
    path = write_lines(tmp_path / "a.jsonl", [silent, {"url": "asked", "doc": "a query"}])
    assert read(path, "code")[0] == ["silent"]
    assert read(path, "query")[0] == ["asked"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_file_that_was_cut_off(tmp_path, name):
    """Even where one broken entry in a thousand would be accepted."""
    entries = [entry(n) for n in range(50)]
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
    else:
        write_lines(path, entries)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataCorruptError, match=rf"{name}.*cut off"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no entries"),
        ("a.jsonl", b"\n \n", "no entries"),
        ("a.jsonl.gz", b"plain text\n", "damaged or cut off"),
        ("a.json", b"{}", "expected a list of entries, got dict"),
        ("a.json", b"[]", "no entries"),
        ("a.json", b'["\xff"]', "not a text file"),
        ("a.txt", b"[]", "expected an object of codes, got list"),
    ],
)
def test_a_bad_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataCorruptError, match=f"{name}: .*{message}|{name}: {message}"):
        read(path)


# --- what is refused, and what is warned of ---


def test_a_small_share_of_broken_lines_is_warned_of(tmp_path):
    lines = [*[entry(n) for n in range(8)], b"{broken}"]
    path = write_lines(tmp_path / "python" / "train.jsonl", lines)
    warning = rf"1 of 9 entries are left out.*{path}, line 9: no JSON"
    for cache in (None, tmp_path, tmp_path):  # which forgets no problem
        kept = cache and str(cache / "cache")
        with pytest.warns(UserWarning, match=warning):
            assert len(small(tmp_path, max_corrupt=0.12, cache=kept).training) == 8
        with pytest.raises(DataCorruptError, match=r"1 of 9 entries.*max_corrupt=0\.1; .*line 9"):
            _ = small(tmp_path, max_corrupt=0.1, cache=kept).training
    write_lines(tmp_path / "python" / "train.jsonl", [b"{", b"{"])
    with pytest.raises(DataCorruptError, match=r"none of 2 entries is left.*line 1: no JSON"):
        _ = small(tmp_path, max_corrupt=1.0).training


def test_a_query_without_an_answer(tmp_path):
    write_lines(tmp_path / "python" / "test.jsonl", [entry(3), entry(77), entry(78)])
    data = small(tmp_path)
    with pytest.raises(DataCorruptError, match=r"2 of 3 queries have no answer.*'url77'.*allow_mi"):
        data.setup("test")
    (split,) = small(tmp_path, allow_missing=True).split("test")
    assert split.answers == [3, -1, -1]
    assert split.allow_missing
    (fine,) = data.split("val")
    assert not fine.allow_missing


def test_two_queries_of_one_url(tmp_path):
    write_lines(tmp_path / "python" / "valid.jsonl", [entry(3), entry(4), entry(3)])
    with pytest.raises(DataCorruptError, match=r"valid\.jsonl: 2 queries have url 'url3'"):
        small(tmp_path).setup("fit")


def test_several_candidates_of_one_url(tmp_path):
    """The first is named as the answer; ranking lets the best one count."""
    write_lines(tmp_path / "python" / "codebase.jsonl", [entry(n) for n in (9, 1, 0, 1, 3, 2)])
    (split,) = small(tmp_path).split("val")
    assert (split.query_urls, split.answers) == (["url0", "url1"], [2, 1])
    assert split.code_urls.count("url1") == 2


def test_missing_files(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"python not found.*data_root=DIR"):
        CodeSearchData(str(tmp_path / "none"), "none", LENGTHS, 4).setup("fit")
    data = small(tmp_path, languages=["python", "klingon"])
    with pytest.raises(DataNotFoundError, match=r"klingon not found.*has: python"):
        data.setup("fit")
    (tmp_path / "python" / "codebase.jsonl").unlink()
    again = CodeSearchData(str(tmp_path), str(tmp_path / "vocab.txt"), LENGTHS, 4)
    with pytest.raises(DataNotFoundError, match=r"codebase\.jsonl not found.*jsonl\.gz serves"):
        again.setup("test")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": {"query": 3, "code": 4}}, "keys query, code and pair"),
        ({"lengths": LENGTHS | {"query": 2}}, "length of 2 has no room"),
        ({"lengths": LENGTHS | {"pair": 4}}, "a pair needs room"),
        ({"batch_size": 9}, "larger than the training set"),
        ({"subset": 0}, "subset=0"),
        ({"subset": 9}, "subset=9 but there are 8"),
        ({"languages": []}, "languages lists each one once"),
        ({"languages": ["python", "python"]}, "languages lists each one once"),
        ({"filter": "none"}, "filter is graphcodebert or null"),
        ({"max_queries": {"valid": 3}}, "keys val and test, got valid"),
        ({"max_candidates": {"val": 1}}, "max_candidates=1 but there are 2 answers"),
        ({"mode": "<encoder-only>"}, "no token '<encoder-only>'"),
    ],
)
def test_bad_arguments_are_refused_before_training(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **changed).setup("fit")


def test_documentation_within_the_code_is_warned_of(tmp_path):
    """A query can be in a code by chance; in one of twenty it isn't."""
    query = "Sort a list of many numbers ."
    leaking = 'def f ( x ) : """Sort a list of many numbers.""" return sorted ( x )'
    entries = [entry(n, query, leaking if n < 2 else "def f") for n in range(8)]
    write_lines(tmp_path / "python" / "train.jsonl", entries)
    with pytest.warns(UserWarning, match=r"2 of 8 codes contain their query"):
        _ = small(tmp_path).training
    write_lines(tmp_path / "python" / "train.jsonl", [entry(n, "def f") for n in range(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = small(tmp_path).training  # too short a query to tell


# --- layouts ---


def test_published_archives(tmp_path):
    """Parts in folders; their candidates are all of valid and test."""
    for part, numbers in {"train": (0, 1), "valid": (2,), "test": (3,)}.items():
        for piece in numbers:
            path = tmp_path / "python/final/jsonl" / part / f"python_{part}_{piece}.jsonl.gz"
            write_lines(path, [entry(10 * piece + n, f"{part} {n} {piece}") for n in range(4)])
    data = CodeSearchData(**arguments(tmp_path))
    data.setup("fit")
    assert len(data.training) == 8
    (split,) = data.split("test")
    assert split.query_urls == [f"url{n}" for n in range(30, 34)]
    assert split.code_urls == [f"url{n}" for n in (*range(20, 24), *range(30, 34))]
    assert split.answers == [4, 5, 6, 7]


def test_filter_drops_queries_and_keeps_candidates(tmp_path):
    for part in ("train", "test", "codebase"):
        entries = [
            entry(n, "sort it" if n == 3 else f"Return the sorted list of number {n} .")
            for n in range(6)
        ]
        write_lines(tmp_path / "python" / f"{part}.jsonl", entries)
    cache = str(tmp_path / "cache")
    counts = []
    for rule in (None, "graphcodebert", None):  # the cache tells them apart
        data = small(tmp_path, filter=rule, cache=cache)
        (split,) = data.split("test")
        counts.append((len(data.training), len(split.queries), len(split.codes)))
    assert counts == [(6, 6, 6), (5, 5, 6), (6, 6, 6)]


def test_advtest(tmp_path):
    for part, start in {"train": 0, "valid": 10, "test": 20}.items():
        entries = []
        for n in range(start, start + 5):
            masked = entry(n, f"sort {n}")
            if part != "train":
                masked["function_tokens"] = ["def", "Func", f"arg_{n}"]
                del masked["code_tokens"]
            entries.append(masked | {"idx": n})
        write_lines(tmp_path / f"{part}.jsonl", entries)
    data = AdvTestData(**arguments(tmp_path))
    data.setup("fit")
    data.setup("test")
    (split,) = data.split("test")
    assert split.query_urls == split.code_urls == [f"url{n}" for n in range(20, 25)]
    assert split.answers == list(range(5))


def cosqa(root: Path, **changed: Any) -> CosQAData:
    """Two queries for each of four codes, whose documentation only the map has."""
    codes = [f'def f ( x ) :\n    """Doc {n}."""\n    return x{n}' for n in range(4)]
    names = {"train-8": range(8), "dev-2": range(2), "test-3": range(3)}
    for name, numbers in names.items():
        entries = [
            {
                "idx": f"cosqa-train-{n}",
                "doc": f"how to sort {n} python",
                "code": codes[n % 4],
                "code_tokens": f"def f ( x ) : return x{n % 4}",
                "docstring_tokens": f"Doc {n % 4} .",
                "label": int(n != 5),
                "retrieval_idx": n % 4 if name != "test-3" else 1,
            }
            for n in numbers
        ]
        (root / f"cosqa-retrieval-{name}.json").write_text(json.dumps(entries))
    index = {text: number for number, text in enumerate(codes)}
    (root / "code_idx_map.txt").write_text(json.dumps(index))
    return CosQAData(**arguments(root) | {"val_split": "dev"} | changed)


def test_cosqa(tmp_path):
    data = cosqa(tmp_path)
    data.setup("fit")
    assert len(data.training) == 7
    (split,) = data.split("test")
    assert split.query_urls == ["1", "1", "1"]
    assert split.code_urls == ["0", "1", "2", "3"]
    assert split.answers == [1, 1, 1]
    asked = data.tokenizer.encode(["how to sort 0 python"])
    assert split.queries[0] == asked[0]
    documented = data.tokenizer.encode(['def f ( x ) : """Doc 2.""" return x2'])
    assert split.codes[2] == documented[0]
    assert len(cosqa(tmp_path, only_matches=False).training) == 8


def test_cosqa_files_are_found_by_name(tmp_path):
    data = cosqa(tmp_path)
    (tmp_path / "cosqa-retrieval-dev-500.json").write_text("[]")
    with pytest.raises(DataNotFoundError, match=r"dev-2\.json, .*dev-500\.json match"):
        data.split("val")
    (tmp_path / "code_idx_map.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"code_idx_map\.txt not found"):
        data.split("test")


# --- training batches ---


def test_a_training_batch(corpus):
    data = corpus_data(corpus, pairs=True)
    data.setup("fit")
    lines = read_lines(corpus / "python" / "train.jsonl")
    tokenizer = data.tokenizer
    assert tokenizer.unknown_id not in data.training.codes.ids
    for batch in data.train_dataloader():
        for row, index in enumerate(batch["indices"].tolist()):
            for kind, key in (("query", "docstring_tokens"), ("code", "code_tokens")):
                (ids,) = tokenizer.encode([" ".join(lines[index][key])])
                assert batch[f"{kind}_tokens"][row] == ids
                kept = batch[f"{kind}_mask"][row].bool()
                single = tokenizer.single(ids, LENGTHS[kind])
                assert batch[f"{kind}_ids"][row][kept].tolist() == single
        assert batch["query_ids"].dtype == batch["code_mask"].dtype == torch.int64
        assert batch["code_mask"].any(dim=0).all(), "no column of padding only"
    assert "query_tokens" not in next(iter(corpus_data(corpus).train_dataloader()))


def test_texts_are_cut(corpus):
    """Tokens for pairs are kept as far as a pair can hold them."""
    data = corpus_data(corpus, pairs=True, lengths={"query": 5, "code": 10, "pair": 20})
    batch = next(iter(data.train_dataloader()))
    assert (batch["query_ids"].shape[1], batch["code_ids"].shape[1]) == (5, 10)
    assert max(map(len, batch["query_tokens"])) == 5
    assert max(map(len, batch["code_tokens"])) == 20
    (split,) = data.split("val")
    assert split.codes.lengths.max() == 20


def epoch_of(data: CodeSearchData, epoch: int = 0) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def test_every_pair_once_an_epoch(corpus):
    alone = epoch_of(corpus_data(corpus), 1)
    indices = torch.cat([batch["indices"] for batch in alone])
    assert sorted(indices.tolist()) == list(range(40))
    assert not same(alone[0], epoch_of(corpus_data(corpus), 2)[0])
    other = epoch_of(corpus_data(corpus, seed=1), 1)
    assert not all(same(a, b) for a, b in zip(alone, other, strict=True))


def on_rank(data: CodeSearchData, rank: int, world: int) -> CodeSearchData:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    return data


def test_ranks_share_batches(corpus):
    world = 2
    alone = epoch_of(corpus_data(corpus))
    ranks = [epoch_of(on_rank(corpus_data(corpus), rank, world)) for rank in range(world)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(batch["indices"], torch.cat([part["indices"] for part in parts]))
        assert {len(part["indices"]) for part in parts} == {8 // world}


def test_equal_queries_and_equal_codes_stay_apart(tmp_path):
    """Whatever their case: each of three queries four times, each of six codes twice."""
    queries = ["sort a list", "Sort a LIST", "sort a  list"]
    entries = [
        {
            "url": f"u{n}",
            "docstring_tokens": f"{queries[n % 3]} {n // 3 % 3}".split(),
            "code_tokens": ["def", f"f{n // 2}"],
        }
        for n in range(18)
    ]
    write_lines(tmp_path / "python" / "train.jsonl", entries)
    data = small(tmp_path, batch_size=2, pool_batches=4)
    data.setup("fit")
    numbers = [np.arange(18) // 3 % 3, np.arange(18) // 2]
    for epoch in range(6):
        for batch in epoch_of(data, epoch):
            for number in numbers:
                assert len(set(number[batch["indices"]])) == len(batch["indices"])


def test_subset_of_the_training_pairs(corpus):
    chosen = [
        {int(i) for batch in epoch_of(corpus_data(corpus, **changed)) for i in batch["indices"]}
        for changed in (
            {"subset": 16},
            {"subset": 16, "seed": 5},
            {"subset": 16, "subset_seed": 1},
            {"subset": 24},
        )
    ]
    assert list(map(len, chosen)) == [16, 16, 16, 24]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] < chosen[3]


def test_languages_are_trained_together_and_evaluated_one_by_one(corpus):
    data = corpus_data(corpus, languages=LANGUAGES)
    data.setup("fit")
    assert len(data.training) == 80
    splits = data.split("val")
    assert [split.language for split in splits] == list(LANGUAGES)
    python, javascript = splits
    assert list(python.codes) != list(javascript.codes)
    assert any(
        len({int(i) < 40 for i in batch["indices"]}) == 2 for batch in data.train_dataloader()
    )
    (alone,) = corpus_data(corpus, languages=["javascript"]).split("val")
    assert list(alone.codes) == list(javascript.codes)


# --- evaluation ---


@pytest.mark.parametrize("world", [1, 3, 30])
def test_evaluation_shows_every_text_once_over_all_ranks(corpus, world):
    data = corpus_data(corpus, languages=LANGUAGES, eval_batch_size=7)
    ranks = [list(on_rank(data, rank, world).test_dataloader()) for rank in range(world)]
    assert all(ranks), "each rank has a batch: Lightning would skip the evaluation of one without"
    batches = [batch for found in ranks for batch in found]
    expected = {
        (split.language, kind, place)
        for split in data.split("test")
        for kind, rows in (("query", split.queries), ("code", split.codes))
        for place in range(len(rows))
    }
    shown = [(b["language"], b["kind"], int(i)) for b in batches for i in b["indices"]]
    assert sorted(shown) == sorted(expected)
    assert max(len(batch["indices"]) for batch in batches) <= 7


def test_an_evaluation_batch(corpus):
    data = corpus_data(corpus, eval_batch_size=5)
    (split,) = data.split("val")
    longest: dict[str, int] = {}
    for batch in data.val_dataloader():
        rows = split.queries if batch["kind"] == "query" else split.codes
        for place, ids, mask in zip(batch["indices"], batch["ids"], batch["mask"], strict=True):
            single = data.tokenizer.single(rows[int(place)], LENGTHS[batch["kind"]])
            assert ids[mask.bool()].tolist() == single
            assert ids[~mask.bool()].unique().tolist() in ([], [data.tokenizer.pad_id])
        assert batch["mask"].shape[1] <= longest.get(batch["kind"], 99), "the longest come first"
        longest[batch["kind"]] = batch["mask"].shape[1]


def test_fixed_samples_of_a_split(corpus):
    limits = {"max_queries": {"val": 5}, "max_candidates": {"val": 9, "test": None}}
    (split,) = corpus_data(corpus, **limits).split("val")
    (again,) = corpus_data(corpus, seed=9, **limits).split("val")
    (other,) = corpus_data(corpus, subset_seed=1, **limits).split("val")
    (whole,) = corpus_data(corpus).split("val")
    assert (len(split.queries), len(split.codes)) == (5, 9)
    assert split.query_urls == again.query_urls != other.query_urls
    assert split.code_urls == again.code_urls
    assert [split.code_urls[answer] for answer in split.answers] == split.query_urls
    places = [whole.code_urls.index(url) for url in split.code_urls]
    assert places == sorted(places), "in the order of the file"
    assert [whole.codes[place] for place in places] == list(split.codes)
    (test,) = corpus_data(corpus, **limits).split("test")
    assert (len(test.queries), len(test.codes)) == (12, len(whole.codes))
    (more,) = corpus_data(corpus, max_queries={"val": 1000}).split("val")
    assert len(more.queries) == 12


def test_without_splits(corpus):
    data = corpus_data(corpus, val_split=None, test_split=None)
    data.setup("fit")
    data.setup("test")
    assert data.val_dataloader() == data.test_dataloader() == data.split("test") == []


def test_token_ids_are_made_once(corpus, tmp_path):
    cache = str(tmp_path / "cache")
    before = epoch_of(corpus_data(corpus, cache=cache))
    first = {path.name for path in Path(cache).iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodeTokenizer, "encode", None)  # may not be called
        assert all(map(same, epoch_of(corpus_data(corpus, cache=cache)), before))
    lengths = LENGTHS | {"query": 6}
    shorter = epoch_of(corpus_data(corpus, cache=cache, lengths=lengths))
    assert shorter[0]["query_ids"].shape[1] == 6
    assert len({path.name for path in Path(cache).iterdir()} - first) == 1


def test_another_vocabulary_or_file_of_the_same_name(tmp_path):
    """The official code reuses features by a file's name (docs/papers/cascode.md, section 10)."""
    cache = str(tmp_path / "cache")
    one = small(tmp_path, cache=cache).training.queries
    write_lines(tmp_path / "python" / "train.jsonl", [entry(n, "open a file") for n in range(4)])
    other = small(tmp_path, cache=cache).training.queries
    assert list(one) != list(other)
    vocabulary = str(tmp_path / "words.txt")
    Path(vocabulary).write_text("\n".join([*VOCABULARY[:5], *VOCABULARY[:4:-1]]) + "\n")
    third = small(tmp_path, cache=cache, tokenizer=vocabulary).training.queries
    assert list(other) != list(third)


def test_the_artificial_corpus_says_the_same_twice(corpus):
    seen: list[tuple[str, str]] = []
    for language in LANGUAGES:
        candidates = read_lines(corpus / language / "codebase.jsonl")
        urls = [e["url"] for e in candidates]
        assert len(set(urls)) == len(urls) == 30
        for part, size in {"train": 40, "valid": 12, "test": 12}.items():
            entries = read_lines(corpus / language / f"{part}.jsonl")
            assert len(entries) == size
            for given in entries:
                (operation,) = set(given["docstring_tokens"]) & set(OPERATIONS)
                assert OPERATIONS[operation] in given["code_tokens"]
                assert given["docstring"] not in " ".join(given["code_tokens"])
                assert given["docstring"] in given["original_string"]
                assert (given["url"] in urls) == (part != "train")
                seen.append((language, given["func_name"] + given["path"].split("/")[1]))
    assert len(set(seen)) == len(seen), "no two functions do the same"


def test_the_artificial_corpus_is_written_once(tmp_path):
    first = code(tmp_path, train=4, test=2)
    assert code(tmp_path, train=4, test=2) == first
    assert "python/codebase.jsonl" in first["synthetic-code"]["files"]
    for wrong in ({"train": 1}, {"train": 5000}, {"languages": ["cobol"]}):
        with pytest.raises(ValueError, match=r"functions|languages are"):
            code(tmp_path / "other", **wrong)  # type: ignore[arg-type]
    assert set(LANGUAGES) == set(CODES)
