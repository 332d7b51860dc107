#!/usr/bin/env python
"""Teach a diffusion model a subject from a few photos, by its singular values alone.

accelerate launch train_dreambooth_svfit.py \
    --pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 \
    --instance_data_dir=samples/subjects/pug --instance_prompt="a photo of sks dog" \
    --output_dir=outputs/pug
"""

from __future__ import annotations

import sys

from svfit_diffusion.errors import SVFitError
from svfit_diffusion.training.command import run_command


def main() -> None:
    """Train as the command line says; errors a user can mend are one message, not a trace."""
    try:
        run_command(description=__doc__ or "")
    except (SVFitError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:  # the second, or before there is anything to keep
        sys.exit(130)


if __name__ == "__main__":
    main()
