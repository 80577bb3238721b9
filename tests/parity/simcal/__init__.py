# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the SimCal cases, by task; what each name means is said in the case's `case.json`."""

from .regions import legacy_box_ops, proposal_sampling
