"""`svfit basis …`: the singular vectors of base models, kept on disk and shared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svfit_diffusion.cli.options import AsJson, Revision, Variant, base_of, device_named, show
from svfit_diffusion.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from svfit_diffusion.spectrum.cache import BaseWeights
    from svfit_diffusion.spectrum.sharing import Moved
    from svfit_diffusion.spectrum.stored import StoredBasis

_DAY = 24 * 60 * 60

app = typer.Typer(
    help="Look after the singular vectors of base models: each is computed once, and kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BaseModel = Annotated[
    str, typer.Argument(help="A folder, a single file or an id on huggingface.co.")
]
OptionalBase = Annotated[
    str, typer.Option("--base", help="Base model: a folder, a single file or an id.")
]
Repository = Annotated[str, typer.Argument(help="On huggingface.co, such as user/bases.")]
Token = Annotated[str | None, typer.Option("--token", help="For the hub; default: as logged in.")]
Device = Annotated[
    str | None, typer.Option("--device", help="Where to compute; default: the accelerator, if any.")
]


@app.command()
def where(as_json: AsJson = False) -> None:
    """Say where bases are kept, how many and how large."""
    from svfit_diffusion.spectrum.cache import cache_directory
    from svfit_diffusion.spectrum.room import free_bytes
    from svfit_diffusion.spectrum.stored import leftovers, size_of, stored_bases

    folder = cache_directory()
    stored = stored_bases(folder)
    old = [file for file in stored if file.is_old]
    facts = {
        "folder": str(folder),
        "bases": len(stored),
        "bytes": sum(file.size for file in stored),
        "bytes_of_older_formats": sum(file.size for file in old),
        "bytes_of_interrupted_writes": sum(map(size_of, leftovers(folder))),
        "bytes_free": free_bytes(folder),
    }
    show(facts, as_json)


@app.command()
def compute(
    base: BaseModel,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="As in training; default: attention.")
    ] = None,
    train_text_encoder: Annotated[
        bool | None,
        typer.Option(
            "--train_text_encoder/--no_train_text_encoder",
            help="Also of the CLIP text encoders; default: as in training.",
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option("--rank", help="Default: as in training; a higher one replaces it."),
    ] = None,
    device: Device = None,
    revision: Revision = None,
    variant: Variant = None,
) -> None:
    """Compute ahead what training on a base, and loading adapters of it, would compute."""
    from svfit_diffusion.adapters.base_weights import weights_of_models
    from svfit_diffusion.adapters.config import SVFitConfig
    from svfit_diffusion.families import family_of
    from svfit_diffusion.spectrum.basis_file import basis_path
    from svfit_diffusion.spectrum.cache import (
        bytes_known,
        cache_directory,
        load_bases,
        missing_bases,
    )
    from svfit_diffusion.spectrum.rank import parse_rank
    from svfit_diffusion.spectrum.room import require_room
    from svfit_diffusion.spectrum.stored import size_of
    from svfit_diffusion.training.base import load_base
    from svfit_diffusion.training.checks import trained_text_encoders
    from svfit_diffusion.training.layers import models_to_train, planned_layers, rank_to_train
    from svfit_diffusion.training.skeleton import skeleton_if_told

    def models_of_training(pipe: Any) -> dict[str, Any]:
        family = family_of(pipe)
        return models_to_train(family, trained_text_encoders(family, train_text_encoder))

    place = device_named(device, float64=True)
    source = base_of(base, revision, variant)
    targets = tuple(target or ["attention"])
    models: dict[str, Any] = {}
    for load in (skeleton_if_told, load_base):  # what cannot be is said before weights are read
        if pipe := load(source):
            models = models_of_training(pipe)
            wanted = parse_rank(rank_to_train(rank, models, targets))
            planned_layers(models, SVFitConfig(wanted, targets))
    weights = weights_of_models(models, targets)
    missing = missing_bases(weights, wanted)
    folder = cache_directory()
    require_room(folder, bytes_known(missing, wanted))
    started = time.perf_counter()
    bases = load_bases(missing, wanted, device=place)
    seconds = time.perf_counter() - started
    lost = [path for path, basis in bases.items() if basis.file is None]
    if lost:
        raise CacheError(
            f"{len(lost):,} of {len(bases):,} bases were computed, but could not be kept in "
            f"{folder}"
        )
    facts = {
        "folder": str(folder),
        "layers": len(weights.weights),
        "there_already": len(set(weights.digests.values())) - len(bases),
        "computed": len(bases),
        "bytes": sum(size_of(basis_path(folder, digest)) for digest in missing.digests.values()),
        "seconds": seconds,
    }
    show(facts, as_json=False)


@app.command()
def verify(
    base: Annotated[
        str, typer.Argument(help="Also check vectors against the weights of this base model.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove those that are bad.")] = False,
    device: Device = None,
    revision: Revision = None,
    variant: Variant = None,
) -> None:
    """Check every basis that is kept; exits with 1 if one is bad and stays."""
    from svfit_diffusion.spectrum import stored as files
    from svfit_diffusion.spectrum.cache import cache_directory
    from svfit_diffusion.spectrum.verification import flaws

    weights = _whole_base(base, revision, variant) if base else None
    stored = files.stored_bases(cache_directory())
    bad = flaws(stored, weights, device=device_named(device, float64=True))
    _name_bad({file.path.name: words for file, words in bad.items()})
    if remove:
        for file in bad:
            files.remove(file.path)
    own = f", {len(_of(stored, weights)):,} of them of this base" if weights else ""
    done = ", removed" if remove and bad else ""
    print(f"{len(stored):,} bases{own}: {len(bad):,} bad{done}")
    if bad and not remove:
        raise typer.Exit(1)


@app.command()
def prune(
    base: OptionalBase = "",
    unused_for: Annotated[
        float | None,
        typer.Option("--unused_for", min=0, help="Those not read or written for so many days."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", help="Say what would be removed, and keep it.")
    ] = False,
    revision: Revision = None,
    variant: Variant = None,
) -> None:
    """Remove bases by one of --base, --unused_for and --all; what is needed is computed again.

    Files of older formats and what interrupted writes have left are removed as well.
    """
    from svfit_diffusion.spectrum import stored as files
    from svfit_diffusion.spectrum.cache import cache_directory

    if (bool(base) + (unused_for is not None) + everything) != 1:
        raise ConfigError("say which bases to remove: one of --base, --unused_for and --all")
    folder = cache_directory()
    chosen = stored = files.stored_bases(folder)
    if base:
        chosen = _of(stored, _whole_base(base, revision, variant))
    if unused_for is not None:
        before = time.time() - unused_for * _DAY
        chosen = [file for file in stored if file.used < before]
    old = [file for file in stored if file.is_old]
    going = sorted({file.path for file in chosen + old})
    rest = files.leftovers(folder)
    size = sum(map(files.size_of, going + rest))
    for path in going + rest:
        if dry_run:
            print(path)
        else:
            files.remove(path)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(going):,} bases and {len(rest):,} "
        f"leftovers, {size:,} bytes"
    )


@app.command()
def push(
    base: BaseModel,
    repo: Repository,
    private: Annotated[bool, typer.Option("--private", help="If the repository is new.")] = False,
    token: Token = None,
    revision: Revision = None,
    variant: Variant = None,
) -> None:
    """Upload the bases of a base model; its weights can be computed back from them."""
    from svfit_diffusion.spectrum.sharing import push_bases

    weights = _whole_base(base, revision, variant)
    _report(push_bases(repo, weights, base, private=private, token=token), f"pushed to {repo}")


@app.command()
def pull(
    repo: Repository,
    base: OptionalBase = "",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Revision of the repository.")
    ] = None,
    token: Token = None,
    variant: Variant = None,
) -> None:
    """Download bases; with --base that model's alone, each checked against its weights."""
    from svfit_diffusion.spectrum.sharing import pull_bases

    weights = _whole_base(base, None, variant) if base else None
    moved = pull_bases(repo, weights, revision=revision, token=token)
    _report(moved, f"pulled from {repo}")
    if weights is None:
        print("not checked against weights: svfit basis verify BASE does that")


def _whole_base(base: str, revision: str | None, variant: str | None) -> BaseWeights:
    """The weights of every layer of a base model that can be shifted."""
    from svfit_diffusion.adapters.base_weights import weights_of_models
    from svfit_diffusion.adapters.components import models_of
    from svfit_diffusion.training.base import load_base

    return weights_of_models(models_of(load_base(base_of(base, revision, variant))), "all")


def _of(stored: list[StoredBasis], base: BaseWeights) -> list[StoredBasis]:
    digests = set(base.digests.values())
    return [file for file in stored if file.digest in digests]


def _report(moved: Moved, done: str) -> None:
    _name_bad(moved.flaws)
    facts: dict[str, Any] = {"there_already": moved.present} if moved.present else {}
    show({done: moved.files, **facts, "bytes": moved.size, "left_out": len(moved.flaws)}, False)


def _name_bad(flaws: dict[str, str]) -> None:
    for name, words in flaws.items():
        print(f"{name}: {words}")
