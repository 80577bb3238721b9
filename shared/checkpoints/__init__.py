"""Checkpoints: safe reading, atomic writing, official key tables, pretrained weights."""
