"""Start the web app.

python -m app --host 0.0.0.0 --username me --password secret
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from svfit_diffusion.errors import SVFitError
from svfit_diffusion.training.flags import FlagParser

from .log_lines import errors_logged, start_log
from .memory import settle
from .pages.layout import build_app, launch_settings
from .passing import take_place
from .services import Services, build_services
from .settings import AppSettings, Limits

_LAST_WORDS = 1.0
"""Seconds in which the page that asked for another base model hears that it is there."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app") -> None:
    """Serve until interrupted; errors a user can mend are one message, not a trace.

    Args:
        arguments: words of the command line; those of this process if not given.
        prog: name of the command.
    """
    start_log()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # or it tells of processors that nothing here uses
    try:
        parser = FlagParser((AppSettings, Limits), description="Start the web app.", prog=prog)
        words = list(sys.argv[1:] if arguments is None else arguments)
        parser.values(words)
        settings, limits = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
        if settings.device == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "1"  # for trainings
        take_place()
        services: Services | None = build_services(settings, limits)
        # Ends as Ctrl-C does: a training keeps what it has learned.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        port = settings.port
        with errors_logged():
            while services is not None:
                services, port = _serve(services, port)
    except (SVFitError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _serve(services: Services, port: int | None) -> tuple[Services | None, int]:
    """Serve until interrupted, or until there are services for another base model.

    Returns:
        Those, and the port, at which pages that are open find them.
    """
    app = build_app(services)
    _, local_address, public_address = app.launch(
        prevent_thread_lock=True, **launch_settings(services) | {"server_port": port}
    )
    settle()
    print(f"Open {local_address}", flush=True)
    if public_address:
        services.hosts.add(public_address)
        print(f"or, from anywhere, {public_address}", flush=True)
    following = _successor(services)
    app.close()
    app.clear()  # FastAPI keeps its routes, and they the pages, which hold the base model's weights
    return following, app.server_port


def _successor(services: Services) -> Services | None:
    """Wait for the services that take the place of these, which end; None to end altogether."""
    try:
        following = services.succession.wait()
        time.sleep(_LAST_WORDS)
        return following
    except KeyboardInterrupt:
        print("Closing.", flush=True)
        return None
    finally:
        services.close()


if __name__ == "__main__":
    main()
