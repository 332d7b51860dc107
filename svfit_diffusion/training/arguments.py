"""The command line of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.config import TrainingConfig


def parse_args(arguments: Sequence[str] | None = None, description: str = "") -> TrainingConfig:
    """The settings on a command line.

    Args:
        arguments: the words of it; those of this process if not given.
        description: shown by `--help`.

    Raises:
        ConfigError: one is wrong or a required one is missing.
    """
    parser = HfArgumentParser(TrainingConfig, description=description, conflict_handler="resolve")
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
    words = None if arguments is None else list(arguments)
    (config,) = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    for name in ("pretrained_model_name_or_path", "instance_data_dir"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; see --help")
    return config
