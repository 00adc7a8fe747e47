"""What can go wrong for a reason outside the code, one class per exit code.

A user's mistake, a bad file or a full disk raises one of these with one line that names the cause and the remedy; the
scripts print that line and exit with the class's code. Anything else is a bug and keeps its traceback.
"""


class WordbrushError(Exception):
    """Base of the expected failures; ``exit_code`` is what the process returns."""

    exit_code = 1


class Refused(WordbrushError):
    """Bad configuration or refused input."""

    exit_code = 2


class BadData(WordbrushError):
    """Data or checkpoints that cannot be used."""

    exit_code = 65


class NonFinite(WordbrushError):
    """A loss or gradient that is not a number."""

    exit_code = 70


class OutOfMemory(WordbrushError):
    """The memory of the device is too small for even one sample or image; the exit code is the base's 1."""


class ProcessLost(WordbrushError):
    """Another process of the same training died or hangs; starting again goes on."""

    exit_code = 75


class StorageFailed(WordbrushError):
    """The disk is full or refuses to be written."""

    exit_code = 74
