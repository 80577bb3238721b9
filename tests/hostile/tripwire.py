"""Watches what reading a hostile input does: processes, writes outside, time."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 20.0
STARTS_A_PROCESS = {
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
}
CHANGES = {
    "os.chmod": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "sqlite3.connect": (0,),
}  # event -> places of the paths that it changes
FOLLOWING = {"os.chmod", "os.truncate", "sqlite3.connect"}  # of a link, what it leads to
BELOW = {"os.remove": 1, "os.rmdir": 1}  # place of the folder's descriptor, -1 for none
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LISTING = ["/sbin/ldconfig", "-p"]  # by which a torch built for CUDA once looks for its driver
HARMLESS = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/")


class HangError(BaseException):
    """A reader did not end; no `except Exception` may swallow this."""


@dataclass
class Watch:
    """What was seen: processes that were started, files that were changed outside of `inside`."""

    inside: Path
    processes: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take notice of one audit event of the interpreter."""
        if event in STARTS_A_PROCESS and list(arguments[1:2]) != [LISTING]:
            self.processes.append(f"{event}{arguments[:2]}")
        elif event == "open":
            path, mode, flags = arguments
            if isinstance(path, str | bytes) and (flags & WRITING or set(mode or "") & set("wax+")):
                self._changed(path)
        elif event in CHANGES and arguments[BELOW.get(event, 0)] in (-1, arguments[0]):
            for place in CHANGES[event]:
                self._changed(arguments[place], event in FOLLOWING)

    def _changed(self, path: Any, follow: bool = True) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, whose opening was seen
        head, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.join(os.path.realpath(head), name)
        real = os.path.realpath(real) if follow else real
        inside = str(self.inside)
        if real == inside or real.startswith((inside + os.sep, *HARMLESS)):
            return
        if "__pycache__" not in real:
            self.outside.append(real)


_WATCHES: list[Watch] = []
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHES:
        _WATCHES[-1].see(event, arguments)


@contextmanager
def watched(inside: Path, seconds: float = SECONDS) -> Iterator[Watch]:
    """Watch this process until the block ends, which must be within `seconds`.

    Raises:
        HangError: it did not end.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # for ever; it does nothing while nobody watches
        _hooked = True

    rung = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        rung = True
        raise HangError(f"not done after {seconds:g} s")

    collecting = gc.isenabled()
    gc.disable()  # loaders that earlier tests left may have workers that are slow to end
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    watch = Watch(Path(os.path.realpath(inside)))
    _WATCHES.append(watch)
    try:
        yield watch
    finally:
        _WATCHES.remove(watch)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if collecting:
            gc.enable()
        if rung:  # a library may have turned the error into one of its own
            raise HangError(f"not done after {seconds:g} s")
