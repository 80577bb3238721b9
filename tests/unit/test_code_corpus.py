"""The corpus of functions: what packages give, what is left out, and that nothing leaks."""

import copy
import gzip
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.miniatures.code import sources, splitting
from benchmarks.miniatures.code.sources import corpus
from benchmarks.miniatures.code.splitting import CorpusError, check, split, without_duplicates
from benchmarks.miniatures.code.wheels import licence, problem, source_files
from methods.cascode.cleaning import query_problem, query_tokens
from methods.cascode.extraction import functions
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.packages import Package, read_member
from shared.data.packages import wheel as pinned_wheel

FIELDS = [
    *("repo", "path", "func_name", "original_string", "language", "code", "code_tokens"),
    *("docstring", "docstring_tokens", "sha", "partition", "url"),
]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "code"
SPLITS = ("train", "valid", "test", "codebase")


def source(name: str, documentation: str = "", words: str = "") -> str:
    """A function with enough identifiers, unlike those of other `words`."""
    documentation = documentation or f"Return the {name} of this thing."
    w = [f"{words or name}_{i}" for i in range(8)]
    return (
        f'def {name}(first, second):\n    """{documentation}"""\n'
        f"    {w[0]} = first.{w[1]}({w[2]})  # comment\n    {w[3]} = second.{w[4]}({w[5]})\n"
        f"    return {w[6]}({w[3]}, {w[7]})\n"
    )


def wheel(folder: Path, name: str, files: Mapping[str, str | bytes], about: str = "") -> Package:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = about or f"Name: {name}\nAuthor: The {name} people\nLicense-Expression: MIT\n"
    with zipfile.ZipFile(path, "w") as content:
        for member, text in files.items():
            content.writestr(zipfile.ZipInfo(member), text)
        content.writestr(zipfile.ZipInfo(f"{name}-1.0.dist-info/METADATA"), f"{about}\nText")
        content.writestr(
            zipfile.ZipInfo(f"{name}-1.0.dist-info/licenses/LICENSE"), f"Terms of {name}."
        )
    return pinned_wheel(path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five packages, each with six functions of its own, as the pinned list; returns its folder."""
    shared = source("copied", words="same")
    entries = []
    for n, name in enumerate("abcde"):
        files = {
            f"{name}/one.py": "".join(source(f"{name}{i}") for i in range(3)) + shared,
            f"{name}/two.py": "".join(source(f"{name}{i}") for i in range(3, 6)),
            f"{name}/tests/three.py": source("unseen"),
        }
        made = wheel(tmp_path / "wheels", name, files)
        entries.append({"archive": made.archive, "sha256": made.sha256, "pairs": 6, "small": n < 4})
    content = {
        "pinned": "2026-11-25",
        "targets": {"test": 7, "valid": 6},
        "families": [["b", "a"]],
        "packages": entries,
    }
    (tmp_path / "packages.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("TENFOLD_SOURCES", str(tmp_path / "wheels"))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "load", lambda: splitting.load(tmp_path / "packages.yaml"))
    return tmp_path


def read(root: Path) -> dict[str, list[dict[str, Any]]]:
    splits = {}
    for name in SPLITS:
        with gzip.open(root / "python" / f"{name}.jsonl.gz", "rt") as file:
            splits[name] = [json.loads(line) for line in file]
    return splits


def test_files_of_the_corpus(packages):
    provenance = corpus(packages / "out", "full")
    splits = read(packages / "out")
    rows = splits["train"] + splits["codebase"]
    assert len(rows) == 5 * 6 + 1  # the copied function once
    for row in rows:
        assert list(row) == FIELDS
        assert row["language"] == "python"
        assert row["sha"] == ""
        archive = packages / "wheels" / f"{row['repo']}-1.0-py3-none-any.whl"
        text = read_member(archive, row["path"]).decode().split("\n")
        first, last = (int(part[1:]) for part in row["url"].partition("#")[2].split("-"))
        assert "\n".join(text[first - 1 : last]) == row["original_string"]
        assert row["url"] == f"pypi://{archive.name}/{row['path']}#L{first}-L{last}"
        assert "comment" in row["code"]
        assert "comment" not in " ".join(row["code_tokens"])
        assert row["docstring_tokens"] == query_tokens(row["docstring"])
    urls = {name: {row["url"] for row in splits[name]} for name in SPLITS}
    assert urls["codebase"] == urls["valid"] | urls["test"]
    assert {name: {row["partition"] for row in splits[name]} for name in SPLITS} == {
        "train": {"train"}, "valid": {"valid"}, "test": {"test"}, "codebase": {"valid", "test"}
    }  # fmt: skip
    assert [row["repo"] for row in rows if row["func_name"] == "copied"] == ["a"]
    assert set(provenance["code-python"]["files"]) == {
        *(f"python/{name}.jsonl.gz" for name in SPLITS),
        "python/manifest.json",
        "python/NOTICE.md",
    }


def test_manifest_and_notice_account_for_everything(packages):
    corpus(packages / "out", "full")
    folder = packages / "out" / "python"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"duplicate": 4, "file: test": 5, "files": 15, "functions": 35}
    assert {p["name"]: p["without duplicates"] for p in manifest["packages"]} == {
        "a": 7, "b": 6, "c": 6, "d": 6, "e": 6
    }  # fmt: skip
    assert sum(p["written"] for p in manifest["packages"]) == 31
    assert {p["licence"] for p in manifest["packages"]} == {"MIT"}
    assert sum(manifest["splits"][name] for name in ("train", "codebase")) == 31
    notice = (folder / "NOTICE.md").read_text()
    for name in "abcde":
        assert f"- {name} 1.0 by The {name} people: MIT\n" in notice
        assert f"## {name}\n\nTerms of {name}.\n" in notice


def test_a_package_keeps_its_partition_in_the_small_profile(packages):
    built = corpus(packages / "small")
    assert corpus(packages / "again") == built, "byte by byte"
    corpus(packages / "full", "full")
    small, full = (read(packages / name) for name in ("small", "full"))
    repos = {name: {row["repo"] for row in full[name]} for name in SPLITS}
    for name in SPLITS:
        assert {row["repo"] for row in small[name]} == repos[name] - {"e"}
    with pytest.raises(DataCorruptError, match="profile='small' instead of 'full'"):
        corpus(packages / "small", "full")
    with pytest.raises(ValueError, match="'tiny': choose one of small, full"):
        corpus(packages / "tiny", "tiny")


def test_a_licence_outside_the_list_stops_the_build(packages, monkeypatch):
    monkeypatch.setattr(sources, "PERMISSIVE", {"BSD-3-Clause"})
    with pytest.raises(ValueError, match=r"a: licence 'MIT' .* out of packages.yaml"):
        corpus(packages / "out")
    assert not (packages / "out" / "python").exists()


def one(text: str) -> tuple[Any, list[str]]:
    (function,) = functions(text, "python")
    return function, query_tokens(function.documentation)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (source("fine"), None),
        ("class A:\n" + "".join(f"    {x}\n" for x in source("fine").splitlines()), None),
        ("def f(a):\n    b = a\n    return b\n", "undocumented"),
        ('def f(a: {1: 2}) -> d[1:2]:\n    "Do it for a."\n    raise E(a)\n    # x\n', "no body"),
        ('def f():\n    "Do it for a."\n', "no body"),
        ('def f():\n    "Do it for a."\n    pass\n    return 1\n    # x\n', "no body"),
        ('def f(a):\n\n    "Do it for a."\n\n    return a\n', "few lines"),
        (source("Latest"), "name"),
        (source("__len__"), "name"),
        (source("f", "Close."), "query: short"),
        (source("f", "Ouvre et lit ce fichier"), "query: language"),
    ],
)
def test_what_of_a_python_function_leaves_it_out(text, reason):
    assert problem(*one(text)) == reason


def test_source_files_of_a_wheel(tmp_path):
    kept = ["a/b.py", "a/latex.py", "a/extension.py"]
    problems = {
        "a/Tests/c.py": "test",
        "a/latest.py": "test",
        "a/_vendor/d.py": "vendored",
        "a/external/e.py": "vendored",
        "extern/f.py": "vendored",
        "a/g.py": "not UTF-8",
    }
    texts = {path: b"\xff" if path == "a/g.py" else b"x = 1" for path in [*kept, *problems]}
    made = wheel(tmp_path, "a", {**texts, "a/data.txt": ""})
    found = {path: tuple(rest) for path, *rest in source_files(tmp_path / made.archive)}
    assert list(found) == sorted(texts)
    assert found == {
        **dict.fromkeys(kept, ("x = 1", None)),
        **{path: ("", reason) for path, reason in problems.items()},
    }


@pytest.mark.parametrize(
    ("about", "name", "holder"),
    [
        ("License-Expression: MIT\nLicense: GPL\nAuthor-email: a@b", "MIT", "a@b"),
        (
            "Classifier: Topic :: X\nClassifier: License :: OSI Approved :: Apache Software License"
            "\nClassifier: License :: OSI Approved :: BSD License\nLicense: x\n"
            "Maintainer: M <m@n>, O <o@p>",
            "Apache-2.0",
            "M, O",
        ),
        ("Classifier: License :: OSI Approved :: BSD License", "BSD License", "its authors"),
        ("License: BSD-3-Clause\n        and more", "BSD-3-Clause", "its authors"),
        ("Name: a", "unknown", "its authors"),
    ],
)
def test_licences(about, name, holder, tmp_path):
    made = wheel(tmp_path, "a", {"a/LICENSE.py": "", "b.dist-info/NOTICE": "And this."}, about)
    found = licence(tmp_path / made.archive)
    assert (found.name, found.holder) == (name, holder)
    assert found.text == "Terms of a.\n\nAnd this."


def test_unreadable_wheels(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"PK")
    with pytest.raises(DataCorruptError, match=r"a.whl: can't be read"):
        list(source_files(tmp_path / "a.whl"))
    with zipfile.ZipFile(tmp_path / "b.whl", "w"):
        pass
    with pytest.raises(DataCorruptError, match=r"b.whl: a wheel without METADATA"):
        licence(tmp_path / "b.whl")


def rows_of(*texts: str, repo: str = "a", partition: str = "train") -> list[dict[str, Any]]:
    rows = []
    for i, text in enumerate(texts):
        function, query = one(text)
        row = {"repo": repo, "partition": partition, "url": f"{repo}#{partition}{i}"}
        row |= {"code_tokens": list(function.tokens), "docstring_tokens": query}
        rows.append(row | {"docstring": function.documentation})
    return rows


def test_duplicates_near_and_exact():
    twice = source("a", "Return one more of it.")
    near = source("b", words="x").replace("x_7", "x_0")
    short = 'def c(a):\n    """Return the a."""\n    b = a\n    return b\n'
    rows = rows_of(source("a"), twice, source("b", words="x"), near, short)
    kept, dropped = without_duplicates(rows)
    assert [row["url"] for row in kept] == ["a#train0", "a#train2"]
    assert dropped == {"duplicate": 1, "few identifiers": 1, "near duplicate": 1}


def test_caps_draw_the_same_functions_whatever_else_there_is(monkeypatch):
    monkeypatch.setattr(splitting, "CAPS", {"train": 5, "valid": 3, "test": 2})
    rows = [
        row
        for partition, repo in (("train", "a"), ("train", "b"), ("valid", "c"), ("test", "d"))
        for row in rows_of(*(source(f"{repo}{i}") for i in range(9)), repo=repo,
                           partition=partition)
    ]  # fmt: skip
    splits, left_out = split(rows)
    assert {name: len(of_split) for name, of_split in splits.items()} == {
        "train": 10, "valid": 3, "test": 2, "codebase": 5
    }  # fmt: skip
    assert left_out == {"above the cap": 8 + 6 + 7, "ambiguous query": 0}
    again, _ = split([row for row in rows[::-1] if row["repo"] != "b"])
    for name in SPLITS:
        alone = [row for row in splits[name] if row["repo"] != "b"]
        assert again[name] == alone[::-1] or name == "codebase"
    assert splits["train"] != rows[:5] + rows[9:14]  # not simply the first


def test_ambiguous_queries_are_not_asked_but_stay_candidates():
    rows = [
        *rows_of(source("a", "Return it all now.")),
        *rows_of(source("b", "return it, ALL now."), source("c"), partition="valid", repo="b"),
        *rows_of(source("d", "Return it all now."), source("e"), partition="test", repo="d"),
    ]
    splits, left_out = split(rows)
    assert {name: [row["url"] for row in splits[name]] for name in SPLITS} == {
        "train": ["a#train0"],
        "valid": ["b#valid1"],
        "test": ["d#test1"],
        "codebase": ["b#valid0", "b#valid1", "d#test0", "d#test1"],
    }
    assert left_out["ambiguous query"] == 2


def clean_splits() -> dict[str, list[dict[str, Any]]]:
    rows = [
        *rows_of(source("a"), source("b")),
        *rows_of(source("c"), repo="b", partition="valid"),
        *rows_of(source("d"), repo="c", partition="test"),
    ]
    return split(rows)[0]


def test_leaks_are_named():
    clean = clean_splits()
    train, own, pair = clean["train"][0], clean["codebase"][-1], "a#train0, c#test0"
    code, documented = train["code_tokens"], [f'"{own["docstring"]}"']
    held = "c#test0: its code holds its documentation, 'Return the d"
    for file, key, value, message in (
        ("codebase", "url", train["url"], "a#train0 occurs twice"),
        ("test", "url", "x", "x of test is not in the codebase"),
        ("codebase", "repo", train["repo"], f"a package in train and test: {pair}"),
        ("codebase", "code_tokens", code, f"a code in train and test: {pair}"),
        ("codebase", "code_tokens", [*code, "more"], f"near duplicates across partitions: {pair}"),
        ("codebase", "code_tokens", documented, held),
    ):
        splits = {name: copy.deepcopy(rows) for name, rows in clean.items()}
        splits[file][-1][key] = value
        with pytest.raises(CorpusError, match=message):
            check(splits)


def test_near_duplicates_within_a_partition_are_no_leak():
    splits = clean_splits()
    check(splits)
    splits["train"][1]["code_tokens"] = [*splits["train"][0]["code_tokens"], "more"]
    check(splits)


def test_families_fill_the_partitions_in_a_fixed_order():
    pairs = dict.fromkeys("abcdef", 400)
    targets = {"test": 500, "valid": 301}
    assigned = splitting.partitions(pairs, [["z", "a", "b"]], targets)
    assert assigned["a"] == assigned["b"]
    for partition, target in targets.items():
        size = 300 * list(assigned.values()).count(partition)
        assert size - 600 < target <= size
    assert "train" in assigned.values()
    renamed = splitting.partitions(pairs, [["y", "a", "b"]], targets)
    assert renamed != assigned  # the head decides
    more = splitting.partitions(pairs, [["z", "a", "b"]], {"test": 9999, "valid": 1})
    assert set(more.values()) == {"test"}


def test_the_pinned_list():
    """The split of docs/papers/cascode.md, section 14.4."""
    pinned = splitting.load()
    assert (len(pinned.packages), len(pinned.of("small"))) == (74, 49)
    of = {p: {n for n, of in pinned.partitions.items() if of == p} for p in splitting.PARTITIONS}
    assert of["test"] == {
        *("alembic", "beautifulsoup4", "click", "dask", "faker", "flask", "jinja2", "pandas"),
        *("scrapy", "sqlalchemy", "werkzeug", "xarray"),
    }
    valid = {"attrs", "docutils", "plotly", "pydantic", "redis", "sphinx", "tinydb"}
    assert of["valid"] == valid
    names = [package.name for package in pinned.packages]
    assert names == sorted(set(names))
    assert all(len(package.sha256) == 64 for package in pinned.packages)
    assert not {"paramiko", "gensim", "astroid", "pylint", "hypothesis", "peewee"} & set(names)


def test_the_committed_fixture_is_what_the_builder_gives():
    """Sixty functions of real packages, with their notices."""
    splits = {
        name: [json.loads(line) for line in (FIXTURE / "python" / f"{name}.jsonl").open()]
        for name in SPLITS
    }
    check(splits)
    rows = splits["train"] + splits["codebase"]
    assert len(rows) == 60
    notice = (FIXTURE / "NOTICE.md").read_text()
    partitions = splitting.load().partitions
    for row in rows:
        function, query = one(row["original_string"])
        assert problem(function, query) is None
        assert (function.code, list(function.tokens)) == (row["code"], row["code_tokens"])
        assert (function.documentation, query) == (row["docstring"], row["docstring_tokens"])
        assert partitions[row["repo"]] == row["partition"]
        assert f"\n## {row['repo']}\n" in notice
    assert without_duplicates(rows)[0] == rows


@pytest.mark.slow
def test_the_small_profile_meets_its_targets(tmp_path):
    try:
        corpus(tmp_path)
    except DataNotFoundError as error:
        pytest.skip(str(error))
    splits = read(tmp_path)
    manifest = json.loads((tmp_path / "python" / "manifest.json").read_text())
    assert sum(p["without duplicates"] for p in manifest["packages"]) >= 15_000
    assert len(splits["train"]) > 10_000
    assert len(splits["test"]) > 2_000
    assert not any(query_problem(row["docstring_tokens"]) for row in splits["train"])
