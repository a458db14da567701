"""The errors that are meant for the user: a sentence that says what, where, and what to do.

Anything else that is raised is a defect of ours and keeps its traceback.
"""


class AutoMoEError(Exception):
    """Base of every error whose message is a sentence for the user. Entry points print it and exit with 2."""


class DataError(AutoMoEError):
    """A data set, a file or a record is not what it should be. The message names file and record."""


class ConfigError(AutoMoEError):
    """A configuration key, a flag or an environment variable is wrong. The message names it."""


class CheckpointError(AutoMoEError):
    """A checkpoint is missing, damaged, or doesn't fit the model. The message names file and keys."""


class TrainingError(AutoMoEError):
    """Training cannot go on (a non-finite loss, say). The message names the step and the sample ids."""


class WriteError(AutoMoEError):
    """A file could not be written; what was there before still is. The message names the file and the reason."""

    def __init__(self, message: str, *, disk_full: bool = False) -> None:
        super().__init__(message)
        self.disk_full = disk_full


class WorldError(AutoMoEError):
    """The embedded world cannot be built or rendered. The message names the town and the reason."""


class DriveError(AutoMoEError):
    """Driving came to an end before all routes were driven. The message says how far it is and how to go on."""


class CollectError(AutoMoEError):
    """A CARLA server can't be reached or can't do what is asked for. The message says what and what to do."""
