"""The common floor of the ten methods: what the papers share, written once."""
