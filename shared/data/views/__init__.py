"""Views of images: the augmentations of the papers."""
