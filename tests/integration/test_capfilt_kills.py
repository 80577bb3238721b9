"""tenfold-capfilt is killed at random moments and started again: the bytes are the same."""

import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import ended, run, started, within
from tests.unit import capfilt_toy as toy

KILLS = 4
TOY = [sys.executable, "-m", "tests.unit.capfilt_toy"]
ENDED = b'{"end":'


@pytest.fixture(autouse=True)
def bounded():
    with within(900):
        yield


@pytest.mark.slow  # the quick form is that of tenfold-detect: journal and outputs are the same
@pytest.mark.parametrize("kind", ["shards", "list"])
def test_kills_at_random_moments_change_no_byte(tmp_path: Path, kind: str) -> None:
    make = (
        toy.write_shards(tmp_path / "in", [50, 70])
        if kind == "shards"
        else toy.write_json(tmp_path / "in", 120)
    )
    options = ["run", make, "--captioner", "c", "--filter", "f", "--batch-size", 4]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert run([*TOY, *options, "--out", undisturbed, "--workers", 0]).returncode == 0
    journal = out / "work/shard-00000-of-00001.journal"
    generator = random.Random(kind)
    lines_at_kill = []
    # Each kill comes after some more lines of the journal; the last one while outputs are written.
    targets = [*sorted(generator.sample(range(2, 28), KILLS - 1)), None]
    for number, target in enumerate(targets):
        command = [*TOY, "--slow", *options, "--out", out, "--workers", number % 3]
        with started(command) as process:
            while process.poll() is None and not reached(journal, out, target):
                time.sleep(0.002)
            time.sleep(generator.uniform(0, 0.03))
            assert process.poll() is None, ended(process, 1)
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            deadline = time.monotonic() + 60
            while left := alive(process.pid):  # the workers end by themselves
                assert time.monotonic() < deadline, left
                time.sleep(0.01)
        lines_at_kill.append(journal.read_bytes().count(b"\n"))
        assert not (out / "card.json").exists()
    assert lines_at_kill == sorted(set(lines_at_kill))
    assert lines_at_kill[-1] == 32
    done = run([*TOY, *options, "--out", out, "--workers", 2])
    assert done.returncode == 0, done.stderr
    assert "0 of them in this run" in done.stdout
    assert toy.outputs(out) == toy.outputs(undisturbed)
    assert journal.read_bytes() == (undisturbed / "work" / journal.name).read_bytes()


def reached(journal: Path, out: Path, lines: int | None) -> bool:
    """Whether a journal has more than so many lines; without a number, whether outputs begin."""
    if lines is None:
        return bool(list(out.glob(".captions.jsonl.*.tmp")))
    return journal.exists() and journal.read_bytes().count(b"\n") > lines


def alive(group: int) -> list[str]:
    """Processes of a group, but those that have ended and that nobody asked for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] if int(process_group) == group and state != "Z" else []
    return found
