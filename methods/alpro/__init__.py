"""ALPRO: align and prompt, video-and-language pre-training with entity prompts."""
