"""The claims engine from yaml to verdict, with a launcher that trains nothing."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from claims_toy import (
    ARMS,
    CLAIM,
    PER_QUERY,
    FakeLauncher,
    assert_says,
    remember,
    write_claim,
    write_conf,
    write_experiment,
    write_results,
)
from hydra.errors import HydraException
from PIL import Image
from rich.console import Console

from benchmarks import claims, figures
from benchmarks import reproduce as reproducing
from benchmarks.claims import (
    ClaimError,
    Showcase,
    as_written,
    claim_hash,
    compose_arms,
    load_claim,
)
from benchmarks.launch import Run, multirun_command, quoted
from benchmarks.reproduce import main, reproduce
from benchmarks.summary import collect
from shared.predict.outputs import write

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")  # a toy without noise
LEAD = {"ours": 4.0, "broken": 0.0, "base": 0.0, "more": 1.0, "start": 0.0}
PRIMARY = CLAIM["primary"]
FURTHER = {
    "name": "more than base", "claim": "More beats base, too.", "method": "more",
    "baseline": "base", "control": "broken", "expected_sign": 1, "smallest_difference": 0.5,
}  # fmt: skip


def good(arm: str, seed: int) -> float:
    return 60 + LEAD[arm] + seed + 0.1 * (seed % 2) * len(arm)


def but(arm: str, seed: int, value: float | None):
    """As `good`, with another value for one run; None for a run that fails."""
    return lambda *run: value if run == (arm, seed) else good(*run)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    remember(monkeypatch)
    return write_conf(tmp_path)


@pytest.fixture
def engine(tmp_path, conf, monkeypatch):
    """Runs the engine on the toy, without its picture, which takes most of the time; returns
    status, screen and the claim's folder."""
    monkeypatch.setattr(figures, "draw", lambda path, *_: path.write_bytes(b"a picture"))

    def call(launcher, **options):
        console = Console(width=140, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
        outputs = tmp_path / "outputs"
        status = reproduce(
            "toy", launcher=launcher, conf=conf, outputs=outputs, console=console, **options
        )
        written = outputs.glob("reproduce/toy/*/summary.json")
        newest = max(written, key=lambda path: path.stat().st_mtime_ns)
        return status, console.export_text(), newest.parent

    return call


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def digest(conf, *overrides):
    claim = load_claim(conf / "reproduce/toy.yaml")
    return claim_hash(claim, compose_arms(claim, overrides, conf))


# --- from the command to the verdict -----------------------------------------------------------


def test_a_finished_claim_ends_with_table_verdict_picture_and_report(engine):
    launcher = FakeLauncher(good)
    status, screen, folder = engine(launcher)
    assert status == 0
    assert "claim holds: yes" in screen.splitlines()
    # 60 + 4 + seed, 0.4 more on odd seeds
    assert_says(screen, "66.3 ± 1.0", str(folder / "learning_curves.png"), "index.html")
    summary = summary_of(folder)
    assert summary["verdict"] == "yes"
    assert summary["arms"]["ours"]["values"].keys() == {"1", "2", "3"}
    assert summary["arms"]["more"]["values"] == {}
    assert (folder / "learning_curves.png").is_file()
    # The table of all metrics has means over seeds.
    text = (folder / "summary.md").read_text()
    assert_says(text, "**claim holds: yes**", "| test/top1_ema | 66.27 |")
    # One multirun runs all arms of a seed before the next; optional arms run when asked.
    assert len(launcher.commands) == 1
    assert launcher.ran[:3] == [("ours", 1), ("broken", 1), ("base", 1)]
    assert ("more", 1) not in launcher.ran
    optional = FakeLauncher(good)
    engine(optional, arms=["all"])
    assert optional.ran == [("more", 1), ("more", 2), ("more", 3)]


def test_an_arm_that_has_learned_nothing_is_said_to_be_at_chance(engine, conf):
    write_claim(conf, CLAIM | {"chance": 61.0})
    _, screen, folder = engine(FakeLauncher(good))
    found = summary_of(folder)["arms"]
    names = [name + " (at chance)" * found[name]["at_chance"] for name in ARMS if name != "more"]
    assert {found[name]["at_chance"] for name in ARMS} == {True, False}
    assert_says(screen, *(f"  {name}  " for name in names))
    assert "(at chance)" in (folder / "summary.md").read_text()
    page = (folder.parents[2] / "report" / "index.html").read_text()
    assert page.count("(at chance)") == sum("chance" in name for name in names)


def dies(command, runs, log, jobs, console):
    log.write_text("Killed by the kernel\n")
    return 137


@pytest.mark.parametrize(
    ("launcher", "seeds", "status", "words"),
    [
        (FakeLauncher(lambda arm, seed: 60.0 + seed), None, 0, ["claim holds: no"]),
        (FakeLauncher(good), [1, 2], 0, ["Seeds compared: [1, 2]; registered: [1, 2, 3]"]),
        (FakeLauncher(good), [2], 0, ["claim holds: undecided", "only one seed"]),
        (
            FakeLauncher(but("base", 2, None)), None, 1,
            ["failed: base seed 2", "ValueError: the toy broke", "claim holds: undecided"],
        ),
        (
            FakeLauncher(but("broken", 3, float("nan"))), None, 1,
            ["failed: broken seed 3", "test/top1_ema is nan"],
        ),
        (FakeLauncher(but("ours", 1, float("inf"))), None, 1, ["test/top1_ema is inf"]),
        (dies, None, 1, ["Killed by the kernel"]),
    ],
)  # fmt: skip
def test_how_a_claim_ends(engine, launcher, seeds, status, words):
    ended, screen, folder = engine(launcher, seeds=seeds)
    assert ended == status
    assert_says(screen, *words)
    for said in words:
        if match := re.match(r"failed: (\w+) seed (\d)", said):
            assert match[2] in summary_of(folder)["arms"][match[1]]["failed"]


def test_finished_runs_are_reused_and_the_rest_resumed(engine):
    first, second, third = FakeLauncher(good), FakeLauncher(good), FakeLauncher(good)
    engine(first, seeds=[1, 2])
    _, screen, folder = engine(second)
    assert "reused 6 of 9 runs" in screen
    assert {seed for _, seed in second.ran} == {3}
    path = folder / "ours" / "seed1" / "results.json"
    path.write_text(path.read_text().replace('"git_commit": null', '"git_commit": "feedface"'))
    status, screen, _ = engine(third)
    assert (third.commands, status) == ([], 0)
    assert_says(screen, "reused 9 of 9 runs", "other code (commit feedface)", "claim holds: yes")


def test_changed_settings_have_their_own_folder_and_are_said(engine):
    plain, changed = FakeLauncher(good), FakeLauncher(good)
    # Where the data lie is no change of the claim.
    _, screen, before = engine(plain, overrides=["data_root=/elsewhere", "threads=2"])
    assert "changed on the command line" not in screen
    assert summary_of(before)["overrides"] == []
    assert {"data_root=/elsewhere", "threads=2"} < set(plain.commands[0])
    assert "threads=1" not in plain.commands[0]
    _, screen, after = engine(changed, overrides=["method.rate=0.5"])
    assert before != after
    assert_says(screen, "changed on the command line: method.rate=0.5")
    assert_says(screen, f"{before.name}; they do not count here")
    assert {"method.rate=0.5", "threads=1"} < set(changed.commands[0])
    assert summary_of(after)["overrides"] == ["method.rate=0.5"]


def test_further_claims_have_verdicts_of_their_own(engine, conf):
    write_claim(conf, {**CLAIM, "optional": [], "further": [FURTHER]})
    status, screen, folder = engine(FakeLauncher(good))
    assert status == 0
    assert_says(screen, "claim holds: yes", "more than base: yes. more - base is +1.00 points")
    (further,) = summary_of(folder)["further"]
    assert (further["verdict"], further["metric"]) == ("yes", "test/top1_ema")
    assert "**more than base: yes**. More beats base, too." in (folder / "summary.md").read_text()
    write_claim(conf, {**CLAIM, "optional": [], "further": [{**FURTHER, "metric": "test/none"}]})
    assert "more than base: undecided. no seed finished" in engine(FakeLauncher(good))[1]


# --- what makes no sense -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"smalest_difference": 1.0}, r"'smalest_difference'; did you mean 'smallest_difference'"),
        ({"primary": {**PRIMARY, "metrik": "x"}}, r"'primary.metrik'.*'metric'"),
        ({"primary": {**PRIMARY, "per_query": "../q.json"}}, "must be the name of a file"),
        ({"secondary": [{"methods": "ours", "baseline": "base"}]}, r"methods'.*'method'"),
        ({"control": "brokn"}, r"no arm 'brokn'; did you mean 'broken'"),
        ({"control": "base"}, r"must be three arms"),
        ({"optional": ["broken"]}, r"cannot be optional"),
        ({"expected_sign": 2}, r"expected_sign is 1, 0 or -1"),
        ({"smallest_difference": 0}, r"must be above 0"),
        ({"smallest_difference": "much"}, r"much.*smallest_difference"),
        ({"seeds": [1, 1]}, r"each once"),
        ({"seeds": []}, r"seeds must be given"),
        ({"seeds": [1, 100]}, "seed 100: the settings were tuned on it"),
        ({"title": "???"}, r"missing title"),
        ({"arms": ["toy/ours"]}, "arms must be a mapping"),
        ({"arms": {**CLAIM["arms"], "base": {"method.rate": 1}}}, "'base' must be an experiment"),
        ({"overrides": ["method.rate=1"]}, "overrides must be a mapping"),
        ({"prepare": {"base": "toy/pretraining"}}, r"\['base'\] cannot be arms and be prepared"),
        ({"further": [{**FURTHER, "control": "more"}]}, "must be three arms"),
        ({"further": [{**FURTHER, "method": "mor"}]}, "no arm 'mor'; did you mean 'more'"),
        ({"further": [{**FURTHER, "expected_sign": 2}]}, "expected_sign is 1, 0 or -1"),
        ({"further": [{**FURTHER, "smallest_difference": 0}]}, "must be above 0"),
        ({"further": [{**FURTHER, "per_query": "/tmp/x.json"}]}, "must be the name of a file"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(conf, change, words):
    path = write_claim(conf, {**CLAIM, **change})
    with pytest.raises(ClaimError, match=words) as error:
        load_claim(path)
    assert str(path) in str(error.value) or "tuned" in words


def test_what_cannot_be_asked_for(engine, conf, tmp_path, capsys):
    launcher = FakeLauncher(good)
    with pytest.raises(ClaimError, match="seed 100: the settings were tuned on it"):
        engine(launcher, seeds=[1, 100])
    with pytest.raises(ClaimError, match=r"no claim of method 'tpy'.*did you mean 'toy'"):
        reproduce("tpy", conf=conf, outputs=tmp_path)
    with pytest.raises(ClaimError, match=r"no claim at .*other.yaml"):
        engine(launcher, claim_name="other")
    with pytest.raises(ClaimError, match="did you mean 'broken'"):
        engine(launcher, arms=["brokn"])
    for override in ("seed=3", "+seed=3", "claim=null", "output_dir=x"):
        with pytest.raises(ClaimError, match="the claim sets"):
            engine(launcher, overrides=[override])
    with pytest.raises(HydraException, match="raet"):
        engine(launcher, overrides=["method.raet=1"])
    assert launcher.commands == []
    assert main(["comatsh"]) == 2
    assert "did you mean 'comatch'" in capsys.readouterr().err
    assert main(["comatch", "data.num_lables=3"]) == 2
    assert "did you mean data.num_labels" in capsys.readouterr().err


# --- what is trained first ---------------------------------------------------------------------

PREPARED = CLAIM | {"prepare": {"start": "toy/pretraining"}}
BOTH = CLAIM | {"prepare": {"base": "toy/base"}, "overrides": {"method.rate": 0.7}}


def test_what_is_prepared_runs_once_per_seed_before_the_arms_and_is_in_no_table(engine, conf):
    write_claim(conf, PREPARED)
    launcher, again = FakeLauncher(good), FakeLauncher(good)
    status, screen, folder = engine(launcher, seeds=[1, 2])
    assert status == 0
    assert launcher.ran[:3] == [("start", 1), ("start", 2), ("ours", 1)]
    first, second = launcher.commands
    assert {"experiment=reproduce/toy/start", "seed=1,2", "precision=32-true"} <= set(first)
    assert not any("start" in part for part in second)
    assert (folder / "start" / "seed2" / "results.json").is_file()
    assert "Prepared once per seed: start (reproduce/toy/start), 12 CPU s" in screen
    summary = summary_of(folder)
    assert summary["arms"].keys() == CLAIM["arms"].keys()
    assert summary["prepared"]["start"]["cpu_seconds"] == 12
    for path in (folder / "summary.md", folder.parents[2] / "report/index.html"):
        assert "Prepared once per seed" in path.read_text()
    engine(again)
    assert [run for run in again.ran if run[0] == "start"] == [("start", 3)]


def test_what_only_other_arms_start_from_is_not_prepared(engine, conf):
    def start_of(name: str) -> str:
        return f"${{output_dir}}/../../{name}/seed${{seed}}/last.ckpt"

    arms = {**CLAIM["arms"], "further": {"experiment": "base", "data_root": start_of("second")}}
    second = {"experiment": "toy/pretraining", "data_root": start_of("first")}
    third = {"experiment": "toy/pretraining", "data_root": start_of("first")}
    prepare = {"first": "toy/pretraining", "second": second, "third": third}
    ours = {"experiment": "toy/ours", "data_root": start_of("third")}
    claim = CLAIM | {"arms": arms | {"ours": ours}, "prepare": prepare, "optional": ["further"]}
    write_claim(conf, claim)
    launcher, later = FakeLauncher(lambda arm, seed: 60.0), FakeLauncher(lambda arm, seed: 60.0)
    _, screen, folder = engine(launcher, seeds=[1])
    assert [arm for arm, _ in launcher.ran[:3]] == ["first", "third", "ours"]
    assert "second" not in screen
    assert summary_of(folder)["prepared"].keys() == {"first", "third"}
    engine(later, arms=["further"], seeds=[1])
    assert [arm for arm, _ in later.ran] == ["second", "further"]


def test_a_failed_preparation_is_named_and_its_seed_does_not_start(engine, conf):
    write_claim(conf, PREPARED)
    launcher = FakeLauncher(but("start", 2, None))
    # Overrides that change the claim do not reach what is prepared.
    status, screen, folder = engine(launcher, overrides=["method.rate=0.5", "data_root=/elsewhere"])
    assert status == 1
    first, second = launcher.commands
    assert "data_root=/elsewhere" in first
    assert "method.rate=0.5" not in first
    assert {"method.rate=0.5", "data_root=/elsewhere"} < set(second)
    assert_says(screen, "failed: start seed 2", "ValueError: the toy broke", "not started")
    assert_says(screen, "failed: ours seed 2, broken seed 2, base seed 2", "claim holds: undecided")
    assert {seed for arm, seed in launcher.ran if arm != "start"} == {1, 3}
    assert "2" in summary_of(folder)["arms"]["base"]["failed"]


def test_an_arm_that_others_start_from_is_trained_once_first_and_counted(engine, conf):
    claim = load_claim(write_claim(conf, BOTH))
    configs = compose_arms(claim, ["trainer.max_steps=11"], conf)
    assert (configs["base"].method.rate, configs["base"].trainer.max_steps) == (0.7, 11)
    launcher, later = FakeLauncher(good), FakeLauncher(good)
    engine(launcher, arms=["ours"], seeds=[1, 2])
    assert launcher.ran == [("base", 1), ("base", 2), ("ours", 1), ("ours", 2)]
    assert "experiment=reproduce/toy/base" in launcher.commands[0]
    _, screen, folder = engine(later)
    assert set(later.ran) == {("base", 3), ("ours", 3), *(("broken", s) for s in (1, 2, 3))}
    assert "claim holds: yes" in screen
    assert "Trained first, because other arms start from it: base" in screen
    assert "Prepared once per seed" not in screen
    assert summary_of(folder)["arms"]["base"]["values"].keys() == {"1", "2", "3"}


def test_an_arm_that_others_start_from_fails_with_its_own_error(engine, conf):
    write_claim(conf, BOTH)
    launcher = FakeLauncher(but("base", 2, None))
    status, screen, _ = engine(launcher)
    assert status == 1
    assert_says(screen, "failed: base seed 2\n", "failed: ours seed 2, broken seed 2\n")
    assert_says(screen, "ValueError: the toy broke")
    assert ("ours", 2) not in launcher.ran


# --- pictures ------------------------------------------------------------------------------------


def test_detectors_are_shown_one_below_the_other(tmp_path, monkeypatch):
    def look(command, **given):
        """Leaves two pictures, as grey as its model's checkpoint says."""
        assert command[1:3] == ["-m", "methods.pb_ovd.detect"]
        asked = dict(zip(command[4::2], command[5::2], strict=True))
        assert (command[3], asked["--texts"]) == ("data/scenes", "data/names.json")
        assert (asked["--classes"], asked["--sheet-images"]) == ("a dog,a cat", "2")
        grey = int(asked["--detector"])
        for number in (1, 2):
            write(
                Path(asked["--out"]) / f"pictures/{number}.png",
                Image.new("RGB", (8, 8), (grey,) * 3),
            )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(reproducing.subprocess, "run", look)
    wanted = Showcase("ours", "scenes", ["a dog", "a cat"], 0, "base", 2, "names.json")
    shown = {"base": "40", "ours": "200"}
    (path,) = reproducing.showcase(wanted, shown, tmp_path, Path("data"), Console())
    colours = {colour for _, colour in Image.open(path).convert("RGB").getcolors(1 << 20)}
    assert {(40, 40, 40), (200, 200, 200)} <= colours


# --- intervals over queries --------------------------------------------------------------------

EASE = [(query % 5) * 10.0 for query in range(40)]
BY_QUERY = {
    **CLAIM,
    "primary": {**PRIMARY, "per_query": PER_QUERY},
    "optional": [],
    "further": [{**FURTHER, "per_query": PER_QUERY}],
}


def by_query(arm, seed):
    """The metric of each query, whose mean is `good`."""
    mean = sum(EASE) / len(EASE)
    return json.dumps({"test/top1_ema": [good(arm, seed) + ease - mean for ease in EASE]})


def test_a_claim_by_query_is_judged_and_printed_as_a_bootstrap(engine, conf):
    write_claim(conf, BY_QUERY)
    status, screen, folder = engine(FakeLauncher(good, by_query))
    assert status == 0
    assert_says(screen, "(95% bootstrap interval over seeds and 40 queries +4.00 to +4.00)")
    assert_says(screen, "more than base: yes. more - base is +1.00 points (95% bootstrap")
    assert_says(screen, "claim holds: yes")
    rows = [line for line in screen.splitlines() if line.strip().startswith("ours - base")]
    assert_says(rows[0], "+4.00 to +4.00 (bootstrap)", "3, 40 queries")
    summary = summary_of(folder)
    pairs = [*summary["comparisons"], *summary["further"][0]["comparisons"]]
    assert {pair["queries"] for pair in pairs} == {40}
    assert summary["comparisons"][0]["pvalue"] is None
    for path in (folder / "summary.md", folder.parents[2] / "report/index.html"):
        assert "+4.00 to +4.00 (bootstrap)" in path.read_text()
    # A further claim by query leaves the primary one as it is.
    write_claim(conf, {**BY_QUERY, "primary": PRIMARY})
    _, screen, folder = engine(FakeLauncher(good, by_query))
    assert "ours - base is +4.00 points (95% interval" in screen
    assert "more - base is +1.00 points (95% bootstrap interval" in screen
    assert "queries" not in summary_of(folder)["comparisons"][0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"test/top1_ema": [61.4001] * 40}, None),  # a metric in float32 is not that exact
        ({"test/top1_ema": [61.4] * 39}, "39 queries, .*ours/seed1/per_query.json of 40"),
        ({"test/top1_ema": [0.614] * 40}, "mean over queries is 0.614, but .* is 61.4"),
        ({"test/top1_ema": [61.4] * 39 + [float("nan")]}, "one finite number"),
        ({"test/top1_ema": []}, "one finite number"),
        ({"test/top1_ema": [[61.4]] * 40}, "one finite number"),
        ({"test/top1_ema": ["much"]}, "holds no list of numbers"),
        ({"test/other": [61.4] * 40}, "under 'test/top1_ema'"),
        ([61.4], "holds no list of numbers"),
        ("{", "holds no list of numbers"),
        (None, "needs .*: No such file"),
    ],
)
def test_a_file_of_queries_that_cannot_be_used_makes_a_failed_run(tmp_path, conf, text, words):
    runs = [Run(arm, 1, f"toy/{arm}", tmp_path / arm / "seed1") for arm in CLAIM["arms"]]
    for run in runs:
        write_results(run.folder, run.arm, 1, {"test/top1_ema": 61.4})
        content = text if run.arm == "base" else {"test/top1_ema": [61.4] * 40}
        if content is not None:
            content = content if content == "{" else json.dumps(content)
            (run.folder / PER_QUERY).write_text(content)
    outcome = collect(runs, load_claim(write_claim(conf, BY_QUERY)), {})
    if words is None:
        assert outcome.failures == {}
        assert len(outcome.values("base", "test/top1_ema", PER_QUERY)[1]) == 40
    else:
        assert outcome.failures.keys() == {("base", 1)}
        assert re.search(words, outcome.failures["base", 1])
        assert str(tmp_path / "base/seed1" / PER_QUERY) in outcome.failures["base", 1]
        assert outcome.values("base", "test/top1_ema", PER_QUERY) == {}


@pytest.mark.parametrize("other", ["", "more"])
def test_a_control_may_have_a_baseline_of_its_own(conf, other):
    primary = {**PRIMARY, **({"control_baseline": other} if other else {})}
    claim = load_claim(write_claim(conf, {**CLAIM, "primary": primary}))
    method, control = claim.rules()[0].pairs[:2]
    assert (method.method, method.baseline) == ("ours", "base")
    assert (control.method, control.baseline) == ("broken", other or "base")
    assert ("control_baseline" in as_written(claim)["primary"]) == bool(other)


def test_only_what_is_compared_by_query_needs_the_file(conf):
    every = {"ours", "broken", "base", "more"}
    other = {**BY_QUERY["further"][0], "metric": "test/x", "control_baseline": "ours"}
    for change, needed in (
        ({}, {(PER_QUERY, "test/top1_ema"): every}),
        ({"secondary": [], "further": []}, {(PER_QUERY, "test/top1_ema"): every - {"more"}}),
        ({"primary": PRIMARY, "further": [other]}, {(PER_QUERY, "test/x"): every}),
        ({"primary": PRIMARY, "further": [FURTHER]}, {}),
    ):
        assert load_claim(write_claim(conf, {**BY_QUERY, **change})).by_query() == needed


# --- hash, command, progress -------------------------------------------------------------------


def test_the_hash_covers_the_claim_and_all_it_runs_and_nothing_else(conf):
    before = digest(conf)
    same = ("data_root=/elsewhere", "threads=1", "logger.csv.save_dir=x")
    assert {digest(conf, override) for override in same} == {before}
    path = conf / "reproduce/toy.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()), sort_keys=True))
    assert digest(conf) == before
    write_claim(conf, {**CLAIM, "also": ["test/loss"]})
    assert digest(conf) == before
    digests = [before, digest(conf, "trainer.max_steps=11")]
    for change in (
        {"smallest_difference": 0.5},
        {"seeds": [1, 2]},
        {"claim": "Ours beats base, perhaps."},
        {"optional": []},
        {"overrides": {"method.rate": 0.3}},
        {"arms": {**CLAIM["arms"], "broken": {"experiment": "toy/broken", "method.rate": 0.8}}},
        {"tuning_seeds": [100, 101]},
        {"further": [FURTHER]},
        {"primary": {**PRIMARY, "per_query": PER_QUERY}},
        {"chance": 50.0},
        {"showcase": {"checkpoint": "zoo:a", "images": "images", "texts": ["a dog"]}},
        {"prepare": {"start": "toy/pretraining"}},
    ):
        write_claim(conf, CLAIM | change)
        digests.append(digest(conf))
    write_experiment(conf, "pretraining", {"method": {"rate": 0.123}})
    digests.append(digest(conf))
    assert len(set(digests)) == len(digests)


def test_the_hash_covers_the_models_of_the_zoo_that_a_claim_names(conf, monkeypatch):
    showcase = {"checkpoint": "zoo:a", "images": "images", "texts": ["a dog"]}
    digests = set()
    for named in ({}, {"showcase": showcase}):
        write_claim(conf, CLAIM | named)
        for shipped in ({"a": "1" * 64}, {"a": "2" * 64}, {"a": "2" * 64, "b": "3" * 64}):
            monkeypatch.setattr(claims, "checksums", shipped.copy)
            digests.add(digest(conf))
    assert len(digests) == 3  # without it one, with it one for each content of a


def test_metrics_beside_the_primary_one_and_figures_of_the_data_are_shown(conf, engine):
    write_claim(conf, {**CLAIM, "also": ["test/top1_ema", "test/unknown"]})
    _, screen, folder = engine(FakeLauncher(good))
    header = next(line for line in screen.splitlines() if "mean ± std" in line)
    assert header.split()[-4:] == ["test/top1_ema", "test/unknown", "CPU", "s"]
    row = next(line for line in screen.splitlines() if line.strip().startswith("ours"))
    assert row.split()[-3:] == ["66.3", "-", "12"]
    assert "Told of the set: by lot 2.5." in screen  # over seeds 1, 2 and 3
    assert "page:    sheet.html" in screen
    assert "Told of the set: by lot 2.5." in (folder / "summary.md").read_text()


def test_an_arm_may_stand_on_another_and_takes_the_overrides_of_all(conf):
    arms = {**CLAIM["arms"], "more": {"experiment": "base", "trainer.max_steps": 5}}
    claim = load_claim(write_claim(conf, {**CLAIM, "arms": arms, "overrides": {"seed": 7}}))
    more = compose_arms(claim, conf=conf)["more"]
    assert (more.arm, more.method.rate, more.trainer.max_steps, more.seed) == ("more", 0.2, 5, 7)
    assert claim.curve == "val/top1_ema"
    assert load_claim(write_claim(conf, CLAIM | {"curve": "train/loss"})).curve == "train/loss"


def test_the_multirun_command_survives_hydras_grammar(tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    base = tmp_path / "odd, name=it's"
    runs = [Run(arm, seed, f"toy/{arm}", base) for seed in (2, 1) for arm in ("ours", "base")]
    command = multirun_command(runs, base, {"name": "toy", "hash": "12345678"}, 2, ["threads=1"])
    parsed = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(command[4:])}
    assert command[1:4] == ["-m", "shared.run", "-m"]
    assert command[4].startswith("seed=")  # varies slowest
    assert command[5] == "experiment=toy/ours"
    assert command[6].startswith("experiment=toy/ours,")
    assert list(parsed["experiment"].sweep_string_iterator()) == ["toy/ours", "toy/base"]
    assert parsed["output_dir"].value() == f"{base}/${{arm}}/seed${{seed}}"
    assert parsed["claim"].value()["hash"] == "12345678"
    assert quoted("a${b}") == "'a\\${b}'"


class OnCluster(FakeLauncher):
    """Measures as the machine that trains does: the login node must not."""

    def __call__(self, command, runs, log, jobs, console):
        if "measure_only=true" not in command:
            return super().__call__(command, runs, log, jobs, console)
        self.commands.append(command)
        (folder,) = [run.folder for run in runs]
        folder.mkdir()
        (folder / "config.yaml").write_text(
            "{precision: bf16-mixed, seed: 1, data_root: a, output_dir: b}"
        )
        return 0


def test_a_claim_runs_where_the_launcher_says(engine, conf, monkeypatch):
    monkeypatch.setattr("benchmarks.reproduce._measured", lambda _: pytest.fail("measured here"))
    launcher = OnCluster(good)
    given = ["hydra/launcher=slurm_cpu", "hydra.launcher.partition=cpu", "precision=auto"]
    status, screen, folder = engine(launcher, seeds=[1], overrides=given)
    assert status == 0
    measuring, running = launcher.commands
    for command in launcher.commands:
        assert set(given[:2]) < set(command)
        assert not [part for part in command if "local" in part or "n_jobs" in part]
    assert measuring[-1] == f"output_dir={quoted(str(folder / 'precision'))}"
    assert "precision=bf16-mixed" in running
    assert "threads=1" not in running
    assert_says(screen, "hydra/launcher=slurm_cpu hydra.launcher.partition=cpu, bf16-mixed")
    assert "changed on the command line: hydra" not in screen


def test_position_reads_the_last_whole_row(tmp_path):
    run = Run("ours", 1, "toy/ours", tmp_path, 100)
    assert run.position() == 0
    (tmp_path / "metrics.csv").write_text("step,epoch,metric,value\n")
    assert run.position() == 0
    rows = "".join(f"{step},{step // 10},train/loss,0.5\n" for step in range(1000))
    (tmp_path / "metrics.csv").write_text("step,epoch,metric,value\n" + rows + "10")
    assert run.position() == 999
    assert Run("ours", 1, "toy/ours", tmp_path, 100, "epoch").position() == 99
