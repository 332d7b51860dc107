"""The command line of a training run, and its settings in a file."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import string_to_bool

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.flags import FlagParser
from svfit_diffusion.training.subject_list import Entry, SubjectList, check_apart, read_entries
from svfit_diffusion.training.yaml_file import read_yaml

SETTINGS_NAME = "training_config.yaml"
_REQUIRED = ("pretrained_model_name_or_path", "instance_data_dir")
AT_ONCE = 8
"""How many subjects are trained in one pass, unless it is said how many."""
_NOT_REPEATED = ("hub_token", "resume_from_checkpoint", "overwrite")


def parse_args(
    arguments: Sequence[str] | None = None, description: str = "", prog: str | None = None
) -> TrainingConfig:
    """The settings of one subject on a command line; arguments and errors as `parse_command`."""
    asked = parse_command(arguments, description, prog)
    if isinstance(asked, SubjectList):
        raise ConfigError("--subjects names several subjects, expected one: leave it out")
    return asked


def parse_command(
    arguments: Sequence[str] | None = None, description: str = "", prog: str | None = None
) -> TrainingConfig | SubjectList:
    """The settings on a command line, and in files that it names by `--config` and `--subjects`.

    Args:
        arguments: the words of it; those of this process if not given.
        description: shown by `--help`.
        prog: name of the command.

    Raises:
        ConfigError: one is wrong or misspelt, a required one is missing, or subjects get in each
            other's way.
    """
    parser = _parser(description, prog)
    words = with_file(list(sys.argv[1:] if arguments is None else arguments), parser)
    values = parser.values(words)
    if values.subjects is None:
        return _config(values)
    if values.subjects_at_once < 1:
        raise ConfigError(f"subjects_at_once must be at least 1, got {values.subjects_at_once}")
    entries = read_entries(Path(values.subjects))
    configs = configs_of(entries, Path(values.output_dir), words, parser)
    check_apart(configs)
    return SubjectList(configs, values.subjects_at_once)


def with_file(words: Sequence[str], parser: FlagParser) -> list[str]:
    """The words of a command line, before them those of the file that it names by `--config`.

    Raises:
        ConfigError: one is wrong, or the file cannot be read.
    """
    path = parser.values(words).config
    return [*(_words_in(Path(path), parser) if path else ()), *words]


def _config(values: Namespace) -> TrainingConfig:
    """The settings of one subject, all that is required among them."""
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    config = TrainingConfig(**{name: getattr(values, name) for name in names})
    for name in _REQUIRED:
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; see --help")
    return config


def configs_of(
    entries: Sequence[Entry], output: Path, words: Sequence[str], parser: FlagParser
) -> dict[str, TrainingConfig]:
    """The settings of each of several subjects, by name.

    Args:
        entries: the subjects as they are listed.
        output: the folder for theirs.
        words: of the command line, which they have in common.
        parser: of it.

    Raises:
        ConfigError: an entry has a setting that is wrong or misspelt, or lacks one.
    """
    configs = {}
    for entry in entries:
        own = {"output_dir": str(output / entry.name), **entry.settings}
        try:
            theirs = [*_words_of(own, entry.where, parser)]
            configs[entry.name] = _config(parser.values([*words, *theirs]))
        except ConfigError as error:
            said = str(error)
            raise ConfigError(
                said if said.startswith(entry.where) else f"{entry.where}: {said}"
            ) from None
    return configs


def write_settings(
    config: TrainingConfig, folder: Path, chosen: Mapping[str, Any] | None = None
) -> Path:
    """Write every setting of a run into a folder, as `--config` reads them; no token.

    Args:
        config: the settings.
        folder: where to.
        chosen: what those that are None were in this run, to tell readers.

    Raises:
        OSError: the file could not be written.
    """
    settings = {name: value for name, value in vars(config).items() if name not in _NOT_REPEATED}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if chosen:
        about = yaml.safe_dump(dict(chosen), sort_keys=False, allow_unicode=True).splitlines()
        lines = ["Where null stands below, this run used:", *about]
        text = "".join(f"# {line}\n" for line in lines) + text
    path = folder / SETTINGS_NAME
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
    return path


def _parser(description: str, prog: str | None) -> FlagParser:
    parser = training_parser(description=description, prog=prog)
    parser.add_argument(
        "--subjects",
        metavar="FILE",
        help="Train several subjects on one base: a YAML list, or lines of JSON, with a "
        "name, instance_data_dir, instance_prompt and what else differs for each, or a folder with "
        "a folder of photos for each. Theirs go into folders of output_dir.",
    )
    parser.add_argument(
        "--subjects_at_once",
        type=int,
        default=AT_ONCE,
        help="How many of them to train in one pass; train_batch_size is of each.",
    )
    return parser


def training_parser(*others: Any, **kwargs: Any) -> FlagParser:
    """A parser of the settings of a training, and of a file of them.

    Args:
        *others: dataclasses of further settings.
        **kwargs: as `argparse.ArgumentParser` takes them.
    """
    parser = FlagParser((TrainingConfig, *others), **kwargs)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file of settings by name, such as the {SETTINGS_NAME} that each run leaves "
        f"beside its adapter; flags go before it.",
    )
    # A switch of three positions: on, off, and as the base model is.
    parser.add_argument(
        "--train_text_encoder",
        nargs="?",
        const=True,
        type=string_to_bool,
        help=TrainingConfig.__dataclass_fields__["train_text_encoder"].metadata["help"],
    )
    parser.add_argument(
        "--no_train_text_encoder",
        dest="train_text_encoder",
        action="store_const",
        const=False,
        help="Train no text encoder.",
    )
    return parser


def _words_in(path: Path, parser: FlagParser) -> Iterator[str]:
    """The settings in a YAML file as words of a command line."""
    settings = read_yaml(path, "settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} should hold a line `name: value` for each setting")
    yield from _words_of(settings, str(path), parser)


def _words_of(settings: Mapping[str, Any], where: str, parser: FlagParser) -> Iterator[str]:
    """Settings that were read, by name, as words of a command line."""
    for name, value in settings.items():
        if name not in TrainingConfig.__dataclass_fields__:
            near = parser.nearest(str(name))
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{where} has no setting of a training in {name!r}{hint}")
        if value is not None and value != []:
            yield from _words(name, value, where)


def _words(name: str, value: Any, where: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ConfigError(f"{where} has {name}: {value!r}, expected a text, number or list of them")
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
