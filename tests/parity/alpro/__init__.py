# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the ALPRO cases; what each name means is said in the case's `case.json`."""

from .data import frame_sampling, lr_schedule, randaugment
from .evaluation import qa_metrics, retrieval_metrics
from .finetuning import qa_finetune_loss, retrieval_finetune_losses
from .network import (
    multimodal,
    temporal_embed_interpolation,
    text_encoder,
    timesformer,
    timesformer_init_from_vit,
)
from .pretraining import mlm_loss, mlm_masking, pretrain_step, vtc_loss, vtm_loss
from .prompting import pem_loss, prompter_pseudo_labels, random_crop_for_pem
