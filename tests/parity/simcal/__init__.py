# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the SimCal cases; what each name means is said in the case's `case.json`."""

from .data_cases import (
    bilevel_sampler,
    bilevel_sampler_one_image,
    bin_ap,
    dataset_statistics,
    lvis_eval,
    proposal_recall,
    repeat_factor_sampling,
)
