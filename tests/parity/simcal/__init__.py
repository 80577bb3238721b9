# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the SimCal cases, by task; what each name means is said in the case's `case.json`."""

from .calibration import (
    calibration_step,
    classifier_head_2fc,
    classifier_head_3fc,
    head_init_3fc_ft,
)
from .data_cases import (
    bilevel_sampler,
    bilevel_sampler_one_image,
    bin_ap,
    dataset_statistics,
    lvis_eval,
    proposal_recall,
    repeat_factor_sampling,
)
from .inference import (
    class_balanced_reweighting,
    dual_head_inference_clswise,
    dual_head_inference_coco_lt,
    dual_head_inference_htc,
    dual_head_inference_lvis,
    sigmoid_focal_loss,
)
from .regions import legacy_box_ops, proposal_sampling
