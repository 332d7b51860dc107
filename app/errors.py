"""What a visitor of the web app can get wrong; each message is one plain sentence for the page.

SVFitError
└── AppError
    ├── SettingError     a value of a form or of the command line is out of range
    ├── UploadError      an uploaded file is refused
    ├── LibraryError     an adapter is not there, is not the visitor's, or its name cannot be used
    └── BusyError        there is no room for more of this visitor at the moment
"""

from svfit_diffusion.errors import SVFitError


class AppError(SVFitError):
    """Base class of what the app tells its visitors."""


class SettingError(AppError, ValueError):
    """A value of a form or of the command line is out of range."""


class UploadError(AppError, ValueError):
    """An uploaded file is refused."""


class LibraryError(AppError, ValueError):
    """An adapter is not in the library or not the visitor's, or its name cannot be used."""


class BusyError(AppError):
    """There is no room for more of this visitor at the moment."""


def public_reason(error: Exception) -> str:
    """Why something failed, in words for visitors: no paths, and one line."""
    if isinstance(error, OSError):
        return "the server has no room, or may not write"
    if isinstance(error, SVFitError):
        return str(error).splitlines()[0].rstrip(".")
    return "something unexpected happened, and the server's log says what"
