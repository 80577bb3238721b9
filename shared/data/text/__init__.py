"""Texts: cleaning rules, tokenisers, batches of equal length."""
