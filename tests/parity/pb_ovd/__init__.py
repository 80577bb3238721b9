# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the PB-OVD cases, by task; what each name means is said in the case's `case.json`."""

from .boxes import box_scoring, gradcam_activation, pseudo_label_coco, string_matching
