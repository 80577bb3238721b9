"""tenfold-detect label is killed at random moments and started again: the bytes are the same."""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import within
from tests.unit import detect_toy as toy

KILLED = -9
FORKS = multiprocessing.get_context("forkserver")  # imports are paid for once, not at each start
FORKS.set_forkserver_preload(["tests.unit.detect_toy"])


@pytest.fixture(autouse=True)
def bounded():
    with within(900):
        yield


def started(*words: str) -> Any:
    """A process of its own that runs the command."""
    process = FORKS.Process(target=toy.end_with, args=(list(words),))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "blocks"), [(2, 3), (5, 20)])
def test_kills_at_random_moments_change_no_byte(tmp_path: Path, kills: int, blocks: int) -> None:
    files = toy.write_scenes(tmp_path / "in", 4 * blocks)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    words, whole = toy.options(files, out), started("label", *toy.options(files, undisturbed))
    whole.join()
    assert whole.exitcode == 0
    journal = out / "work/shard-00000-of-00001.journal"
    generator, lines_at_kill = random.Random(0), []
    # Each kill comes after some more lines of the journal; the last one while outputs are written.
    targets = [*sorted(generator.sample(range(1, blocks), kills - 1)), None]
    for target in targets:
        process = started("--slow", "label", *words)
        while process.is_alive() and not reached(journal, out, target):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == KILLED
        lines_at_kill.append(journal.read_bytes().count(b"\n"))
        assert not (out / "card.json").exists()
    assert lines_at_kill == sorted(set(lines_at_kill))
    assert lines_at_kill[-1] == blocks + 2
    before = journal.read_bytes()
    done = started("label", *words)
    done.join()
    assert (done.exitcode, journal.read_bytes()) == (0, before)
    assert toy.outputs(out) == toy.outputs(undisturbed)
    assert before == (undisturbed / "work" / journal.name).read_bytes()


def reached(journal: Path, out: Path, lines: int | None) -> bool:
    """Whether a journal has more than so many lines; without a number, whether outputs begin."""
    if lines is None:
        return bool(list(out.glob(".unusable.jsonl.*.tmp")))
    return journal.exists() and journal.read_bytes().count(b"\n") > lines
