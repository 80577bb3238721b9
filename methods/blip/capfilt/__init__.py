"""Captions for web images, and a filter of web and own captions: `tenfold-capfilt run | merge`."""
