"""SimCal: classification calibration for long-tail instance segmentation."""
