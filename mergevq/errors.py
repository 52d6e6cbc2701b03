"""The one error that means: something the user gave is wrong."""


class InputError(ValueError):
    """A value, file or combination that the user can put right.

    The message is one line that names the thing (key path, file, row) and the fix. Command-line tools print
    it without a traceback and exit with status 2; every other exception is a failure of ours (status 1).
    """
