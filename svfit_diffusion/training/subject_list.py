"""Which subjects a command is to train: entries of a YAML file, lines of JSON, or folders in a
folder.

- name: rex
  instance_data_dir: photos/rex
  instance_prompt: a photo of sks dog
- name: mia
  instance_data_dir: photos/mia
  instance_prompt: a photo of sks cat
  max_train_steps: 600
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.training.agreement import check_common
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.yaml_file import read_yaml

_NAME_BYTES = 200  # of the 255 that file systems take, for what is written beside


@dataclass(frozen=True)
class Entry:
    """A subject as it is listed.

    Attributes:
        name: of the subject, and of its folder.
        settings: in which it differs, by name; not yet checked.
        where: it is listed, to be said with what is wrong with it.
    """

    name: str
    settings: dict[str, Any]
    where: str


@dataclass(frozen=True)
class SubjectList:
    """Subjects to be trained on one base.

    Attributes:
        configs: settings of each, by name.
        at_once: how many in one pass.
    """

    configs: dict[str, TrainingConfig]
    at_once: int


def read_entries(path: Path) -> list[Entry]:
    """The subjects in a YAML file, in the lines of a `.jsonl` file, or of the folders in a folder,
    whose names are theirs.

    Raises:
        ConfigError: it cannot be read, holds none, or two of one name.
    """
    is_lines = path.suffix == ".jsonl" and not path.is_dir()
    entries = _folders(path) if path.is_dir() else _lines(path) if is_lines else _listed(path)
    if not entries:
        raise ConfigError(f"{path} holds no subjects: expected {_EXPECTED}")
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name.casefold(), entry)  # as some file systems have it
        if other is not entry:
            raise ConfigError(
                f"{entry.where} and {other.where} are two subjects of one name, {entry.name!r}: "
                f"rename one, as each has a folder by its name"
            )
    return entries


def check_apart(configs: Mapping[str, TrainingConfig]) -> None:
    """Raise `ConfigError` if subjects would write over each other, or differ in what is common."""
    common = next(iter(configs.values()))
    for name, config in configs.items():
        check_common(name, vars(config), vars(common))
    check_places(configs)


def check_places(configs: Mapping[str, TrainingConfig]) -> None:
    """Raise `ConfigError` if subjects would write over each other."""
    places: dict[tuple[str, str], str] = {}
    for name, config in configs.items():
        own = {"output_dir": str(Path(config.output_dir).resolve())}
        if config.push_to_hub and config.hub_model_id:
            own["hub_model_id"] = config.hub_model_id
        for setting, place in own.items():
            other = places.setdefault((setting, place), name)
            if other != name:
                raise ConfigError(
                    f"subjects {other!r} and {name!r} have one {setting}, {place!r}; leave it out, "
                    f"and each has its own"
                )


_EXPECTED = (
    "a folder of photos for each subject, or a YAML list, or lines of JSON, of entries such as "
    "{name: rex, instance_data_dir: photos/rex, instance_prompt: a photo of sks dog}"
)


def _folders(folder: Path) -> list[Entry]:
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [Entry(p.name, {"instance_data_dir": str(p)}, str(p)) for p in inside]


def _listed(path: Path) -> list[Entry]:
    found = read_yaml(path, "subjects")
    if not isinstance(found, list):
        raise ConfigError(f"{path} holds {clipped(found)!r}, expected {_EXPECTED}")
    return [_entry(f"{path}, entry {n}", settings) for n, settings in enumerate(found, 1)]


def _lines(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the subjects in {path}: {error}") from None
    return [_line(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]


def _line(where: str, line: str) -> Entry:
    try:
        return _entry(where, parse_json(line))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}), expected {_EXPECTED}") from None


def _entry(where: str, settings: Any) -> Entry:
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str | int):
        raise ConfigError(f"{where} is {clipped(settings)!r} without a name, expected {_EXPECTED}")
    name = str(settings["name"])
    is_one = 0 < len(name.encode()) <= _NAME_BYTES and name.isprintable() and name == name.strip()
    if not is_one or name != Path(name).name or name.startswith(".") or "\\" in name:
        raise ConfigError(
            f"{where}: {clipped(name)!r} cannot be the name of a folder; give another name"
        )
    own = {setting: value for setting, value in settings.items() if setting != "name"}
    return Entry(name, own, f"{where} ({name})")
