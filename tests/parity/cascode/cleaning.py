"""Adapters of the cleaning of data."""

from typing import Any

from methods.cascode import cleaning
from methods.cascode.cleaning import (
    documentation_tokens,
    identifiers,
    strip_comment_delimiters,
    summary,
    without_comments,
)

Values = dict[str, Any]


def docstring_rules(config: Values, inputs: Values, weights: Values) -> Values:
    summaries = [summary(text) for text in inputs["docstrings"]]
    return {
        "summary": summaries,
        "tokens": [documentation_tokens(text) for text in summaries],
        "stripped": [strip_comment_delimiters(comment) for comment in inputs["comments"]],
    }


def code_cleaning(config: Values, inputs: Values, weights: Values) -> Values:
    return {
        "python": [without_comments(source, "python") for source in inputs["python"]],
        "c_like": [without_comments(source, "java") for source in inputs["c_like"]],
    }


def near_duplicates(config: Values, inputs: Values, weights: Values) -> Values:
    documents = [identifiers(tokens, config["language"]) for tokens in inputs["documents"]]
    accepted = [len(tokens) >= config["min_identifier_tokens"] for tokens in documents]
    compared = [i for i, long_enough in enumerate(accepted) if long_enough]
    clusters = cleaning.near_duplicates(
        [documents[i] for i in compared], config["set_threshold"], config["multiset_threshold"]
    )
    return {
        "accepted": accepted,
        "clusters": [[compared[i] for i in cluster] for cluster in clusters],
    }
