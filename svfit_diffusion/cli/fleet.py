"""`svfit fleet …`: many subjects, trained by workers of a Ray cluster and served from one base."""

from __future__ import annotations

import typer

from svfit_diffusion.cli.fleet_serve import serve
from svfit_diffusion.cli.options import OWN_PARSER
from svfit_diffusion.cli.train import TrainCommand, helps_of_settings
from svfit_diffusion.errors import SubjectsError

_DESCRIPTION = (
    "Teach a base model many subjects, several in each pass, on workers of a Ray cluster. SUBJECTS "
    "holds a line of JSON for each: a name, instance_data_dir, instance_prompt, any setting that "
    "differs, and a priority if it has one. The same command again goes on where it was left."
)

app = typer.Typer(
    help="Many subjects: train them over several machines, and serve them all from one base.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class FleetTrainCommand(TrainCommand):
    """Its words are left to the fleet's parser."""

    def helps(self) -> dict[str, str]:
        """The flags, and what each says of itself."""
        from svfit_diffusion.fleet.settings import FleetSettings

        fields = FleetSettings.__dataclass_fields__
        return helps_of_settings() | {name: f.metadata["help"] for name, f in fields.items()}


@app.command("train", cls=FleetTrainCommand, context_settings=OWN_PARSER)
def train(context: typer.Context) -> None:
    """Teach a base model many subjects, each of which a line of a file names."""
    from svfit_diffusion.cli.fleet_table import follow
    from svfit_diffusion.fleet.driver import Fleet
    from svfit_diffusion.fleet.subjects import parse_fleet

    subjects, settings = parse_fleet(context.args, _DESCRIPTION)
    fleet = Fleet(subjects, settings)
    follow(fleet)
    if fleet.ledger.failures:
        failures = {name: Exception(why) for name, why in fleet.ledger.failures.items()}
        raise SubjectsError(failures, len(subjects))


app.command("serve")(serve)
