"""Readers of public formats on disk."""
