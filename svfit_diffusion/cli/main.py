"""The command `svfit`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from svfit_diffusion.cli import adapters, basis, doctor, exchange, fleet, generate, plan, train, web
from svfit_diffusion.errors import SVFitError
from svfit_diffusion.version import __version__

app = typer.Typer(
    name="svfit",
    help="Teach a diffusion model a subject through its singular values, and take it elsewhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"svfit-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version.")
    ] = False,
) -> None:
    """What comes before a command."""


# Their words are left to parsers of their own.
_OWN_PARSER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app.command("train", cls=train.TrainCommand, context_settings=_OWN_PARSER)(train.train)
app.command("generate")(generate.generate)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)
app.command("info")(adapters.info)
app.command("merge")(adapters.merge)
app.command("convert")(adapters.convert)
app.command("diff")(adapters.diff)
app.add_typer(basis.app, name="basis")
app.command("plan")(plan.plan)
app.add_typer(fleet.app, name="fleet")
app.command("app", context_settings=_OWN_PARSER)(web.web)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; errors a user can mend are one message, not a trace."""
    try:
        app(prog_name="svfit")
    except (SVFitError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
