# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the ALBEF cases, by task; what each name means is said in the case's `case.json`."""

from .classification import nlvr, nlvr_text_assignment, ve
from .evaluation import evaluation_rerank
from .grounding import gradcam, grounding_eval
from .official_files import checkpoint_remap
from .pipeline import lr_schedule, mlm_masking, pos_embed_interpolation, randaugment_ops
from .pretraining import (
    multimodal,
    pretrain_losses,
    pretrain_step,
    retrieval_losses,
    text_encoder,
    vit,
)
from .text import text_cleaning, tokenizer
from .vqa import vqa, vqa_accuracy
