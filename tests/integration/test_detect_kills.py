"""tenfold-detect label is killed five times and started again: the bytes are the same."""

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import ended, run, started, within
from tests.unit import detect_toy as toy

TOY = [sys.executable, "-m", "tests.unit.detect_toy"]
KILLS = 5
BLOCKS = 20


@pytest.fixture(autouse=True)
def bounded():
    with within(900):
        yield


def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    files = toy.write_scenes(tmp_path / "in", 4 * BLOCKS)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert run([*TOY, "label", *toy.options(files, undisturbed)]).returncode == 0
    journal = out / "work/shard-00000-of-00001.journal"
    generator, lines_at_kill = random.Random(0), []
    # Each kill comes after some more lines of the journal; the last one while outputs are written.
    targets = [*sorted(generator.sample(range(1, BLOCKS), KILLS - 1)), None]
    for target in targets:
        with started([*TOY, "--slow", "label", *toy.options(files, out)]) as process:
            while process.poll() is None and not reached(journal, out, target):
                time.sleep(0.002)
            assert process.poll() is None, ended(process, 1)
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        lines_at_kill.append(journal.read_bytes().count(b"\n"))
        assert not (out / "card.json").exists()
    assert lines_at_kill == sorted(lines_at_kill)
    assert lines_at_kill[0] < lines_at_kill[-2] < lines_at_kill[-1] == BLOCKS + 2
    done = run([*TOY, "label", *toy.options(files, out)])
    assert done.returncode == 0, done.stderr
    assert "0 of them in this run" in done.stdout
    assert toy.outputs(out) == toy.outputs(undisturbed)
    assert journal.read_bytes() == (undisturbed / "work" / journal.name).read_bytes()


def reached(journal: Path, out: Path, lines: int | None) -> bool:
    """Whether a journal has more than so many lines; without a number, whether outputs begin."""
    if lines is None:
        return bool(list(out.glob(".unusable.jsonl.*.tmp")))
    return journal.exists() and journal.read_bytes().count(b"\n") > lines
