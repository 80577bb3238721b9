"""Parts of two-stage detectors: torchvision's where it has them, composed by `Detector`."""
