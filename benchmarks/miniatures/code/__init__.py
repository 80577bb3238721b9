"""Pairs of documentation and function from packages, in CodeSearchNet's layout."""

from benchmarks.miniatures.code.builder import corpus

__all__ = ["corpus"]
