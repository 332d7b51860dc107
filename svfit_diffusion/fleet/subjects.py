"""The subjects of a fleet: lines of JSON, each a subject and the settings in which it differs.

{"name": "rex", "instance_data_dir": "photos/rex", "instance_prompt": "a photo of sks dog"}
{"name": "mia", "instance_data_dir": "s3://bucket/mia", "max_train_steps": 600, "priority": 1}
"""

from __future__ import annotations

import dataclasses
import functools
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.files.bucket import is_address
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.store import COSTS_NAME
from svfit_diffusion.training.arguments import configs_of, training_parser, with_file
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.fields import COMMON_TO_A_PASS
from svfit_diffusion.training.subject_list import Entry, check_places, read_entries

_PROG = "svfit fleet train"
_USAGE = f"{_PROG} SUBJECTS --output OUTPUT --pretrained_model_name_or_path BASE …"
_OURS = ("output_dir", "resume_from_checkpoint", "overwrite")
_PLACES = (
    "pretrained_model_name_or_path",
    "single_file_config",
    "instance_data_dir",
    "class_data_dir",
)
_HOW_LONG = ("max_train_steps", "num_train_epochs")
_LARGEST_PRIORITY = 10**9


@dataclass(frozen=True)
class FleetSubject:
    """A subject that is to be trained.

    Attributes:
        name: of the subject, and of its folder.
        config: its settings; where its folder is, a worker says.
        priority: those of a higher one are trained before others.
    """

    name: str
    config: TrainingConfig
    priority: int = 0

    @functools.cached_property
    def group(self) -> str:
        """The same for subjects that can be trained in one pass."""
        common = {setting: getattr(self.config, setting) for setting in sorted(COMMON_TO_A_PASS)}
        return json.dumps(common)

    @property
    def settings(self) -> dict[str, object]:
        """What its adapter depends on, as JSON has it."""
        steps = {name: getattr(self.config, name) for name in _HOW_LONG}
        return dict(json.loads(json.dumps(self.config.binding_settings() | steps)))


def parse_fleet(
    arguments: Sequence[str], description: str = ""
) -> tuple[list[FleetSubject], FleetSettings]:
    """The subjects and settings on a command line: the file of the subjects, then flags.

    Args:
        arguments: the words of it.
        description: shown by `--help`.

    Raises:
        ConfigError: one is wrong or misspelt, a required one is missing, two subjects have one
            name, or they would write over each other.
    """
    parser = training_parser(FleetSettings, description=description, prog=_PROG, usage=_USAGE)
    if not arguments or arguments[0].startswith("-"):
        parser.values(arguments)  # may be --help
        raise ConfigError(f"the file of the subjects comes first: {_USAGE}")
    words = with_file(arguments[1:], parser)
    values = parser.values(words)
    names = [field.name for field in dataclasses.fields(FleetSettings)]
    settings = FleetSettings(**{name: getattr(values, name) for name in names})
    entries = read_entries(Path(arguments[0]))
    _leave_ours_out(entries, values)
    priorities = {entry.name: _priority(entry) for entry in entries}
    configs = configs_of([_without_priority(e) for e in entries], Path(), words, parser)
    check_places(configs)
    for config in configs.values():
        _make_absolute(config)
    subjects = [FleetSubject(name, configs[name], own) for name, own in priorities.items()]
    return subjects, settings


def _leave_ours_out(entries: Sequence[Entry], values: Namespace) -> None:
    """Raise `ConfigError` if a setting is given that is the fleet's to choose."""
    for name in _OURS:
        said = [entry.where for entry in entries if name in entry.settings]
        if getattr(values, name) != TrainingConfig.__dataclass_fields__[name].default:
            said.append("the command line")
        if said:
            raise ConfigError(
                f"{said[0]} has {name}, which a fleet chooses by itself: leave it out; each "
                f"subject is kept in a folder of --output, and goes on from what is there"
            )
    for entry in entries:
        if entry.name.casefold() == COSTS_NAME:
            raise ConfigError(f"{entry.where}: {entry.name!r} is the name of a file of the fleet's")


def _priority(entry: Entry) -> int:
    value = entry.settings.get("priority", 0)
    if type(value) is not int or abs(value) > _LARGEST_PRIORITY:
        raise ConfigError(
            f"{entry.where} has priority {clipped(value)!r}, expected a whole number: those of a "
            f"higher one are trained first, and 0 is what others have"
        )
    return value


def _without_priority(entry: Entry) -> Entry:
    settings = {name: value for name, value in entry.settings.items() if name != "priority"}
    return dataclasses.replace(entry, settings=settings)


def _make_absolute(config: TrainingConfig) -> None:
    """Name places as workers find them, which run elsewhere."""
    for name in _PLACES:
        place = getattr(config, name)
        if place and not is_address(place) and Path(place).exists():
            setattr(config, name, str(Path(place).absolute()))
