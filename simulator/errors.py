"""The errors a user can cause. Each is one sentence; the command line prints it and exits with status 2."""


class SimpipeError(Exception):
    """Base of every error that bad input causes: its text is the whole message."""


class ProgramError(SimpipeError):
    """A schedule's order is malformed, incomplete or deadlocks."""


class ScheduleError(SimpipeError):
    """A schedule is unknown, cannot be loaded, or does not take the asked size."""


class CostsError(SimpipeError):
    """A cost is missing, misnamed, not finite or does not fit the program."""


class ParallelError(SimpipeError):
    """A parallel layout does not fit itself, the model or the machine."""


class OutputError(SimpipeError):
    """An output cannot be written or its ending names no format."""
