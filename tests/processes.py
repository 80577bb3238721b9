"""Programs that tests start: none outlives its test, and none is waited for without end."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest


@contextmanager
def started(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a process group of its own, which ends with the block at the latest.

    Its output goes to files: a pipe that nobody reads would stop it, and one that a child of it
    holds open would keep the reader waiting. Signals have their default actions, whatever the
    tests' own parent ignores.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
            preexec_fn=_default_signals,
            **options,
        )
        process.stdout, process.stderr = out, err
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def ended(process: subprocess.Popen[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Wait for the end of what `started` gave; the test fails with its output if that is late."""
    late = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    said = []
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.seek(0)
        said.append(stream.read())
    if late:
        pytest.fail(f"{process.args} had not ended after {seconds:g} s:\n{said[0]}\n{said[1]}")
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def run(
    command: Sequence[Any], seconds: float = 120.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which must come within so many seconds."""
    with started(command, **options) as process:
        return ended(process, seconds)


def until(holds: Callable[[], object], seconds: float) -> None:
    """Wait until something holds, which must come within so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds:g} s"
        time.sleep(0.5)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail the test if the block, in this process, has not ended after so many seconds."""

    def ring(*_: Any) -> None:
        pytest.fail(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
