"""What reads files that others wrote: each target takes a damaged one, and says how that ended.

A file is refused by an exception of ours, and nothing has changed; or it is accepted, and what
comes of it is finite. Anything else is an error, and the file is kept in `FOUND`.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import damage
import tiny
import tiny_training
import torch
from hypothesis import strategies as st
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from tiny_adapters import make_adapter, with_sketches

from app.errors import UploadError
from app.picture import PictureSettings
from app.png_metadata import KEY, read_settings, save_picture
from app.settings import Limits
from svfit_diffusion.cli.fleet_table import line
from svfit_diffusion.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    InterchangeError,
    StorageError,
)
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter, write_adapter
from svfit_diffusion.files.sums import SUMS_NAME, write_sums
from svfit_diffusion.fleet.driver import Finished
from svfit_diffusion.fleet.ledger import Ledger
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.peft import read_peft_adapter, write_peft_adapter
from svfit_diffusion.spectrum.basis_file import basis_path
from svfit_diffusion.spectrum.cache import load_bases, read_base
from svfit_diffusion.spectrum.stored import leftovers, stored_bases
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.snapshot import restore, take
from svfit_diffusion.training.state import find_checkpoint, resume, save_checkpoint

CORPUS = Path(__file__).parent / "corpus"
"""A folder per target, with files that were found to be taken wrongly."""
FOUND = Path(__file__).parent / "found"
"""The last file that each target took wrongly: the smallest, once Hypothesis has shrunk it."""

Files = Mapping[str, bytes]
"""Contents by name: what a damaged file replaces of a good folder."""


class Target:
    """A reader of files.

    Attributes:
        good: a good folder.
    """

    good: Files

    def damages(self) -> st.SearchStrategy[Files]:
        """What may have become of good files."""
        raise NotImplementedError

    def take(self, damaged: Files) -> bool:
        """Whether files are accepted in place of the good ones.

        Raises:
            Exception: they were taken wrongly.
        """
        raise NotImplementedError

    def check(self, damaged: Files) -> bool:
        """`take`, but what is taken wrongly is kept."""
        try:
            return self.take(damaged)
        except Exception:
            folder = FOUND / type(self).__name__
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, content in damaged.items():
                (folder / name).write_bytes(content)
            raise


class Adapters(Target):
    """Adapter files, loaded into a pipeline that draws with them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / WEIGHTS_NAME
        self._pipe = tiny.make_tiny_pipeline()
        adapter = make_adapter()
        # One layer as a budget leaves it: its few values are written with their positions.
        path = next(path for path in adapter.deltas["unet"] if path.endswith("attn1.to_q"))
        adapter.deltas["unet"][path] = torch.eye(64)[::9].sum(0)
        # Without sketches, the other values may be anything.
        sketches = {"text_encoder": with_sketches(adapter).sketches["text_encoder"]}
        write_adapter(self._path, replace(adapter, sketches=sketches))
        self.good = {WEIGHTS_NAME: self._path.read_bytes()}
        self._state = self._standing()

    def _standing(self) -> Any:
        parameters = {n: id(p) for n, p in self._pipe.unet.named_parameters()}
        return parameters, self._pipe.get_list_svfit_adapters()

    def damages(self) -> st.SearchStrategy[Files]:
        return _of(WEIGHTS_NAME, damage.safetensors_files(self.good[WEIGHTS_NAME]))

    def take(self, damaged: Files) -> bool:
        self._path.write_bytes(damaged[WEIGHTS_NAME])
        try:
            self._pipe.load_svfit_weights(self._path, show_progress=False)
        except CheckpointError as refusal:
            assert len(str(refusal)) < 10_000
            assert self._standing() == self._state
            return False
        try:
            latents = tiny.run_pipeline(self._pipe, output_type="latent", num_inference_steps=1)
            assert torch.isfinite(latents).all()
        finally:
            self._pipe.unload_svfit_weights()
        assert self._standing() == self._state
        return True


_BASIS = "basis.safetensors"


class CacheFiles(Target):
    """Files of singular vectors: whatever is in the cache, the right ones are found."""

    def __init__(self, folder: Path) -> None:
        weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        self._base, self._folder = read_base({"a": weight}), folder
        self._path = basis_path(folder, self._base.digests["a"])
        self._right = self._load()
        self.good = {_BASIS: self._path.read_bytes()}

    def _load(self) -> list[list[float]]:
        basis = load_bases(self._base, show_progress=False, cache=self._folder)["a"]
        return [t.tolist() for t in (basis.u, basis.v, basis.sigma, basis.probes)]  # type: ignore[union-attr]

    def damages(self) -> st.SearchStrategy[Files]:
        return _of(_BASIS, damage.safetensors_files(self.good[_BASIS]))

    def take(self, damaged: Files) -> bool:
        content = damaged[_BASIS]
        self._path.write_bytes(content)
        stored_bases(self._folder), leftovers(self._folder)
        assert self._load() == self._right
        is_accepted = self._path.read_bytes() == content
        assert [file.path for file in stored_bases(self._folder)] == [self._path]
        assert is_accepted or self._path.read_bytes() == self.good[_BASIS]
        return is_accepted


class Checkpoints(Target):
    """Training checkpoints, their sums right or wrong: trainers go on from there, or stay."""

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = {"budget": 90, "use_ema": True}
        self._trainer = tiny_training.make_trainer(folder, 3, **settings)
        self._folder = save_checkpoint(self._trainer, folder / "checkpoints")
        self.good = {p.name: p.read_bytes() for p in self._folder.iterdir() if p.name != SUMS_NAME}
        self._sums = (self._folder / SUMS_NAME).read_bytes()
        self._start, self._state = take(self._trainer), self._standing()

    def _standing(self) -> str:
        snapshot = take(self._trainer)
        tensors = {name: tensor.tolist() for name, tensor in snapshot.tensors.items()}
        parts = [tensors, snapshot.numbers, self._trainer.lr_scheduler.state_dict()]
        parts += self._trainer.optimizer.state_dict()["param_groups"]
        return repr([sorted(part.items()) for part in parts])

    def damages(self) -> st.SearchStrategy[Files]:
        tensors, record = "training_state.safetensors", "training_state.json"
        kinds = [
            _of(tensors, damage.safetensors_files(self.good[tensors])),
            _of(record, damage.json_texts(self.good[record].decode()).map(_encoded)),
            *(_of(name, damage.any_files(content)) for name, content in self.good.items()),
            _of(SUMS_NAME, damage.any_files(self._sums)),
        ]
        return st.one_of(kinds[0], kinds[0], kinds[1], kinds[1], *kinds[2:])

    def take(self, damaged: Files) -> bool:
        for name, content in ({SUMS_NAME: self._sums} | self.good | dict(damaged)).items():
            (self._folder / name).write_bytes(content)
        if SUMS_NAME not in damaged:
            (self._folder / SUMS_NAME).unlink()
            write_sums(self._folder)
        try:
            find_checkpoint("latest", self._folder.parent)
            resume(self._trainer, self._folder)
        except CheckpointError as refusal:
            assert len(str(refusal)) < 10_000
            assert self._standing() == self._state
            return False
        try:
            snapshot = take(self._trainer)
            assert all(t.isfinite().all() for t in snapshot.tensors.values())
            tiny_training.advance(self._trainer, 1)
        except DivergedError:
            pass
        finally:
            restore(self._trainer, self._start)
        assert self._standing() == self._state
        return True


_PICTURE = "a.png"


class Pictures(Target):
    """PNG files that carry settings."""

    def __init__(self, folder: Path) -> None:
        self._path, self._limits = folder / _PICTURE, Limits()
        settings = PictureSettings("a photo of a dog", adapters={"rex": 0.5}, seed=3)
        saved = save_picture(folder, Image.new("RGB", (8, 8)), settings)
        self.good = {_PICTURE: saved.read_bytes()}
        with Image.open(saved) as picture:
            assert isinstance(picture, PngImageFile)
            self._text = str(picture.text[KEY])

    def damages(self) -> st.SearchStrategy[Files]:
        texts = damage.json_texts(self._text).map(_png)
        return _of(_PICTURE, texts | damage.any_files(self.good[_PICTURE]))

    def take(self, damaged: Files) -> bool:
        self._path.write_bytes(damaged[_PICTURE])
        try:
            settings = read_settings(self._path, self._limits)
        except UploadError as refusal:
            assert "\n" not in str(refusal)
            assert len(str(refusal)) < 1000
            return False
        settings.check(self._limits)
        json.dumps(vars(settings), ensure_ascii=False, allow_nan=False).encode()
        return True


class PeftFolders(Target):
    """Folders of PEFT's, made ours and theirs again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        whole = with_sketches(make_adapter())
        few = sorted(whole.deltas["unet"])[:3]
        own = {"unet": {path: whole.deltas["unet"][path] for path in few}}
        sketches = {"unet": {path: whole.sketches["unet"][path] for path in few}}
        adapter = replace(whole, deltas=own, sketches=sketches)
        (self._unet,) = write_peft_adapter(adapter, folder / "theirs")
        self.good = {path.name: path.read_bytes() for path in self._unet.iterdir()}

    def damages(self) -> st.SearchStrategy[Files]:
        config, tensors = self.good[CONFIG_NAME], self.good[SAFETENSORS_WEIGHTS_NAME]
        return st.one_of(
            _of(CONFIG_NAME, damage.json_texts(config.decode()).map(_encoded)),
            _of(CONFIG_NAME, damage.any_files(config)),
            _of(SAFETENSORS_WEIGHTS_NAME, damage.safetensors_files(tensors)),
        )

    def take(self, damaged: Files) -> bool:
        for name, content in (self.good | dict(damaged)).items():
            (self._unet / name).write_bytes(content)
        try:
            adapter = read_peft_adapter({"unet": self._unet})
            write_adapter(self._folder / WEIGHTS_NAME, adapter)
            write_peft_adapter(
                read_adapter(self._folder / WEIGHTS_NAME), self._folder / "again", overwrite=True
            )
        except (CheckpointError, InterchangeError) as refusal:
            assert len(str(refusal)) < 10_000
            return False
        return True


_RECORD = "rex.json"


class Records(Target):
    """Records of a fleet, which say that a subject is done."""

    def __init__(self, folder: Path) -> None:
        config = TrainingConfig("base", str(folder), "a photo of sks dog")
        self._subject = FleetSubject("rex", config)
        self._path = folder / ".fleet" / "finished" / _RECORD
        self._store = Store(str(folder))
        record = {"name": "rex", "steps": 3, "worker_seconds": 1.5, "begun": 1}
        self._store.finish("rex", record | {"settings": self._subject.settings})
        self.good = {_RECORD: self._path.read_bytes()}

    def damages(self) -> st.SearchStrategy[Files]:
        good = self.good[_RECORD]
        texts = damage.json_texts(good.decode()).map(_encoded)
        return _of(_RECORD, texts | damage.any_files(good))

    def take(self, damaged: Files) -> bool:
        self._path.write_bytes(damaged[_RECORD])
        try:
            ledger = Ledger([self._subject], self._store)
        except (StorageError, ConfigError) as refusal:
            assert len(str(refusal)) < 10_000
            return False
        assert not ledger.open
        record = ledger.records["rex"]
        assert line(Finished("rex", record), "1 of 1")
        (costs,) = self._store._files.cat_file(ledger.costs_path).splitlines()
        json.loads(costs)
        return True


def _of(name: str, contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[Files]:
    return contents.map(lambda content: {name: content})


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _png(text: str) -> bytes:
    """A picture that carries a text."""
    chunks, file = PngInfo(), io.BytesIO()
    chunks.add_itxt(KEY, text.encode("utf-8", "replace").decode())
    Image.new("RGB", (8, 8)).save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


TARGETS: tuple[type[Any], ...] = (Adapters, CacheFiles, Checkpoints, Pictures, PeftFolders, Records)
