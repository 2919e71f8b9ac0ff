"""The error class for problems that the user can fix."""


class UserError(ValueError):
    """An error in the user's input, files or environment.

    The message is one line that names the value, the rule it breaks and a way out. The command
    line prints it without a traceback and exits with code 2. Raise it only for what a user can
    fix; every other exception is a bug and keeps its traceback.
    """
