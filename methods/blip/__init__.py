"""BLIP: bootstrapping language-image pre-training for unified understanding and generation."""
