"""Reading of YAML files that users write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from svfit_diffusion.errors import ConfigError


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds, of plain types.

    Args:
        path: of the file.
        what: it should hold, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the {what} in {path}: {error}") from None
