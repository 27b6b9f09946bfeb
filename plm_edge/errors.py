"""Every error a user can cause, and the exit code of its class.

    PlmEdgeError
      UsageError          2   an option or argument that cannot be, or names what is not there
      SpecError           3   a checkpoint that cannot be exported faithfully
      FileFormatError     3   a file that is not what it says it is
      NumericalError      3   NaN or infinity where numbers belong
      OutputError         4   the disk, a folder, a permission
      DoesNotFit          5   more memory or context than there is
        ContextOverflow       more ids than the session's context holds
      UnsupportedError    6   understood, but not built here or not installed
      SessionBusy         6   a second thread in the same session
      Interrupted       130   the user stopped it

Each message is one line: what was expected, what was found, what to do.
"""

from __future__ import annotations


class PlmEdgeError(Exception):
    """Base of every error a user can cause; `exit_code` is what the command line returns."""

    exit_code = 70


class UsageError(PlmEdgeError):
    """An option or argument has a value it cannot have, or names what is not there."""

    exit_code = 2


class SpecError(PlmEdgeError):
    """The checkpoint is not one that can be exported faithfully."""

    exit_code = 3


class FileFormatError(PlmEdgeError):
    """The file is not what it says it is."""

    exit_code = 3


class NumericalError(PlmEdgeError):
    """NaN or infinity stands where a number belongs."""

    exit_code = 3


class OutputError(PlmEdgeError):
    """Something could not be read from or written to the disk."""

    exit_code = 4


class DoesNotFit(PlmEdgeError):
    """More memory is needed than the device has."""

    exit_code = 5


class ContextOverflow(DoesNotFit):
    """More ids than the session's context holds."""


class UnsupportedError(PlmEdgeError):
    """Understood, but not supported here or not installed."""

    exit_code = 6


class SessionBusy(PlmEdgeError):
    """Another thread is inside this session."""

    exit_code = 6


class Interrupted(PlmEdgeError):
    """The user stopped the work."""

    exit_code = 130


def short(value: object, most: int = 80) -> str:
    """`repr` for messages: what a file says may be long or unprintable."""
    text = repr(value).replace("\n", " ")  # numpy breaks its lines
    return text if len(text) <= most else text[: most - 3] + "..."
