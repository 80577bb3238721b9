"""Evaluation protocols that more than one paper uses."""
