"""Emoji drawn by eight artists under open licences: concept table, drawings, labelled sets."""
