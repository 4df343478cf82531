"""The one exception that the command line shows to people without a traceback."""


class UserError(Exception):
    """Something the user gave cannot work: the message names the file, row or key, and what to do about it.

    The command line prints the message alone and exits with code 2.
    """
