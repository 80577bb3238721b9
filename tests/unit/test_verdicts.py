"""README's verdicts are those that were found, and say which the claims of today have not had."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from claims_toy import CLAIM, FakeLauncher, remember, write_claim, write_conf
from rich.console import Console

from benchmarks import figures, verdicts
from benchmarks.everything import everything
from benchmarks.verdicts import KEPT, README, found_in, hashes, rendered, updated


def test_readme_shows_what_is_kept() -> None:
    kept = yaml.safe_load(KEPT.read_text())
    shown = rendered(kept, hashes(list(kept)))
    text = README.read_text()
    assert updated(text, shown) == text, "run python -m benchmarks.verdicts"


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict]:
    """A toy's claim, run by a launcher that trains nothing, and its verdict."""
    remember(monkeypatch)
    monkeypatch.setattr(figures, "draw", lambda path, *_: path.write_bytes(b"a picture"))
    conf = write_conf(tmp_path)
    write_claim(conf, CLAIM)
    launcher = FakeLauncher(lambda arm, seed: 60.0 + 4 * (arm == "ours") + seed)
    quiet = Console(file=(tmp_path / "screen").open("w"))
    everything(launcher=launcher, conf=conf, outputs=tmp_path / "outputs", console=quiet)
    return conf, found_in(tmp_path / "outputs", conf)


def test_verdicts_are_taken_from_outputs(found: tuple[Path, dict]) -> None:
    conf, verdict = found
    assert set(verdict) == {"toy"}
    toy = verdict["toy"]
    assert toy["verdict"] == "yes"
    assert toy["difference"] == {"mean": 4.0, "low": 4.0, "high": 4.0}
    assert toy["hash"] == hashes(["toy"], conf)["toy"]
    table = rendered({"toy": {"says": "it learns", **toy}}, hashes(["toy"], conf))
    assert "| `METHOD=toy` | it learns | +4.00 (+4.00 to +4.00) |" in table
    assert table.endswith("| yes |")


def test_a_claim_that_has_changed_since_is_said_to_have(found: tuple[Path, dict]) -> None:
    conf, verdict = found
    write_claim(conf, {**CLAIM, "smallest_difference": 3.5})
    table = rendered({"toy": {"says": "it learns", **verdict["toy"]}}, hashes(["toy"], conf))
    assert table.endswith("| yes (of an earlier config) |")
    gone = {"toy gone": {"says": "it was", **verdict["toy"]}}
    table = rendered(gone, hashes(["toy gone"], conf))
    assert "`METHOD=toy CLAIM=gone`" in table
    assert table.endswith("(of an earlier config) |")


def test_a_page_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match="README has no lines"):
        updated("nothing here", "table")


def test_what_is_kept_stays_and_what_is_new_is_added(
    found: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, _ = found
    kept, readme = tmp_path / "verdicts.yaml", tmp_path / "README.md"
    old = {"says": "old one", "hash": "x", "verdict": "no", "difference": None, "control": None}
    kept.write_text(yaml.safe_dump({"other": old}))
    readme.write_text(f"before\n{verdicts.BEGIN}{verdicts.END}\nafter\n")
    monkeypatch.setattr(verdicts, "KEPT", kept)
    monkeypatch.setattr(verdicts, "README", readme)
    monkeypatch.setattr(verdicts, "found_in", lambda outputs: found_in(outputs, conf))
    monkeypatch.setattr(verdicts, "hashes", lambda names: hashes(names, conf))
    assert verdicts.main(["--outputs", str(tmp_path / "outputs")]) == 0
    assert set(yaml.safe_load(kept.read_text())) == {"other", "toy"}
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert sum(line.startswith("| `METHOD=") for line in lines) == 2


def test_the_first_run_of_a_config_counts(
    found: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    conf, verdict = found
    first = {**verdict["toy"], "verdict": "undecided"}
    first["difference"] = {"mean": 1.0, "low": -1.0, "high": 3.0}
    kept, readme = tmp_path / "verdicts.yaml", tmp_path / "README.md"
    kept.write_text(yaml.safe_dump({"toy": {"says": "it learns", **first}}))
    readme.write_text(f"{verdicts.BEGIN}{verdicts.END}\n")
    monkeypatch.setattr(verdicts, "KEPT", kept)
    monkeypatch.setattr(verdicts, "README", readme)
    monkeypatch.setattr(verdicts, "found_in", lambda outputs: found_in(outputs, conf))
    monkeypatch.setattr(verdicts, "hashes", lambda names: hashes(names, conf))
    given = ["--outputs", str(tmp_path / "outputs")]
    verdicts.main(given)
    said = "toy: undecided, +1.00 (-1.00 to +3.00) stays; this run: yes, +4.00 (+4.00 to +4.00)"
    assert said in capsys.readouterr().out
    assert yaml.safe_load(kept.read_text())["toy"]["verdict"] == "undecided"
    verdicts.main([*given, "--replace"])
    assert yaml.safe_load(kept.read_text())["toy"]["verdict"] == "yes"
