"""What the tools' console scripts share: how a command ends, and options that are numbers."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from shared.files import LockedError
from shared.showing import printable

OF_THE_MACHINE = (ModuleNotFoundError, OSError, MemoryError)


def exit_status(
    program: str, command: Callable[[], object], foreseen: tuple[type[Exception], ...], goes_on: str
) -> int:
    """Run a command; 0, 1 where it could not be done, which is said in a line, 130 after Ctrl-C,
    with what `goes_on`. `foreseen` are the errors whose message says all that there is to know."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LockedError as holder:
        print(f"{program}: another process works on this ({holder})", file=sys.stderr)
        return 1
    except foreseen + OF_THE_MACHINE as error:
        said = printable(" ".join(str(error).split())) or "out of memory"
        print(f"{program}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped; {goes_on}", file=sys.stderr)
        return 130
    return 0


def bounded(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    """The type of an option that is a number from `least` to `most`."""

    def parsed(text: str) -> float:
        with suppress(ValueError):
            if len(text) < 30 and least <= kind(text) <= most:
                return kind(text)
        wanted = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no {wanted} from {least} to {most}")

    return parsed
