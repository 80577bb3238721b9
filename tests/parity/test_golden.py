"""Every golden case through its adapter."""

from collections.abc import Callable

from .harness import Case, check


def test_golden(golden_case: Case, record_property: Callable[[str, object], None]) -> None:
    record_property("outputs", len(check(golden_case)))
