"""`svfit fleet serve`: an HTTP API for pictures, with all adapters of a library."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated

import typer

from svfit_diffusion.cli.options import Dtype, NeededBase, Revision, Variant, device_named
from svfit_diffusion.errors import ConfigError

_EXTRA = ("ray", "fsspec", "fastapi", "python_multipart", "prometheus_client")
_MEGABYTE = 10**6


def serve(
    library: Annotated[
        str, typer.Argument(help="Adapters: a folder, or a URL such as s3://bucket/folder.")
    ],
    base: NeededBase,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api_key",
            envvar="SVFIT_API_KEY",
            help="A key that requests must bring, of 16 characters or more; several may be given. "
            "Default: everyone may ask.",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; default: this machine.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the base that draw.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="Of each replica.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Of each replica.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Default: cuda with --gpus, else the CPU.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.float32,
    batch: Annotated[int, typer.Option(min=1, help="Most pictures drawn together.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, help="Most pictures that wait.")] = 256,
    of_a_client: Annotated[
        int, typer.Option("--of_a_client", min=1, help="Most of them of one client.")
    ] = 64,
    linger: Annotated[
        float, typer.Option(min=0, help="Seconds that a batch with room waits for company.")
    ] = 0.02,
    adapter_memory: Annotated[
        int | None,
        typer.Option(
            "--adapter_memory",
            min=1,
            help="MB of adapters kept in memory, fetched when asked for; default: all of them.",
        ),
    ] = None,
    max_n: Annotated[int, typer.Option("--max_n", min=1, help="Pictures of a request.")] = 4,
    max_side: Annotated[int, typer.Option("--max_side", min=16, help="In pixels.")] = 1024,
    max_steps: Annotated[int, typer.Option("--max_steps", min=1, help="Sampling steps.")] = 100,
    max_adapters: Annotated[
        int, typer.Option("--max_adapters", min=1, help="Of the library, for one more to be added.")
    ] = 10_000,
    model: Annotated[str, typer.Option(help="What to call the base; default: as --base.")] = "",
    revision: Revision = None,
    variant: Variant = None,
) -> None:
    """Serve pictures over HTTP, in the shape of OpenAI's images endpoint, with adapters."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs {' and '.join(missing)}: pip install 'svfit-diffusion[fleet]'"
        )
    from svfit_diffusion.serving.deployment import ServeSettings, served
    from svfit_diffusion.serving.limits import RequestLimits
    from svfit_diffusion.serving.line import LineLimits
    from svfit_diffusion.training.base import BaseSource

    place = device or ("cuda" if gpus else "cpu")
    if address is None:  # a cluster's machines may have others
        device_named(place)
    settings = ServeSettings(
        base=BaseSource(base, revision, variant),
        library=library,
        device=place,
        dtype=dtype.torch,
        model=model,
        adapter_bytes=None if adapter_memory is None else adapter_memory * _MEGABYTE,
        keys=tuple(api_key or ()),
        line=LineLimits(batch, waiting, of_a_client, linger),
        limits=RequestLimits(pictures=max_n, side=max_side, steps=max_steps, library=max_adapters),
    )
    with served(
        settings,
        address=address,
        host=host,
        port=port,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
    ):
        print(f"http://{host}:{port}/v1 serves {base}; stop it by Ctrl+C", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
