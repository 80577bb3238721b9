"""Adapters of the CasCode cases; what each name means is said in the case's `case.json`."""

from .cleaning import code_cleaning, docstring_rules, near_duplicates
from .encoding import pair_encoding
from .networks import (
    biencoder_step_graphcodebert,
    biencoder_step_unixcoder,
    binary_rerank_loss,
    cross_encoder,
    infonce_loss,
    roberta_encoder_pooling,
    shared_joint_loss,
)
from .ranking import cascade_ranking, mrr_protocol

__all__ = [
    "biencoder_step_graphcodebert",
    "biencoder_step_unixcoder",
    "binary_rerank_loss",
    "cascade_ranking",
    "code_cleaning",
    "cross_encoder",
    "docstring_rules",
    "infonce_loss",
    "mrr_protocol",
    "near_duplicates",
    "pair_encoding",
    "roberta_encoder_pooling",
    "shared_joint_loss",
]
