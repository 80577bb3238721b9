"""Every claim of every method in one command, with a launcher that trains nothing."""

from pathlib import Path
from typing import Any

import pytest
from claims_toy import CLAIM, FakeLauncher, assert_says, remember, write_claim, write_conf
from rich.console import Console

from benchmarks import figures
from benchmarks.claims import ClaimError
from benchmarks.everything import claims_of, everything, main
from shared.data.errors import DataNotFoundError


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method with two claims."""
    remember(monkeypatch)
    monkeypatch.setattr(figures, "draw", lambda path, *_: path.write_bytes(b"a picture"))
    conf = write_conf(tmp_path)
    text = write_claim(conf, CLAIM).read_text()
    (conf / "reproduce" / "toy").mkdir()
    second = text.replace("Toy with few labels", "Toy once more")
    (conf / "reproduce" / "toy" / "again.yaml").write_text(second)
    return conf


def run(conf: Path, launcher: Any, **given: Any) -> tuple[int, str]:
    console = Console(width=160, record=True, file=(conf.parent / "screen").open("w"))
    outputs = conf.parent / "outputs"
    status = everything(launcher=launcher, conf=conf, outputs=outputs, console=console, **given)
    return status, console.export_text()


def test_all_claims_run_and_a_second_call_reuses_them(conf: Path) -> None:
    launcher, again = FakeLauncher(lambda arm, seed: 60.0 + 4 * (arm == "ours") + seed), []
    status, screen = run(conf, launcher)
    assert status == 0
    assert len(launcher.ran) == 2 * 9
    assert_says(screen, "1 of 2: toy", "2 of 2: toy again", "all claims")
    table = screen[screen.index("all claims") :]
    assert_says(table, "Toy with few labels", "Toy once more")
    assert table.count("yes") == 2
    assert table.count("ours - base") == 2
    status, screen = run(conf, lambda *given: again.append(given))
    assert (status, again) == (0, [])
    assert screen.count("reused 9 of 9 runs") == 2


@pytest.mark.parametrize("error", [DataNotFoundError, FileNotFoundError])  # also of a checkpoint
def test_a_claim_that_fails_does_not_stop_the_rest(
    conf: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def source(config: Any) -> None:
        if config == "absent":
            raise error("no such data: fetch them")

    def sources(configs: Any) -> list[str]:
        seen.append([config.arm for config in configs])
        return ["absent"] if len(seen) == 1 else []

    seen: list[Any] = []
    monkeypatch.setattr("benchmarks.reproduce.call", source)
    monkeypatch.setattr("benchmarks.claims.distinct_sources", sources)
    launcher = FakeLauncher(lambda arm, seed: 60.0 + seed)
    status, screen = run(conf, launcher)
    assert (status, len(launcher.ran)) == (1, 9)
    assert_says(screen, "failed: toy\nno such data: fetch them", "Toy once more")
    broken = FakeLauncher(lambda arm, seed: None if (arm, seed) == ("ours", 2) else 60.0 + seed)
    status, screen = run(conf, broken)
    assert status == 1
    assert_says(screen, "failed: toy\nruns failed, see above")
    assert "failed: toy again" not in screen


def test_methods_are_chosen_by_name(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_of(None, conf) == [("toy", None), ("toy", "again")]
    (conf / "reproduce" / "other.yaml").write_text("")
    assert claims_of(["toy"], conf) == [("toy", None), ("toy", "again")]
    assert claims_of(None, conf)[:2] == [("other", None), ("toy", None)]
    with pytest.raises(ClaimError, match="no claim of method 'top'; did you mean 'toy'"):
        claims_of(["top"], conf)
    assert main(["--methods", "comach"]) == 2
    assert "did you mean 'comatch'?" in capsys.readouterr().err
