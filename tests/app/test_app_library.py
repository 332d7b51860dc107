"""The adapter folder takes in nothing broken and lets no name out of it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from app_server import write_random_adapter
from safetensors.torch import save_file

from app.base_model import BaseModel
from app.errors import LibraryError, UploadError
from app.library import AdapterLibrary
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter, write_adapter

BAD_NAMES = [
    "",
    "   ",
    ".",
    "..",
    "../rex",
    "a/b",
    "a\\b",
    "/etc/passwd",
    ".hidden",
    "re\nx",
    "rex\0",
    "rex.",
    "a:b",
    "x" * 65,
]


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("uploads") / "rex.safetensors", 0)


@pytest.fixture
def library(tmp_path: Path, base: BaseModel) -> AdapterLibrary:
    return AdapterLibrary(tmp_path / "adapters", base, 2**20)


def contents(library: AdapterLibrary) -> set[str]:
    return {str(path.relative_to(library.folder)) for path in library.folder.rglob("*")}


def test_an_adapter_is_added_under_its_files_name(
    library: AdapterLibrary, adapter_file: Path
) -> None:
    assert library.add(adapter_file) == "rex"
    assert library.names() == ["rex"]
    assert library.path("rex").read_bytes() == adapter_file.read_bytes()


def test_a_taken_name_gets_a_number_whatever_its_case(
    library: AdapterLibrary, adapter_file: Path
) -> None:
    names = [library.add(adapter_file, name) for name in ("Rex", "rex", "REX")]
    assert names == ["Rex", "rex-2", "REX-3"]


def test_what_the_training_script_writes_is_listed_too(
    library: AdapterLibrary, adapter_file: Path
) -> None:
    (library.folder / "tom").mkdir()
    shutil.copy(adapter_file, library.folder / "tom" / WEIGHTS_NAME)
    (library.folder / "empty").mkdir()
    assert library.names() == ["tom"]
    assert library.add(library.path("tom")) == "tom-2"


def test_a_description_has_the_shifts_and_the_size(
    library: AdapterLibrary, adapter_file: Path
) -> None:
    info = library.describe(library.add(adapter_file))
    assert info.misfit is None
    assert info.file_bytes == adapter_file.stat().st_size
    assert set(info.adapter.deltas) == {"unet", "text_encoder"}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_file_name_is_refused(
    library: AdapterLibrary, adapter_file: Path, name: str
) -> None:
    library.add(adapter_file)
    with pytest.raises(LibraryError):
        library.rename("rex", name)
    if name.strip():
        with pytest.raises(LibraryError):
            library.add(adapter_file, name)
    for look_up in (library.path, library.delete, library.describe):
        with pytest.raises(LibraryError):
            look_up(name)
    assert contents(library) == {"rex.safetensors"}


def test_a_file_outside_is_not_found_by_its_path(library: AdapterLibrary, tmp_path: Path) -> None:
    shutil.copytree(library.folder, tmp_path / "other")
    write_random_adapter(tmp_path / "other" / "secret.safetensors", 1)
    for name in ("../other/secret", str(tmp_path / "other" / "secret")):
        with pytest.raises(LibraryError):
            library.path(name)


def test_uploads_that_are_no_adapters_are_refused(
    library: AdapterLibrary, adapter_file: Path, tmp_path: Path
) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(4, 4)}, lora)
    text = tmp_path / "text.safetensors"
    text.write_text("nothing of the kind")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(adapter_file.read_bytes()[:-100])
    pickle = tmp_path / "rex.bin"
    torch.save({"unet.x.delta": torch.zeros(3)}, pickle)
    nan = tmp_path / "nan.safetensors"
    save_file({"unet.conv_in.delta": torch.tensor([float("nan")])}, nan)
    misfit = tmp_path / "misfit.safetensors"
    save_file({"unet.no_such_layer.delta": torch.zeros(3)}, misfit)
    for path in (lora, text, cut, pickle, nan, misfit):
        with pytest.raises(UploadError) as refusal:
            library.add(path)
        # One plain sentence or two: no path of the server, no list of keys.
        assert path.name in str(refusal.value)
        assert "\n" not in str(refusal.value) and str(tmp_path) not in str(refusal.value)
    assert contents(library) == set()


def test_an_adapter_of_another_base_is_refused(
    base: BaseModel, adapter_file: Path, tmp_path: Path
) -> None:
    other = BaseModel(str(tiny.save_tiny_pipeline(tmp_path / "base", seed=1)), "cpu")
    library = AdapterLibrary(tmp_path / "adapters", other, 2**20)
    with pytest.raises(UploadError, match="another base model"):
        library.add(adapter_file)
    # One that lies in the folder all the same is listed, and its description says what is wrong.
    shutil.copy(adapter_file, library.folder)
    assert "another base model" in str(library.describe("rex").misfit)


def test_a_file_that_is_too_large_is_refused_unread(
    base: BaseModel, adapter_file: Path, tmp_path: Path
) -> None:
    library = AdapterLibrary(tmp_path / "adapters", base, adapter_file.stat().st_size - 1)
    with pytest.raises(UploadError, match="larger"):
        library.add(adapter_file)


def test_renaming_and_deleting(library: AdapterLibrary, adapter_file: Path) -> None:
    library.add(adapter_file)
    library.add(adapter_file, "tom")
    with pytest.raises(LibraryError, match="already"):
        library.rename("rex", "TOM")
    assert library.rename("rex", " Rex the dog ") == "Rex the dog"
    assert library.rename("tom", "Tom") == "Tom"
    library.delete("Tom")
    assert library.names() == ["Rex the dog"]
    with pytest.raises(LibraryError):
        library.delete("Tom")


def test_what_was_deleted_comes_back(
    library: AdapterLibrary, base: BaseModel, adapter_file: Path
) -> None:
    library.add(adapter_file, "rex")
    content = library.path("rex").read_bytes()
    library.delete("rex")
    assert library.names() == []
    library.add(adapter_file, "rex")
    assert library.restore("rex") == "rex-2", "the name has been given away"
    assert library.path("rex-2").read_bytes() == content
    for name in ("rex", "never", "../rex"):
        with pytest.raises(LibraryError):
            library.restore(name)
    library.delete("rex")
    yesterday = time.time() - 2 * 24 * 60 * 60
    (aside,) = (library.folder / ".deleted").iterdir()
    os.utime(aside, (yesterday, yesterday))
    AdapterLibrary(library.folder, base, 2**20)
    with pytest.raises(LibraryError, match="not there any more"):
        library.restore("rex")


def test_a_version_changes_with_the_file(library: AdapterLibrary, adapter_file: Path) -> None:
    library.add(adapter_file)
    before = library.versions()
    assert library.versions() == before
    write_random_adapter(library.path("rex"), 5)
    assert library.versions() != before


def test_prompts_are_those_that_files_tell(
    library: AdapterLibrary, adapter_file: Path, tmp_path: Path
) -> None:
    adapter = read_adapter(adapter_file)
    metadata = replace(adapter.metadata, instance_prompt="a photo of sks dog")
    write_adapter(tmp_path / "rex.safetensors", replace(adapter, metadata=metadata))
    library.add(tmp_path / "rex.safetensors")
    library.add(adapter_file, "silent")
    (library.folder / "broken.safetensors").write_bytes(b"no adapter")
    assert library.prompts() == {"rex": "a photo of sks dog"}
    library.rename("rex", "max")
    assert library.prompts() == {"max": "a photo of sks dog"}
