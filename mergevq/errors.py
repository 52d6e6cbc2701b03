"""The error for wrong input of a user."""


class InputError(ValueError):
    """A value, file or combination that the user can fix.

    The message is one line that names the thing (key path, file, row) and the fix. Command-line tools print
    it without a traceback and exit with status 2; every other exception is a failure of ours (status 1).
    """
