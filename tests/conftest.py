"""Fixtures: an own basis cache, no network, and tiny models (see `tiny.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Sums in one order, whatever else the machine computes; read by torch when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import tiny_adapters
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from fake_hub import FakeHub
from hypothesis import HealthCheck, settings
from transformers import CLIPTextModel

from svfit_diffusion.files import basis_repository
from svfit_diffusion.files.adapter import WEIGHTS_NAME, write_adapter
from svfit_diffusion.training import threads

pytest_plugins = ["app_server"]

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=_SLOW)
settings.register_profile(
    "fuzz", deadline=None, max_examples=2000, database=None, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("SVFIT_HYPOTHESIS", "ci"))


@pytest.fixture(scope="session", autouse=True)
def svfit_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A basis cache for this session, so that no test sees or leaves files elsewhere."""
    folder = tmp_path_factory.mktemp("svfit-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVFIT_CACHE", str(folder))
        yield folder


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler that has compiled nothing, and counts from zero."""
    import torch._dynamo  # here, for it takes a second that most tests need not wait
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A basis cache for this test alone; the folder does not exist yet."""
    folder = tmp_path / "svfit-cache"
    monkeypatch.setenv("SVFIT_CACHE", str(folder))
    return folder


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub of this test alone, empty, for bases."""
    hub = FakeHub(tmp_path / "hub")
    for name in ("create_repo", "file_exists", "create_commit", "model_info", "snapshot_download"):
        monkeypatch.setattr(basis_repository, name, getattr(hub, name))
    return hub


@pytest.fixture
def tiny_unet() -> UNet2DConditionModel:
    return tiny.make_tiny_unet()


@pytest.fixture
def tiny_text_encoder() -> CLIPTextModel:
    return tiny.make_tiny_text_encoder()


@pytest.fixture
def tiny_pipe() -> StableDiffusionPipeline:
    return tiny.make_tiny_pipeline()


@pytest.fixture(scope="session")
def saved_pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved `make_tiny_pipeline()`; read only."""
    return tiny.save_tiny_pipeline(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `make_adapter()` as training saves it; read only."""
    path = tmp_path_factory.mktemp("adapter") / WEIGHTS_NAME
    write_adapter(path, tiny_adapters.with_sketches(tiny_adapters.make_adapter()))
    return path


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of four cores, all of which torch computes on, and nobody has said how many."""
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_MOST", 4)
    for name in threads._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)
