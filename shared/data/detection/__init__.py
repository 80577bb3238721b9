"""Pictures with boxes, labels and masks, for detectors."""
