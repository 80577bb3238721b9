"""Which frames of a video stand for all of it (docs/papers/blip.md, section 6)."""


def uniform_frames(video_frames: int, count: int) -> list[int]:
    """Numbers of `count` frames of a video, a whole number of frames apart, so that the end may be
    left out; a video of fewer frames repeats its first (salesforce/BLIP@056a169
    `data/video_dataset.py:VideoDataset._load_video_from_path_decord`)."""
    step = video_frames // count
    return [step * number for number in range(count)]
