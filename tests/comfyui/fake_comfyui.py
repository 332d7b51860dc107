"""What the node uses of ComfyUI, as its `model_patcher`, `lora`, `sd`, `utils` and `folder_paths`
do it: loaded weights, patches beside them, and clones that share the one and not the other.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def module_of(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with these parameters."""
    root = nn.Module()
    for key, tensor in tensors.items():
        module = root
        *parents, name = key.split(".")
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return root


class FakePatcher:
    """As ComfyUI's `ModelPatcher`.

    Attributes:
        model: the model, which all clones share.
        backup: own weights of those that patches have replaced in the model at the moment.
        patches: strength, patch and slice of each patch, by key.
    """

    def __init__(self, model: nn.Module, convert: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.backup: dict[str, Any] = {}
        self.patches: dict[str, list[Any]] = {}
        self._convert = convert or (lambda weight, **_: weight)

    def clone(self) -> FakePatcher:
        other = FakePatcher(self.model, self._convert)
        other.backup = self.backup
        other.patches = {key: patches[:] for key, patches in self.patches.items()}
        return other

    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        taken = []
        state = self.model.state_dict()
        for target, patch in patches.items():
            key, rows = (target, None) if isinstance(target, str) else target
            if key in state:  # others are left out without a word
                entry = (strength_patch, patch, strength_model, rows, None)
                self.patches.setdefault(key, []).append(entry)
                taken.append(target)
        return taken

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, list[Any]]:
        found = {}
        for key, own in self.model.named_parameters():
            if filter_prefix is None or key.startswith(filter_prefix):
                weight = self.backup[key].weight if key in self.backup else own
                found[key] = [(weight, self._convert), *self.patches.get(key, [])]
        return found

    def patched(self) -> dict[str, Tensor]:
        """All weights as the model draws with them."""
        weights = {}
        for key, ((own, convert), *patches) in self.get_key_patches().items():
            weights[key] = whole = convert(own.detach()).clone()
            for strength, (kind, (change,)), strength_model, rows, function in patches:
                assert (kind, strength_model, function) == ("diff", 1.0, None)
                assert type(change) is Tensor and not change.is_inference()
                part = whole if rows is None else whole.narrow(*rows)
                assert part.shape == change.shape
                part += strength * change.to(part.dtype)
        return weights

    def load_to_gpu(self) -> None:
        """Put the patched weights in the model, as before drawing."""
        patched = self.patched()
        for key in self.patches:
            parameter = self.model.get_parameter(key)
            self.backup[key] = SimpleNamespace(weight=parameter.detach().clone())
            parameter.data.copy_(patched[key])


class FakeClip:
    """As ComfyUI's `CLIP`."""

    def __init__(self, patcher: FakePatcher) -> None:
        self.patcher = patcher
        self.cond_stage_model = patcher.model

    def clone(self) -> FakeClip:
        return FakeClip(self.patcher.clone())

    def add_patches(self, patches: Any, strength_patch: float = 1.0) -> list[Any]:
        return self.patcher.add_patches(patches, strength_patch)


class FakeComfyUI:
    """The modules that the node imports, for a test.

    Attributes:
        folder: the folder of adapters.
        steps: of each progress bar: how many were announced, and how many were made.
        freed: bytes and device of each request for room.
        device: that ComfyUI works on.
    """

    def __init__(self, models: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = models / "svfit"
        self.folder.mkdir()
        self.steps: list[list[int]] = []
        self.freed: list[Any] = []
        self.device = torch.device("cpu")
        self._folders: dict[str, tuple[list[str], set[str]]] = {}
        folder_paths = {
            "models_dir": str(models),
            "folder_names_and_paths": self._folders,
            "add_model_folder_path": self._add_folder,
            "get_filename_list": self._files,
            "get_full_path_or_raise": self._path,
        }
        management = {
            "get_torch_device": lambda: self.device,
            "free_memory": lambda size, device: self.freed.append((size, device)),
        }
        modules = {
            "folder_paths": folder_paths,
            "comfy": {},
            "comfy.model_management": management,
            "comfy.utils": {"ProgressBar": self._bar},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(copy.copy(members))
            patch.setitem(sys.modules, name, module)
        comfy: Any = sys.modules["comfy"]
        comfy.model_management = sys.modules["comfy.model_management"]
        comfy.utils = sys.modules["comfy.utils"]

    def _add_folder(self, name: str, path: str) -> None:
        self._folders.setdefault(name, ([], set()))[0].append(path)

    def _files(self, name: str) -> list[str]:
        folders = [Path(folder) for folder in self._folders[name][0]]
        files = [(f, p) for f in folders for p in sorted(f.rglob("*")) if p.is_file()]
        return [str(path.relative_to(folder)) for folder, path in files]

    def _path(self, name: str, file: str) -> str:
        for folder in self._folders.get(name, ([],))[0]:
            if (Path(folder) / file).is_file():
                return str(Path(folder) / file)
        raise FileNotFoundError(f"Model in folder '{name}' with filename '{file}' not found.")

    def _bar(self, total: int) -> Any:
        count = [total, 0]
        self.steps.append(count)

        def update(value: int) -> None:
            count[1] += value

        return SimpleNamespace(update=update)
