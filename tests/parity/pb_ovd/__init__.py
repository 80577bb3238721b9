# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the PB-OVD cases, by task; what each name means is said in the case's `case.json`."""

from .boxes import box_scoring, gradcam_activation, pseudo_label_coco, string_matching
from .detector import detector_inference, detector_train_step, lr_schedule
from .detector_data import eval_split_ap, image_transform, text_embedding_ensemble
from .regions import (
    detector_postprocess,
    open_vocab_box_loss,
    open_vocab_box_loss_frozen,
    rpn_loss_and_proposals,
    text_classifier_logits,
)
