"""What all pages share, built once."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

from svfit_diffusion.files.adapter import WEIGHTS_NAME

from .album import Album
from .base_model import BaseModel
from .bases import Succession
from .entrance.hosts import KnownHosts
from .errors import UploadError
from .exports import Exports
from .first_steps import Example, examples_for
from .generation import ImageGenerator
from .library import AdapterLibrary
from .owned_trainings import OwnedTrainings
from .owners import OwnedLibrary, Owners
from .passing import exports_folder
from .settings import SAMPLES, AppSettings, Limits
from .training_jobs import TrainingJobs


@dataclass(frozen=True)
class Services:
    """What all pages share.

    Attributes:
        settings: where the app keeps its files and listens.
        limits: what a visitor may ask for.
        base: the base model.
        library: the adapters.
        generator: draws pictures.
        jobs: trains adapters.
        album: pictures that were drawn.
        exports: adapters as visitors take them away.
        hosts: names by which the app may be called.
        succession: of these services by those of another base model.
    """

    settings: AppSettings
    limits: Limits
    base: BaseModel
    library: AdapterLibrary
    generator: ImageGenerator
    jobs: TrainingJobs
    album: Album
    exports: Exports
    hosts: KnownHosts
    succession: Succession[Services]

    def examples(self) -> list[Example]:
        """What a newcomer may begin with."""
        return examples_for(self.settings.base, self.library.names())

    def close(self) -> None:
        """Stop a running training, keeping what it learned."""
        self.jobs.close()


def build_services(settings: AppSettings, limits: Limits | None = None) -> Services:
    """Load the base model and open the library; a new one starts with the sample adapters.

    Raises:
        SettingError: the base model cannot be loaded, or it cannot be read who owns what.
    """
    limits = limits or Limits()
    base = BaseModel(settings.base, settings.device)
    first_start = not settings.adapters.exists()
    owners = Owners(settings.outputs / "owners.json")
    library = OwnedLibrary(settings.adapters, base, limits, owners, settings.library)
    if first_start:
        _add_samples(library)
    generator = ImageGenerator(base, library, limits)
    jobs = OwnedTrainings(base, library, settings.trainings, limits)
    album = Album(settings.pictures, limits)
    hosts = KnownHosts(settings.host, settings.allowed_host)
    exports = Exports(exports_folder(), base, limits)
    succession = Succession(
        lambda source: build_services(dataclasses.replace(settings, base=source), limits)
    )
    return Services(
        settings, limits, base, library, generator, jobs, album, exports, hosts, succession
    )


def _add_samples(library: AdapterLibrary) -> None:
    """Copy in the sample adapters that go with the base model: none on another than the sample."""
    for path in sorted((SAMPLES / "adapters").glob(f"*/{WEIGHTS_NAME}")):
        with contextlib.suppress(UploadError):
            library.add(path)
