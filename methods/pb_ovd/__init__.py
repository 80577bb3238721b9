"""PB-OVD: open-vocabulary object detection with pseudo bounding-box labels."""
