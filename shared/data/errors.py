"""What is wrong with data on disk: it is not there, damaged, or not to be worked on so."""


class DataNotFoundError(FileNotFoundError):
    """Data is not where it was looked for; the message says how to provide it."""


class DataCorruptError(ValueError):
    """A data file is truncated or damaged; the message names it."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which file and why."""


class WorkError(RuntimeError):
    """A tool cannot do what it was asked for; the message says why and what to do, in a line."""
