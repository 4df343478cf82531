"""The exceptions that the command line shows to people without a traceback."""


class UserError(Exception):
    """Something the user gave cannot work: the message names the file, row or key, and what to do about it.

    The command line prints the message alone and exits with code 2.
    """


class NotApplicable(UserError):
    """Encoders lack what a task needs: in a comparison that is a dash with the reason, not a failure."""
