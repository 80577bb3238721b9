"""The report, and what reads the files of runs, with every damage and with a stranger's content."""

import html.parser
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from omegaconf import OmegaConf
from rich.console import Console

from benchmarks import evidence, report, summary
from benchmarks.claims import ClaimError
from benchmarks.figures import read_curves
from benchmarks.launch import Run
from benchmarks.outputs import PNG
from benchmarks.reproduce import _registered_precision, reproduce
from benchmarks.summary import _read_queries
from shared.composing import compose_experiment
from shared.showing import code, escaped, table
from tests.hostile import damages
from tests.hostile.damages import ABSENT, put
from tests.hostile.tripwire import watched
from tests.unit.claims_toy import FakeLauncher, remember, write_conf, write_results, write_rows

SUMMARY = "reproduce/toy/CLAIM/summary.json"
PICTURE = "reproduce/toy/CLAIM/learning_curves.png"
RESULTS, CONFIG = "toy/row/seed1/results.json", "toy/row/seed1/config.yaml"
TOGETHER = (  # damaged together: none hides another
    (SUMMARY, "parity/toy.json", "junit.xml"),
    (PICTURE, RESULTS, "speed/toy.json"),
    (CONFIG, "chaos/toy.json", "mutants/toy.json"),
)
JUNIT = '<testsuites><testcase classname="tests.unit.test_toy" name="test_a"/></testsuites>'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The outputs of a claim, of a paper's row and of the checks of two methods; the configs."""
    root = tmp_path_factory.mktemp("whole")
    conf, outputs = write_conf(root), root / "outputs"
    write_rows(conf, row={"metric": "test/top1", "value": 93.1})
    launcher = FakeLauncher(lambda arm, seed: 60 + 3 * (arm == "ours") + 0.1 * seed * len(arm))
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        patch.setattr("benchmarks.figures.draw", lambda path, *_: path.write_bytes(PNG))
        reproduce("toy", launcher=launcher, conf=conf, outputs=outputs, console=Console(quiet=True))
    (folder,) = (outputs / "reproduce" / "toy").iterdir()
    folder.rename(folder.with_name("CLAIM"))
    write_results(outputs / "toy/row/seed1", "row", 1, {"test/top1": 92.5})
    config = compose_experiment("toy/row", ["seed=1"], conf)
    resolved = OmegaConf.to_container(config, resolve=True)
    (outputs / "toy/row/seed1/config.yaml").write_text(yaml.safe_dump(resolved))
    for name, value in {
        "parity/toy.json": {"passed": 3, "total": 3},
        "parity/other.json": {"passed": 5, "total": 5},
        "mutants/toy.json": {"caught": 2, "total": 2},
        "speed/toy.json": {"ratio": 0.5, "iqr": [0.4, 0.6], "rows": [{"what": "step", "ms": 3}]},
        "chaos/toy.json": {"first_difference": None, "kills": [{"moment": "E-step"}]},
    }.items():
        (outputs / name).parent.mkdir(exist_ok=True)
        (outputs / name).write_text(json.dumps(value))
    (outputs / "junit.xml").write_text(JUNIT)
    return outputs, conf


@pytest.fixture
def outputs(whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    remember(monkeypatch)
    monkeypatch.setitem(evidence.RUNGS, "toy", {"equations": ["unit.test_toy"]})
    shutil.copytree(whole[0], tmp_path / "o")
    return tmp_path / "o"


def built(outputs: Path, conf: Path) -> str:
    """The page; nothing else may happen."""
    begun = time.monotonic()
    with watched(outputs, seconds=20) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        page = report.build(outputs, conf)
    assert time.monotonic() - begun < 19  # a library may have swallowed the alarm
    assert not watch.processes
    assert not watch.outside
    content = page.read_text()
    assert "5 of 5 cases" in content
    return content


def damaged(content: str) -> str:
    """What is said of damaged files."""
    return content.partition("Damaged files")[2]


def test_a_whole_folder_has_no_damaged_file(outputs: Path, whole: Any) -> None:
    page = built(outputs, whole[1])
    assert "Damaged files" not in page
    row = "<td>92.50</td><td>1 finished</td>"
    for said in ("claim holds: yes", ">toy/row</th>", row, "1 of 1 tests"):
        assert said in page
    assert "identical after 1 kills (at E-step)" in page
    assert "data:image/png;base64," in page


@pytest.mark.parametrize("damage", damages.MOSTLY)
@pytest.mark.parametrize("names", TOGETHER)
def test_a_damaged_file_stops_its_own_line(
    outputs: Path, whole: Any, names: Sequence[str], damage: str
) -> None:
    for name in names:
        damages.DAMAGES[damage](outputs / name)
    content = built(outputs, whole[1])
    listed = {name for name in names if name in damaged(content)}
    if damage == "missing":
        assert "Damaged files" not in content
    elif damage in damages.REFUSED:
        assert listed == set(names)
    assert ("claim holds: yes" in content) == (
        SUMMARY not in names or (damage in damages.TOLERATED and SUMMARY not in listed)
    )


DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
BOMB = (
    "<!DOCTYPE x [<!ENTITY a 'aaaa'>"
    + "".join(
        f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><testsuites>&i;</testsuites>"
)
ALIASES = "x0: &x0 [1]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


WRONG_SUMMARY = {
    "arms": (ABSENT, [], {"ours": None}),
    "claim": (ABSENT,),
    "comparisons": (ABSENT,),
    "verdict": (ABSENT, {"yes": 1}, "certainly"),
    "hash": (ABSENT, 5),
    "overrides": ("a",),
    "method": ("other", "../../x"),
    "name": ("../../x", "/etc/passwd", ["toy"]),
    "further": ([{"name": "x"}],),
    "data": (DEEP,),
    "figures": ({"x": 5}, {"x": {"y": "5"}}),
    "also": ("x", [5]),
    "pages": ("x", [None]),
    "prepared": ([1],),
    "arms.ours.values": ({"1": "60"}, {"one": 60}, {"1": float("nan")}),
    "arms.ours.mean": (True,),
    "arms.ours.std": (10**400,),
    "arms.ours.failed": ([1],),
    "arms.ours.metrics": ({"x": [1]},),
    "comparisons.0.low": ("x",),
    "comparisons.0.pvalue": ([0],),
    "comparisons.0.differences": ([1, 2],),
    "claim.title": (["x"], "x" * 1_000_000, "half \ud800"),
    "claim.smallest_difference": ("1",),
    "claim.primary": ("x",),
}
WRONG = {
    RESULTS: {
        "metrics": (["test/top1"], {"test/top1": "92"}, {"test/top1": DEEP}, ABSENT),
        "experiment": (5,),
    },
    "parity/toy.json": {"passed": ("3",), "total": (float("nan"), True)},
    "mutants/toy.json": {"caught": (ABSENT,)},
    "speed/toy.json": {"rows": ({"a": 1}, [DEEP]), "ratio": (DEEP,)},
    "chaos/toy.json": {"kills": ([1],), "first_difference": (DEEP, ABSENT)},
}
WRONG_TEXT: list[tuple[str, Callable[[str], str]]] = [
    (CONFIG, lambda config: config + ALIASES),
    (CONFIG, lambda config: config + "a: ${b}${b}\nb: ${oc.env:HOME}\n"),
    (CONFIG, lambda config: config + "a: " + "[" * 60 + "]" * 60),
    (CONFIG, lambda config: config + "a: !!python/object/apply:os.system [touch x]"),
    (CONFIG, lambda config: "- 1\n"),
    ("junit.xml", lambda tests: BOMB),
    ("junit.xml", lambda tests: "<testsuites>"),
]


def values_of(file: str, table: dict[str, tuple]) -> list[tuple[str, str, Any]]:
    return [(file, place, value) for place, values in table.items() for value in values]


def spoil(path: Path, place: str, value: Any) -> None:
    content = json.loads(path.read_text())
    put(content, place, value)
    path.write_text(json.dumps(content))


OTHERS = [change for file, table in WRONG.items() for change in values_of(file, table)]
PAIRS = list(zip_longest(values_of(SUMMARY, WRONG_SUMMARY), [*OTHERS, *WRONG_TEXT], fillvalue=()))


@pytest.mark.parametrize("changes", PAIRS)  # each of its own file: neither hides the other
def test_a_wrong_shape_stops_its_own_line(outputs: Path, whole: Any, changes: Any) -> None:
    changed = [change for change in changes if change]
    for name, *change in changed:
        if callable(change[0]):
            (outputs / name).write_text(change[0]((outputs / name).read_text()))
        else:
            spoil(outputs / name, *change)
    content = built(outputs, whole[1])
    assert all(name in damaged(content) for name, *_ in changed)
    assert len(damaged(content)) < 3000
    assert "claim holds: yes" not in content


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("folder", "/etc"),
        ("standing", "current"),
        ("unknown", DEEP),
        ("overrides", ["hydra.searchpath=[/tmp]"]),
        ("overrides", ["a='${b}${b}'"]),
        ("comparisons.0.high", None),
    ],
)
def test_what_is_not_used_does_no_harm(outputs: Path, whole: Any, place: str, value: Any) -> None:
    spoil(outputs / SUMMARY, place, value)
    page = built(outputs, whole[1])
    assert "Damaged files" not in page
    assert "data:image/png;base64," in page
    assert ("not a registered claim" in page) == (place == "overrides")


# --- pictures ----------------------------------------------------------------------------------


def test_only_pictures_of_the_folder_are_embedded(
    outputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = outputs / "reproduce" / "toy" / "CLAIM" / "learning_curves.png"
    real = path.read_bytes()

    def said() -> str:
        page = built(outputs, whole[1])
        assert ("data:image/png;base64," in page) == ("Damaged files" not in page)
        return damaged(page).replace("</code>", "")

    assert not said()
    secret = tmp_path / "secret.png"
    secret.write_bytes(real)
    path.unlink()
    path.symlink_to(secret)
    assert "learning_curves.png: is a link, which is not followed" in said()
    path.unlink()
    path.write_bytes(b"<svg onload=alert(1)>")
    assert "learning_curves.png: it is no PNG picture" in said()
    monkeypatch.setattr("benchmarks.outputs.LARGEST_PICTURE", len(real) - 1)
    path.write_bytes(real)
    assert "it is larger than" in said()
    path.unlink()
    (path.parent / "showcase").symlink_to(tmp_path)
    assert "showcase: it is a link" in said()


# --- injection ---------------------------------------------------------------------------------

EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- hidden",
    "</details></article><h1>owned", "<https://evil.example>", "https://evil.example/x",
    "www.evil.example", "mailto:a@evil.example", "a@evil.example",
    "[text](https://evil.example)", "![text](https://evil.example/x.png)",
    "[text]: https://evil.example", "[text][1]", "a | b | c", "|---|---|",
    "```", "~~~", "`code`", "`` ` ``", "**bold** *it* __bold__ _it_ ~~gone~~",
    "# heading", "## heading", "x\n===", "x\n---", "---", "===",
    "- item", "+ item", "* item", "1. item", "12) item", "> quote",
    "    indented", "\tindented", "a\\", "\\<b>", "&lt;b&gt; &#60;b&#62;",
    "a\r\nb\n\n# c\u2028# d\x85# e\x00f\x1b[2J", "$$x$$ {{ x }} {% x %}", "*", "_", "-", "",
]  # fmt: skip
READ = MarkdownIt("gfm-like", {"linkify": False, "html": True})


def structure(text: str) -> list[str]:
    """The constructs of a Markdown text, without its words."""
    words = ("text", "text_special", "softbreak")
    tokens = [t for token in READ.parse(text) for t in (token, *(token.children or []))]
    return [token.type + token.tag for token in tokens if token.type not in words]


def shown(text: str) -> str:
    """The words of a Markdown text."""
    tokens = [t for token in READ.parse(text) for t in token.children or []]
    return " ".join("".join(t.content for t in tokens).replace("\u200b", "").split())


def page_of(text: str) -> str:
    said = escaped(text)
    return "\n\n".join(
        [
            f"# {said}",
            f"{said} Source: {said}.",
            f"**{said}: yes**. {said}",
            f"- kind: {said}\n- other: {said}",
            f"Metric {code(text)}.",
            table(["name", text], [[text, text]]),
            "end",
        ]
    )


@pytest.mark.parametrize("text", EVIL)
def test_no_text_changes_the_structure(text: str) -> None:
    assert structure(page_of(text)) == structure(page_of("word"))
    visible = " ".join("".join(s if s.isprintable() else " " for s in text).split())
    assert shown(f"- kind: {escaped(text)}") == f"kind: {visible}".strip()
    assert not re.search(r"\w://|www\.|\w:\w+@|\w@\w", escaped(text))  # which GitHub links


def test_plain_text_stays_as_it_is() -> None:
    for text in (
        "ours - base (primary), 65.3 ± 1.0 (p <0.001): higher by 3 % at 5 -> 10 labels/class.",
        "a_baseline_with_names, test/top1_ema; Li et al., PCL, ICLR 2021 & more!",
        "+2.83",
        "-0.41 to +1.20",
    ):
        assert escaped(text) == text
    assert code("test/top1") == "`test/top1`"
    assert table(["a", "b"], [["x", "-"]]) == "| a | b |\n| --- | --: |\n| x | - |"


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes' names, and what it shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, *(name for name, _ in attributes)))


def test_no_content_of_a_file_changes_the_report(outputs: Path, whole: Any) -> None:
    def with_text(said: str) -> tuple[list[tuple], list[str]]:
        value = json.loads((whole[0] / SUMMARY).read_text())
        texts = dict.fromkeys(("title", "claim", "source", "control"), said)
        value["claim"] |= texts | {"primary": {"metric": said}}
        value |= {"reason": said, "hash": said, "figures": {said: {said: 1}}}
        value["also"] = [said]
        value |= {key: [said] for key in ("git_commits", "data", "precisions", "overrides")}
        value["prepared"] = {said: {"experiment": said, "cpu_seconds": 1}}
        pairs = [value["comparisons"][0] | {"method": said, "baseline": said}] * 2
        value["comparisons"] = pairs
        further = dict.fromkeys(("name", "claim", "metric", "reason"), said)
        figures = {"verdict": "no", "comparisons": pairs, "smallest_difference": 1.0}
        value["further"] = [further | figures]
        value["arms"] = {said: value["arms"]["ours"] | {"metrics": {said: 1}}}
        (outputs / SUMMARY).write_text(json.dumps(value))
        (outputs / "speed/toy.json").write_text(
            json.dumps({"ratio": said, "iqr": [said], "rows": [{said: said}]})
        )
        chaos = {"first_difference": said, "kills": [{"moment": said}]}
        (outputs / "chaos/toy.json").write_text(json.dumps(chaos))
        page = built(outputs, whole[1])
        assert "Damaged files" not in page
        return Tags(page).tags, structure(summary.markdown(value))

    expected = with_text("word")
    for text in (*EVIL[:19:2], '" onload="alert(1)', "x" * 2000):
        assert with_text(text) == expected, text


def test_names_of_files_are_escaped(outputs: Path, whole: Any) -> None:
    (outputs / "parity" / "<img src=x>[a](b).json").write_text("{")
    assert "<img src=x>" not in built(outputs, whole[1])


# --- what is written ---------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(outputs: Path, whole: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (outputs / "report" / "index.html").unlink(missing_ok=True)
    (outputs / "report" / "index.html").symlink_to(kept)
    report.build(outputs, whole[1])
    assert kept.read_text() == "kept"
    shutil.rmtree(outputs / "report")
    (outputs / "report").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a link"):
        built(outputs, whole[1])


# --- the files of a run ------------------------------------------------------------------------


def run(folder: Path) -> Run:
    write_results(folder, "ours", 1, {"test/top1": 1.0})
    (folder / "error.txt").write_text("ValueError: it broke")
    (folder / "queries.json").write_text('{"test/top1": [0.5, 1.5]}')
    (folder / "claim.json").write_text('{"precision": "bf16-mixed"}')
    return Run("ours", 1, "toy/ours", folder)


@pytest.mark.parametrize("damage", damages.DAMAGES)
def test_a_damaged_run_is_not_finished(tmp_path: Path, damage: str) -> None:
    one = run(tmp_path / "run")
    assert (one.results() or {})["status"] == "finished"
    assert one.position() == 100
    assert one.error(tmp_path / "log") == "ValueError: it broke"
    assert read_curves(one.folder / "metrics.csv")
    assert _registered_precision(one.folder / "claim.json") == "bf16-mixed"
    queries = one.folder / "queries.json"
    assert _read_queries(queries, "test/top1", {"test/top1": 1.0}).tolist() == [0.5, 1.5]
    for path in list(one.folder.iterdir()):
        damages.DAMAGES[damage](path)
    with watched(tmp_path, seconds=10) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert one.results() is None
        assert one.position() in range(101)
        assert isinstance(one.error(tmp_path / "log"), str)
        curves = read_curves(one.folder / "metrics.csv")
        with pytest.raises(ValueError, match=r"queries\.json") as refused:
            _read_queries(queries, "test/top1", {"test/top1": 1.0})
        with pytest.raises(ClaimError, match=r"claim\.json is damaged"):
            _registered_precision(one.folder / "claim.json")
    assert type(refused.value) is ValueError
    assert not watch.processes
    assert not watch.outside
    assert damage in damages.TOLERATED or not curves


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '"finished"',
        '{"status": "finished"}',
        '{"status": "finished", "metrics": []}',
        '{"status": "finished", "metrics": {"a": "1"}}',
        '{"status": ["finished"], "metrics": {}}',
        '{"status": "finished", "metrics": {}, "data": {"a": 1}}',
        '{"status": "finished", "metrics": {}, "cpu_seconds": "1"}',
    ],
)
def test_results_of_another_shape_are_none(tmp_path: Path, content: str) -> None:
    one = run(tmp_path / "run")
    (one.folder / "results.json").write_text(content)
    assert one.results() is None


@pytest.mark.parametrize(
    "rows",
    ["0,0,val/a,x", *(f"{step},0,val/a,1" for step in ("x", "inf", "nan", "1e300", "-1")),
     "1", '"' + "x" * 200_000],
)  # fmt: skip
def test_curves_of_another_shape_are_left_out_with_a_warning(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,epoch,metric,value\n1,0,val/a,1\n{rows}\n")
    with pytest.warns(UserWarning, match=r"metrics\.csv: no curves of it, it is damaged"):
        assert read_curves(path) == {}
    assert isinstance(Run("a", 1, "x", tmp_path).position(), int)


@pytest.mark.parametrize("precision", ["32-true'] +evil=1", "../x", 5, None, "", "${oc.env:HOME}"])
def test_a_registered_precision_is_one_word(tmp_path: Path, precision: Any) -> None:
    (tmp_path / "claim.json").write_text(json.dumps({"precision": precision}))
    with pytest.raises(ClaimError, match="is damaged, delete it"):
        _registered_precision(tmp_path / "claim.json")


def test_an_error_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    one = run(tmp_path / "run")
    (one.folder / "error.txt").write_bytes(b"\x1b[2Jgone\xff\n" + b"x" * 10)
    assert one.error(tmp_path / "log") == "\ufffd[2Jgone\ufffd\nxxxxxxxxxx"
    (one.folder / "error.txt").unlink()
    os.mkfifo(one.folder / "error.txt")
    (tmp_path / "log").write_text("of the multirun")
    assert one.error(tmp_path / "log") == "of the multirun"
