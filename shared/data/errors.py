"""What is wrong with data on disk: it is not there, or damaged."""


class DataNotFoundError(FileNotFoundError):
    """Data is not where it was looked for; the message says how to provide it."""


class DataCorruptError(ValueError):
    """A data file is truncated or damaged; the message names it."""
