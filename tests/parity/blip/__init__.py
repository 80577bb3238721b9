# ruff: noqa: F401  (the harness finds adapters by name)
"""Adapters of the BLIP cases, by task; what each name means is said in the case's `case.json`."""

from .data import data_rules, randaugment_ops, schedules
from .evaluation import (
    capfilt_filter,
    evaluation_rerank,
    evaluation_rerank_video,
    itc_score,
    itm_score,
)
from .network import (
    image_grounded_decoder,
    image_grounded_encoder,
    nlvr,
    nlvr_init_from_med,
    pos_embed_interpolation,
    text_encoder,
    vit,
)
from .training import (
    caption_loss,
    pretrain_losses,
    pretrain_step,
    retrieval_losses,
    retrieval_losses_two_ranks,
)
from .writing import (
    caption_generate,
    caption_sample_probs,
    vqa_generate,
    vqa_rank_answers,
    vqa_train_loss,
)
