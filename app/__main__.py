"""Start the web app.

python -m app --host 0.0.0.0 --username me --password secret
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from diffusers.utils import logging as diffusers_logging
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from app.pages.layout import build_app, launch_settings
from app.services import build_services
from app.settings import AppSettings, Limits
from svfit_diffusion.errors import SVFitError


def main() -> None:
    """Serve until interrupted; errors a user can mend are one message, not a trace."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        parser = HfArgumentParser((AppSettings, Limits), description=__doc__)
        settings, limits = parser.parse_args_into_dataclasses(look_for_args_file=False)
        if settings.device == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "1"  # for trainings
        services = build_services(settings, limits)
        _, local_address, public_address = build_app(services).launch(
            prevent_thread_lock=True, **launch_settings(services)
        )
    except (SVFitError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"Open {local_address}", flush=True)
    if public_address:
        print(f"or, from anywhere, {public_address}", flush=True)
    # Ends as Ctrl-C does: a training keeps what it has learned.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Closing.", flush=True)
    finally:
        services.close()


if __name__ == "__main__":
    main()
