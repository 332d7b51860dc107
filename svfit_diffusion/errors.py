"""Everything a user of svfit-diffusion can get wrong, as exceptions.

    SVFitError
    ├── ConfigError          a setting is out of range or contradicts another
    ├── TargetError          a target matches no projection, or one that cannot be shifted
    ├── DataError            a folder, an image or a caption cannot be used
    ├── BasisError           singular vectors cannot be computed from these weights
    ├── CacheError           the cache of singular vectors lacks room, or a hub fails it
    ├── CheckpointError      a file is not a usable adapter or training checkpoint
    │   └── BaseMismatchError    the adapter was trained on another base model
    ├── StorageError         a file or folder cannot be written: no room, no permission
    │   └── UnsavedError         what was trained could be written nowhere, and is in memory
    ├── AdapterNameError     an adapter name is unknown or already taken
    ├── StateError           calls out of order (unfuse before fuse, ...)
    ├── InterchangeError     an adapter cannot be exported, or a LoRA not imported
    ├── BatchError           a batch does not fit the adapters given per prompt
    ├── DivergedError        training has left the finite numbers
    ├── BusyError            a server has no room for more requests at the moment
    ├── LostProcessError     another process of a training has ended
    ├── PackageError         another package is missing, too old or in the way
    ├── SubjectsError        some of several subjects could not be trained
    └── StoppedError         a training was stopped before it had learned anything

Each is also the built-in exception that a caller who does not know us would expect.
"""

from collections.abc import Mapping


class SVFitError(Exception):
    """Base class of all errors raised on purpose by this package."""


class ConfigError(SVFitError, ValueError):
    """A setting is out of range or contradicts another."""


class TargetError(SVFitError, ValueError):
    """A target matches no projection, or one that cannot be shifted."""


class DataError(SVFitError, ValueError):
    """A folder, an image or a caption cannot be used."""


class BasisError(SVFitError, ValueError):
    """Singular vectors cannot be computed from these weights."""


class CacheError(SVFitError, OSError):
    """The cache of singular vectors lacks room or files, or the hub does not give or take them."""


class CheckpointError(SVFitError, ValueError):
    """A file is not a usable adapter or training checkpoint."""


class BaseMismatchError(CheckpointError):
    """The adapter was trained on another base model."""


class StorageError(SVFitError, OSError):
    """A file or folder cannot be written: there is no room, or no permission."""


class UnsavedError(StorageError):
    """What was trained could be written nowhere, and is in memory.

    Attributes:
        adapter: it, a `files.adapter.Adapter`: `files.adapter.write_adapter` writes it elsewhere.
    """

    def __init__(self, message: str, adapter: object) -> None:
        super().__init__(message)
        self.adapter = adapter


class AdapterNameError(SVFitError, ValueError):
    """An adapter name is unknown or already taken."""


class StateError(SVFitError, RuntimeError):
    """A call came out of order, such as unfuse before fuse."""


class InterchangeError(SVFitError, ValueError):
    """An adapter cannot be exported as asked, or a LoRA or a model not imported."""


class BatchError(SVFitError, ValueError):
    """A batch does not fit the adapters given for each of its prompts."""


class DivergedError(SVFitError, ArithmeticError):
    """Training has left the finite numbers."""


class BusyError(SVFitError, RuntimeError):
    """A server has no room for more requests at the moment."""


class LostProcessError(SVFitError, RuntimeError):
    """Another process of a training has ended, without which this one cannot go on."""


class PackageError(SVFitError, ImportError):
    """Another package is missing, too old or in the way."""


class SubjectsError(SVFitError, RuntimeError):
    """Some of several subjects could not be trained; the others are.

    Attributes:
        failures: why, by name of the subject.
    """

    def __init__(self, failures: Mapping[str, Exception], total: int) -> None:
        reasons = [f"{name}: {error}" for name, error in failures.items()]
        title = f"{len(failures)} of {total} subjects could not be trained"
        super().__init__(listed(title, reasons, limit=100))
        self.failures = dict(failures)


class StoppedError(SVFitError, RuntimeError):
    """A training was stopped before it had learned anything."""


_LONGEST = 400  # characters


def clipped(said: object) -> str:
    """What a file or another library says, cut off where it is long: names in files may be of any
    length.
    """
    text = str(said)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def listed(title: str, problems: list[str], limit: int = 8) -> str:
    """A message that lists what is wrong, one line each, not more than `limit`."""
    shown = [clipped(problem) for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"… and {len(problems) - limit} more")
    return f"{title}:\n  " + "\n  ".join(shown)
