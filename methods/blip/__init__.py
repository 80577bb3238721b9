"""BLIP: bootstrapping language-image pre-training for understanding and generation (2201.12086)."""
