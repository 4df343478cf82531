"""The exceptions that the command line shows to people without a traceback."""

from typing import ClassVar


class UserError(Exception):
    """Something the user gave cannot work: the message names the file, row or key, and what to do about it.

    The command line prints the message alone and exits with `exit_code`.
    """

    exit_code: ClassVar[int] = 2


class NotApplicable(UserError):
    """Encoders lack what a task needs: in a comparison that is a dash with the reason, not a failure."""


class Stopped(UserError):
    """A run has ended before its time, on all of its processes together."""


class Interrupted(Stopped):
    """A signal asked a run to end; the same command goes on. The exit code is that of a process ended by SIGTERM."""

    exit_code = 143
