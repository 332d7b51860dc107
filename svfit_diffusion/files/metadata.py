"""What an adapter file says of itself, in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata as importlib_metadata
from typing import Any

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.json_text import MAX_CHARACTERS, parse_json

FORMAT = "svfit"
FORMAT_VERSION = "2"
WORDS_VERSION = "3"
"""Of files that hold a word of the subject's own, which readers of earlier ones must not miss."""
READABLE_VERSIONS = ("1", FORMAT_VERSION, WORDS_VERSION)
_OBJECTS_OF_TEXT = ("fingerprints", "quantization", "rank", "target", "versions")


@dataclass(frozen=True)
class AdapterMetadata:
    """What an adapter file says of itself; every field may be unknown.

    Attributes:
        base_model: id or path of the base model, `""` if unknown.
        base_revision: its revision.
        fingerprints: SHA-256 of the base's weights under the adapter's layers, per component.
        quantization: how the base's weights under the adapter's layers were quantised, such as
            `bitsandbytes nf4`, per component; those that were not are not there.
        rank: the rank asked for, per component, as a user would write it.
        target: the targets asked for, per component, separated by spaces.
        instance_prompt: prompt the subject was trained with.
        class_prompt: prompt of its class.
        training: training settings.
        versions: versions of the packages that wrote the file.
    """

    base_model: str = ""
    base_revision: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)
    quantization: dict[str, str] = field(default_factory=dict)
    rank: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    instance_prompt: str = ""
    class_prompt: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_header(self) -> dict[str, str]:
        """As safetensors metadata: strings as they are, the rest as JSON."""
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        for name, value in vars(self).items():
            header[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        return header

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> AdapterMetadata:
        """Read back what `to_header` wrote; missing entries stay unknown.

        Raises:
            CheckpointError: an entry is not what this version writes.
        """
        values: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            if name in header:
                parse = parse_object if isinstance(default, dict) else _checked_text
                values[name] = parse(name, header[name])
        return cls(**values)


def _checked_text(name: str, text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise CheckpointError(
            f"adapter metadata {name!r} has {len(text):,} characters, expected at most "
            f"{MAX_CHARACTERS:,}"
        )
    return text


def parse_object(name: str, text: str) -> dict[str, Any]:
    """The JSON object in an entry of a file's header; `CheckpointError` if there is none."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"adapter metadata {name!r} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"adapter metadata {name!r} should be a JSON object, got {text[:80]!r}"
        )
    if name in _OBJECTS_OF_TEXT and not all(isinstance(entry, str) for entry in value.values()):
        raise CheckpointError(f"adapter metadata {name!r} should hold strings, got {text[:80]!r}")
    return value


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what an adapter computes."""
    return {
        name: importlib_metadata.version(name)
        for name in ("svfit-diffusion", "torch", "diffusers", "transformers")
    }
