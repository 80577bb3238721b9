"""Pairs of documentation and function from packages, in CodeSearchNet's layout."""
