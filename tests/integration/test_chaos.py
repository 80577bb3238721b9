"""The chaos experiment sees a faithful resumption, an unfaithful one, and its own failure."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import chaos
from benchmarks.chaos import ChaosError, Moment, first_difference, load_plan
from benchmarks.claims import ClaimError
from tests.processes import within

TOY = [sys.executable, str(Path(__file__).with_name("chaos_toy.py"))]


@pytest.fixture(autouse=True)
def bounded():
    with within(900):
        yield


@pytest.mark.slow
def test_faithful_resumption_is_identical_after_kills_that_really_came(tmp_path, capsys):
    moments = [Moment("E-step: epoch 2"), Moment("E-step: epoch 1", steps=5)]
    report = chaos.chaos(TOY, tmp_path / "toy", kills=1, seed=0, moments=moments)
    assert (report["first_difference"], report["steps"]) == (None, 120)
    assert any(kill["resumes_within_epoch"] for kill in report["kills"])
    for kill in report["kills"]:
        assert 0 < kill["steps_done"] < 120
        assert kill["steps_done"] - 8 <= kill["resumes_from"] <= kill["steps_done"] + 1
        assert kill["epoch"] * 40 + kill["steps_of_epoch"] == kill["steps_done"]

    landed = {kill["moment"]: kill for kill in report["kills"]}
    assert landed.keys() == {None, "E-step: epoch 1", "E-step: epoch 2"}
    assert len(report["kills"]) == 3
    # Before the first step of the epoch that begins with the E-step: while this was under way.
    inside = landed["E-step: epoch 2"]
    assert (inside["steps_done"], inside["epoch"], inside["steps_of_epoch"]) == (80, 2, 0)
    later = landed["E-step: epoch 1"]
    assert later["epoch"] == 1
    assert 5 <= later["steps_of_epoch"] < 20
    lines = [line for line in capsys.readouterr().out.splitlines() if "killed:" in line]
    moments = [str(kill["moment"]) for kill in report["kills"]]
    assert [line.split("moment ")[1].split(", ")[0] for line in lines] == moments


def test_a_kill_after_the_moment_was_over_is_none(tmp_path):
    hasty, moments = [*TOY, "hasty"], [Moment("E-step: epoch 0")]
    assert chaos._start_and_kill(hasty, tmp_path / "toy", None, moments, delay=1.0) is None
    assert "E-step: epoch 0" in (tmp_path / "toy.log").read_text()


def test_a_phrase_that_the_run_never_says_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "_epochs", lambda _: [0, 1, 2])
    monkeypatch.setattr(chaos, "_run", lambda _, folder: chaos._log(folder).write_text("epoch 20"))
    monkeypatch.setattr(chaos.shutil, "rmtree", lambda *_, **__: None)
    moments = [Moment("epoch 20"), Moment("epoch 2")]
    with pytest.raises(ChaosError, match=r"undisturbed\.log never says 'epoch 2'$"):
        chaos.chaos(TOY, tmp_path, kills=1, seed=0, moments=moments)


@pytest.mark.slow
def test_forgotten_momentum_is_found(tmp_path):
    report = chaos.chaos([*TOY, "forget"], tmp_path / "toy", kills=1, seed=1)
    assert report["first_difference"].startswith("checkpoint/state_dict/weight: tensors differ")


def test_a_run_that_crashes_is_no_result(tmp_path):
    with pytest.raises(ChaosError, match=r"(?s)status 1.*the toy is broken"):
        chaos.chaos([*TOY, "crash"], tmp_path / "toy", kills=1, seed=0)


def test_kills_that_never_land_within_an_epoch_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chaos, "_run", lambda *_: None)
    monkeypatch.setattr(chaos, "_epochs", lambda _: [0, 1, 2])
    monkeypatch.setattr(chaos, "_run_with_kills", lambda *_: [])
    with pytest.raises(ChaosError, match="3 attempts"):
        chaos.chaos(TOY, tmp_path / "toy", kills=1, seed=0)
    assert capsys.readouterr().out.count("0 of 1 kills landed") == 3


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(2)}, None),
        ({"w": torch.tensor([torch.nan])}, {"w": torch.tensor([torch.nan])}, None),
        ({"w": torch.tensor(True)}, {"w": torch.tensor(True)}, None),
        ({"w": torch.zeros(1)}, {"w": -torch.zeros(1)}, "x/w: tensors differ by up to 0"),
        ({"w": torch.zeros(1)}, {"w": torch.zeros(1).half()}, "x/w: torch.float32"),
        ({"w": 1}, {"v": 1}, "only one run has ['v', 'w']"),
        ([1, 2], [1, 3], "x[1]: 2 against 3"),
        ([1], [1, 2], "x: 1 against 2 long"),
        ([1], (1,), "list against tuple"),
        (1.0, 1, "float against int"),
        ({"a": [{"b": float("nan")}]}, {"a": [{"b": float("nan")}]}, None),
    ],
)
def test_first_difference_is_bit_by_bit(a, b, told):
    found = first_difference(a, b, "x")
    assert (found is None) if told is None else (told in found)


def faked(monkeypatch, difference=None):
    """The arguments of a `chaos` that finds that difference."""
    seen, found = [], {"first_difference": difference}
    monkeypatch.setattr(chaos, "chaos", lambda *given: seen.append(given) or found)
    return seen


@pytest.mark.parametrize(
    ("difference", "status", "line"),
    [(None, 0, "chaos: identical"), ("metrics.csv[3]", 1, "chaos: first difference: metrics.csv")],
)
def test_command_line_says_it_last_and_by_its_status(
    tmp_path, monkeypatch, capsys, difference, status, line
):
    seen = faked(monkeypatch, difference)
    arguments = ["comatch", "--kills", "4", "seed=5", "--output", str(tmp_path)]
    assert chaos.main(arguments) == status
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)
    ((command, _, kills, _, moments),) = seen
    assert (kills, moments) == (4, [])
    assert "experiment=comatch/mini" in command
    assert "trainer.max_steps=240" in command  # of conf/chaos/comatch.yaml
    assert command[-1] == "seed=5"  # after the shortening, so that the user's word counts
    assert json.loads((tmp_path / "comatch.json").read_text())["method"] == "comatch"


def plan_in(tmp_path, text):
    (tmp_path / "chaos").mkdir()
    (tmp_path / "chaos" / "toy.yaml").write_text(text)
    return load_plan("toy", tmp_path)


def test_a_plan_names_experiment_overrides_and_moments(tmp_path):
    text = "experiment: toy/mini\noverrides: [trainer.max_steps=5]\nmoments:\n"
    text += "- 'E-step: epoch 2'\n- {phrase: cleaning, steps: 3}\n"
    moments = [Moment("E-step: epoch 2"), Moment("cleaning", 3)]
    assert plan_in(tmp_path, text) == chaos.Plan("toy/mini", ["trainer.max_steps=5"], moments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("overrides: []", "experiment"),
        ("experiment: toy/mini\nmoment: [x]", "unknown key 'moment'; did you mean 'moments'"),
        ("experiment: toy/mini\nmoments: [{phrases: x}]", "did you mean 'phrase'"),
        ("experiment: toy/mini\nmoments: [{steps: 2}]", "phrase"),
        ("experiment: toy/mini\nmoments: [{phrase: x, steps: few}]", "few.*steps"),
        ("experiment: [", "is no yaml"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path, text, words):
    with pytest.raises(ClaimError, match=words) as error:
        plan_in(tmp_path, text)
    assert "toy.yaml" in str(error.value)


def test_moments_belong_to_the_plans_experiment(tmp_path, monkeypatch):
    plan, seen = chaos.Plan("toy/mini", ["a=1"], [Moment("x")]), faked(monkeypatch)
    monkeypatch.setattr(chaos, "load_plan", lambda _: plan)
    chaos.main(["toy", "--output", str(tmp_path)])
    chaos.main(["toy", "--experiment", "toy/other", "--output", str(tmp_path)])
    assert [moments for *_, moments in seen] == [plan.moments, []]


def test_command_line_fails_on_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chaos, "chaos", Mock(side_effect=ChaosError("no luck")))
    for method, said in (
        ("comatch", "chaos: failed: no luck"),
        ("comatsh", "did you mean 'comatch'"),  # a method without a plan
    ):
        assert chaos.main([method, "--output", str(tmp_path)]) == 2
        assert said in capsys.readouterr().out
    with pytest.raises(SystemExit):
        chaos.main(["comatch", "--kills", "0"])


@pytest.mark.slow
def test_smallest_run_of_comatch_is_identical(tmp_path):
    arguments = ["comatch", "--experiment", "comatch/smoke", "--output", str(tmp_path)]
    overrides = [f"data_root={tmp_path}/data", "trainer.max_steps=60", "data.steps_per_epoch=20"]
    assert chaos.main([*arguments, "checkpoint_every=3", "--kills", "2", *overrides]) == 0
