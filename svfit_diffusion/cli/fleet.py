"""`svfit fleet`: many subjects, trained over several machines and served from one base."""

from __future__ import annotations

import typer

from svfit_diffusion.cli.fleet_serve import serve

app = typer.Typer(
    help="Many subjects: train them over several machines, and serve them all from one base.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("serve")(serve)
