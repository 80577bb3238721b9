"""Emoji drawn by eight artists under open licences: concept table, drawings, labelled sets."""

from benchmarks.miniatures.emoji.subgroup_labels import subgroups

__all__ = ["subgroups"]
