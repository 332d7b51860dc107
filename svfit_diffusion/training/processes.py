"""What the processes of a training do together; none waits for one that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator

from svfit_diffusion.errors import LostProcessError


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """While within, nothing is done but to exchange something with the other processes.

    Raises:
        LostProcessError: one of them has ended.
    """
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, which has no class for it
        if accelerator.num_processes == 1:
            raise
        raise LostProcessError(
            "another process of this training has ended, and its own message says why; none can "
            "go on alone: start all of them again, with --resume_from_checkpoint=latest to go on"
        ) from error


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until all processes have come here; raises as `together`."""
    with together(accelerator):
        accelerator.wait_for_everyone()


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """What is within is done by the main process, and then by the others; raises as `together`."""
    if not accelerator.is_main_process:
        wait_for_all(accelerator)
    yield
    if accelerator.is_main_process:
        wait_for_all(accelerator)
