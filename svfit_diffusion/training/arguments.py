"""The command line of a training run, and its settings in a file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import string_to_bool

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.flags import FlagParser

SETTINGS_NAME = "training_config.yaml"
_REQUIRED = ("pretrained_model_name_or_path", "instance_data_dir")
_NOT_REPEATED = ("hub_token", "resume_from_checkpoint", "overwrite")


def parse_args(
    arguments: Sequence[str] | None = None, description: str = "", prog: str | None = None
) -> TrainingConfig:
    """The settings on a command line, and in the file that it names by `--config`.

    Args:
        arguments: the words of it; those of this process if not given.
        description: shown by `--help`.
        prog: name of the command.

    Raises:
        ConfigError: one is wrong or misspelt, or a required one is missing.
    """
    parser = _parser(description, prog)
    words = list(sys.argv[1:] if arguments is None else arguments)
    values = parser.values(words)
    if values.config:
        values = parser.values([*_words_in(Path(values.config), parser), *words])
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    config = TrainingConfig(**{name: getattr(values, name) for name in names})
    for name in _REQUIRED:
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; see --help")
    return config


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
    parser = FlagParser(TrainingConfig, description=description, prog=prog)
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
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} should hold a line `name: value` for each setting")
    for name, value in settings.items():
        if name not in TrainingConfig.__dataclass_fields__:
            near = parser.nearest(str(name))
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{path} has no setting of a training in {name!r}{hint}")
        if value is not None and value != []:
            yield from _words(name, value, path)


def _words(name: str, value: Any, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ConfigError(f"{path} has {name}: {value!r}, expected a text, number or list of them")
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
