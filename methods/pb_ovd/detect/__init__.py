"""Pseudo boxes for captioned images: `tenfold-detect label | merge`."""
