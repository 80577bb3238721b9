"""The report: escaping, self-containedness, the paper's rows, the ladder of evidence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from claims_toy import (
    CLAIM,
    FakeLauncher,
    assert_says,
    remember,
    write_claim,
    write_conf,
    write_results,
    write_rows,
)
from omegaconf import OmegaConf
from rich.console import Console

from benchmarks import evidence, figures
from benchmarks.evidence import gather
from benchmarks.outputs import PNG, Outputs
from benchmarks.report import build, checks, html, line, main
from benchmarks.reproduce import reproduce
from shared.composing import compose_experiment
from tests.processes import run

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")

EVIL = '<script>alert("1")</script>'
PAPER = {"table": "Table 1", "metric": "test/top1", "value": 93.1, "std": 1.4, "gpu_hours": 90}


def value(arm: str, seed: int) -> float:
    return 60 + 3 * (arm == "ours") + seed + 0.1 * (seed % 2) * len(arm)


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def conf(tmp_path, monkeypatch):
    remember(monkeypatch)
    monkeypatch.setattr(figures, "draw", lambda path, *_: path.write_bytes(PNG))
    return write_conf(tmp_path)


def claimed(conf, outputs, **options):
    quiet = Console(quiet=True)
    reproduce(
        "toy", launcher=FakeLauncher(value), conf=conf, outputs=outputs, console=quiet, **options
    )
    return (outputs / "report" / "index.html").read_text()


def put(outputs, kind, content):
    path = outputs / kind / "toy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def rungs(outputs, conf):
    (found,) = gather(Outputs(outputs), conf)
    return {rung.name: rung for rung in found.rungs}


def test_everything_from_files_is_escaped(conf, outputs):
    write_claim(conf, CLAIM | {"title": EVIL, "claim": f"{EVIL} & more", "source": EVIL})
    write_rows(conf, row=PAPER | {"table": EVIL})
    put(outputs, "chaos", {"first_difference": EVIL, "kills": 3})
    put(outputs, "speed", {"ratio": EVIL, "iqr": None, "rows": [{EVIL: EVIL}]})
    page = claimed(conf, outputs)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_the_page_carries_the_claim_and_needs_nothing_from_outside(conf, outputs):
    page = claimed(conf, outputs)
    assert_says(page, "claim holds: yes", "ours - base (primary)", "65.3 ± 1.0")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert {source.partition(":")[0] for source in sources} == {"data", "#toy"}
    assert "@import" not in page
    assert "url(" not in page


def test_all_claims_stand_in_one_table_with_their_picture(conf, outputs):
    page = claimed(conf, outputs)
    table = page[page.index('id="claims"') : page.index("</section>")]
    for cell in ("Toy with few labels", "ours - base", "+3.00", "broken - base +0.13"):
        assert cell in table, cell
    assert '<span class="badge yes">yes</span>' in table
    assert '<circle cx="60.0"' in table, "3 points of 5 times 1 that matters"
    changed = {**CLAIM, "title": "Another"}
    write_claim(conf, changed)
    assert 'id="claims"' not in html(gather(Outputs(outputs), conf), Outputs(outputs))


@pytest.mark.parametrize(
    ("ends", "stated", "places"),
    [
        ((1.0, 2.0, 3.0), {"smallest_difference": 1.0}, (0.2, 0.4, 0.6)),
        ((-9.0, 2.0, 9.0), {"smallest_difference": 1.0}, (-1.0, 0.4, 1.0)),
        ((-3.0, -2.0, -1.0), {"smallest_difference": 1.0, "expected_sign": -1}, (0.2, 0.4, 0.6)),
        ((1.0, 2.0, 3.0), {"smallest_difference": 0.0}, ()),
        ((None, 2.0, None), {"smallest_difference": 1.0}, ()),
    ],
)
def test_places_in_the_picture_of_all_claims(ends, stated, places):
    pair = dict(zip(("low", "mean", "high"), ends, strict=True), method="a", baseline="b")
    found = line("toy", "name", stated, {"comparisons": [pair], "verdict": "yes"})
    assert found.places == pytest.approx(places)


def test_a_paper_row_that_was_not_run_says_what_it_needs(conf, outputs):
    write_rows(conf, row=PAPER, row2={**PAPER, "gpu_hours": None})
    (found,) = gather(Outputs(outputs), conf)
    first, second = found.paper_rows
    assert first.note == "not run: needs about 90 GPU-hours"
    assert (first.paper, first.ours) == ("93.1\u00a0±\u00a01.4", None)
    assert "an unstated number of GPU-hours" in second.note
    assert first.note in html([found], Outputs(outputs))


def run_row(conf, outputs, seed, top1, *overrides, name="row"):
    folder = outputs / "toy" / name / f"seed{seed}"
    write_results(folder, name, seed, {"test/top1": top1})
    given = [f"seed={seed}", "data_root=/elsewhere", *overrides]
    config = compose_experiment(f"toy/{name}", given, conf)
    resolved = OmegaConf.to_container(config, resolve=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))


def test_a_paper_row_shows_our_mean_over_runs_as_stated(conf, outputs):
    write_rows(conf, row=PAPER)
    run_row(conf, outputs, 1, 92.0)
    run_row(conf, outputs, 2, 93.0, "precision=bf16-mixed", "logger.csv.save_dir=x")
    run_row(conf, outputs, 3, 10.0, "trainer.max_steps=2")
    (row,) = gather(Outputs(outputs), conf)[0].paper_rows
    assert row.ours == 92.5
    assert row.note == "2 finished (1 with other settings left out)"


def test_a_row_of_other_rows_is_the_mean_of_their_means(conf, outputs):
    write_rows(
        conf,
        row={"about": "one"},
        other={"about": "two"},
        mean={"of": ["row", "other"], **PAPER},
    )
    run_row(conf, outputs, 1, 92.0)
    run_row(conf, outputs, 2, 93.0)
    (row,) = gather(Outputs(outputs), conf)[0].paper_rows
    assert (row.experiment, row.ours) == ("of toy/row, toy/other", None)
    assert row.note == "2 finished, none of toy/other"
    run_row(conf, outputs, 1, 80.0, name="other")
    (row,) = gather(Outputs(outputs), conf)[0].paper_rows
    assert (row.ours, row.note) == (86.25, "3 finished")


def test_a_claim_changed_after_the_fact_or_by_settings_shows(conf, outputs):
    assert "superseded" not in claimed(conf, outputs)
    write_claim(conf, CLAIM | {"smallest_difference": 0.1})
    page = build(outputs, conf).read_text()
    assert "the claim or its configs have changed since these runs" in page
    assert rungs(outputs, conf)["miniature"].state == "open"
    assert "method.rate=0.9" in claimed(conf, outputs, overrides=["method.rate=0.9"])
    assert rungs(outputs, conf)["miniature"].state == "open"


@pytest.mark.parametrize(
    ("parity", "mutants", "state"),
    [
        (None, None, "open"),
        ("{", None, "open"),
        ({"passed": 11, "total": 12}, {"caught": 20, "total": 20}, "failed"),
        ({"passed": 0, "total": 0}, None, "failed"),
        ({"passed": 12, "total": 12}, None, "partly"),
        ({"passed": 12, "total": 12}, {"caught": 19, "total": 20}, "partly"),
        ({"passed": 12, "total": 12}, {"caught": 20, "total": 20}, "proved"),
    ],
)
def test_steps_are_proved_by_parity_and_mutants_together(conf, outputs, parity, mutants, state):
    for kind, content in (("parity", parity), ("mutants", mutants)):
        if content:
            put(outputs, kind, content)
    assert rungs(outputs, conf)["steps"].state == state


def test_rungs_of_the_unit_tests_come_from_junit_by_the_table(conf, outputs, monkeypatch):
    names = {"equations": "losses", "protocols": "x", "checkpoints": "official"}
    table = {rung: [f"unit.test_{name}"] for rung, name in names.items()}
    monkeypatch.setattr(evidence, "RUNGS", {"toy": table})
    outputs.mkdir()
    (outputs / "junit.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.unit.test_losses" name="test_a"/>'
        '<testcase classname="tests.unit.test_losses" name="test_b"><failure/></testcase>'
        '<testcase classname="tests.unit.test_losses" name="test_c"><skipped/></testcase>'
        '<testcase classname="tests.unit.test_official" name="test_loads"/>'
        '<testcase classname="tests.unit.test_officials" name="test_d"><failure/></testcase>'
        "</testsuite></testsuites>"
    )
    found = rungs(outputs, conf)
    assert (found["equations"].state, found["equations"].detail) == ("failed", "1 of 2 tests")
    assert (found["checkpoints"].state, found["checkpoints"].detail) == ("proved", "1 of 1 tests")
    assert found["protocols"].state == "open"


def test_the_table_of_rungs_names_tests_that_exist():
    methods = {path.parent.name for path in Path("methods").glob("*/module.py")}
    assert evidence.RUNGS.keys() <= methods
    for rungs_of in evidence.RUNGS.values():
        assert rungs_of.keys() == {"equations", "protocols", "checkpoints"}
        for modules in rungs_of.values():
            for module in modules:
                assert Path("tests", *module.split(".")).with_suffix(".py").is_file(), module


def test_checks_say_what_the_commands_found(conf, outputs):
    put(outputs, "chaos", {"first_difference": None, "kills": 3})
    put(outputs, "mutants", {"caught": 21, "total": 22})
    assert dict(checks(gather(Outputs(outputs), conf)[0]))["chaos"] == "identical after 3 kills"
    kills = [{"moment": None}, {"moment": "E-step: epoch 2"}]
    put(outputs, "chaos", {"first_difference": None, "kills": kills})
    said = dict(checks(gather(Outputs(outputs), conf)[0]))
    assert said["chaos"] == "identical after 2 kills (at E-step: epoch 2)"
    assert said["mutants"] == "caught 21 of 22"
    assert said["speed"] == "not run: make speed METHOD=toy"


def test_no_results_at_all_still_make_a_page(tmp_path):
    (tmp_path / "conf").mkdir()
    assert "There is no result yet" in build(tmp_path / "out", tmp_path / "conf").read_text()


def test_the_command_prints_where_the_report_lies(tmp_path, capsys):
    assert main(["--outputs", str(tmp_path)]) == 0
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out


@pytest.mark.slow
def test_chromium_renders_the_page_without_errors(conf, outputs, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    claimed(conf, outputs)
    page = (outputs / "report" / "index.html").resolve().as_uri()
    options = [
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path}/profile", "enable-logging=stderr", "dump-dom",
    ]  # fmt: skip
    done = run([chromium, *(f"--{option}" for option in options), page])
    assert done.returncode == 0
    assert "claim holds: yes" in done.stdout
    assert ":CONSOLE" not in done.stderr
