"""`svfit app`: the web app, where its extra is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import typer

from svfit_diffusion.errors import ConfigError

_EXTRA = ("gradio", "matplotlib", "numpy")


def web(context: typer.Context) -> None:
    """Open the web app: generate, compare, train and inspect in a browser."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the app needs {' and '.join(missing)}: pip install 'svfit-diffusion[app]'"
        )
    import_module("svfit_diffusion.app.__main__").main(context.args, prog="svfit app")
