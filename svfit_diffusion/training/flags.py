"""Command lines made from dataclasses of settings, with errors of ours."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import HfArgumentParser

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training import fields


class FlagParser(HfArgumentParser):  # type: ignore[misc]
    """Parses flags that are the fields of dataclasses, and names the nearest to a misspelt one.

    Args:
        settings: a dataclass, or several.
        **kwargs: as `argparse.ArgumentParser` takes them.
    """

    def __init__(self, settings: Any, **kwargs: Any) -> None:
        # A flag that begins like another is misspelt; later definitions go before earlier ones.
        super().__init__(settings, allow_abbrev=False, conflict_handler="resolve", **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what others print before they leave the process."""
        raise ConfigError(f"{message}; see --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """What argparse calls for a choice; its own message names no nearest one."""
        if action.choices is not None:
            fields.check_choice(action.dest, value, action.choices)

    def values(self, words: Sequence[str]) -> argparse.Namespace:
        """What a command line says; `ConfigError` if a word is wrong or misspelt."""
        namespace, unknown = self.parse_known_args(words)
        if not unknown:
            return namespace
        if not unknown[0].startswith("-"):
            raise ConfigError(f"{unknown[0]!r} belongs to no flag; see --help")
        flag = unknown[0].partition("=")[0]
        near = self.nearest(flag)
        raise ConfigError(f"there is no {flag}{f'; did you mean --{near}?' if near else ''}")

    def nearest(self, name: str) -> str | None:
        """The setting that a misspelt one, with or without dashes, is most like, if any."""
        known = [field.name for kind in self.dataclass_types for field in dataclasses.fields(kind)]
        return fields.nearest(name.lstrip("-").replace("-", "_"), known)
