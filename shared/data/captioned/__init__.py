"""Captioned images as they come, streamed, and work on them that can be cut and goes on."""
