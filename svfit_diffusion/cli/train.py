"""`svfit train`: the settings of the training script, from flags or a file."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_DESCRIPTION = (
    "Teach a base model a subject from a few photos. On several devices: "
    "accelerate launch -m svfit_diffusion.cli.main train …"
)


class TrainCommand(TyperCommand):
    """A command that leaves its words to the training's parser, and completes its flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The settings of a training too, where the shell asks what to complete."""
        own: list[Any] = super().get_params(ctx)
        return own + _options(self.helps()) if ctx.resilient_parsing else own

    def helps(self) -> dict[str, str]:
        """The flags, and what each says of itself."""
        return helps_of_settings() | {
            "subjects": "YAML list of subjects, or a folder of folders of photos.",
            "subjects_at_once": "How many of them to train in one pass.",
        }


def helps_of_settings() -> dict[str, str]:
    """The settings of a training, and what each says of itself."""
    from svfit_diffusion.training.config import TrainingConfig

    fields = TrainingConfig.__dataclass_fields__
    helps = {name: field.metadata["help"] for name, field in fields.items()}
    return helps | {"config": "YAML file of settings."}


def _options(helps: dict[str, str]) -> list[Any]:
    """Settings as options of typer's, from what each says of itself."""

    def settings() -> None: ...

    options = {name: Annotated[str, typer.Option(f"--{name}", help=h)] for name, h in helps.items()}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=option)
        for name, option in options.items()
    ]
    settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    settings.__annotations__ = options
    app = typer.Typer(add_completion=False)
    app.command()(settings)
    params: list[Any] = typer.main.get_command(app).params
    return params


def train(context: typer.Context) -> None:
    """Teach a base model a subject from a few photos, or several subjects in one pass."""
    from svfit_diffusion.training.command import run_command

    run_command(context.args, description=_DESCRIPTION, prog="svfit train")
