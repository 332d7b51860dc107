"""What a visitor of the web app can get wrong; each message is one plain sentence for the page.

SVFitError
└── AppError
    ├── SettingError     a value of a form or of the command line is out of range
    ├── UploadError      an uploaded file is refused
    ├── LibraryError     an adapter is not there, is not the visitor's, or its name cannot be used
    └── BusyError        there is no room for more of this visitor at the moment
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from svfit_diffusion.errors import SVFitError


class AppError(SVFitError):
    """Base class of what the app tells its visitors.

    Args:
        message: one plain sentence.
        field: which field of the form is at fault, such as `instance-prompt`; `""` if none is.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class SettingError(AppError, ValueError):
    """A value of a form or of the command line is out of range."""


class UploadError(AppError, ValueError):
    """An uploaded file is refused."""


class LibraryError(AppError, ValueError):
    """An adapter is not in the library or not the visitor's, or its name cannot be used."""


class BusyError(AppError):
    """There is no room for more of this visitor at the moment."""


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Say of errors within which field of a form is at fault, with the first line of each.

    Raises:
        SettingError: for every `SVFitError`.
    """
    try:
        yield
    except SVFitError as error:
        raise SettingError(first_line(error), field) from error


def first_line(error: Exception) -> str:
    """The sentence of an error, without what is listed below it."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def public_reason(error: Exception) -> str:
    """Why something failed, in words for visitors: no paths, and one line."""
    if isinstance(error, OSError):
        return "the server has no room, or may not write"
    if isinstance(error, SVFitError):
        return first_line(error).rstrip(".")
    return "something unexpected happened, and the server's log says what"
