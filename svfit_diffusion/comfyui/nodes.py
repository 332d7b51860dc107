"""The nodes that ComfyUI finds in this package."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from svfit_diffusion.adapters.loading import only_components
from svfit_diffusion.comfyui.host import adapter_files, adapter_path
from svfit_diffusion.comfyui.patches import Patches, make_patches
from svfit_diffusion.comfyui.places import ClipPlaces, ModelPlaces
from svfit_diffusion.comfyui.weights import HostWeights
from svfit_diffusion.errors import ConfigError, InterchangeError, listed
from svfit_diffusion.files.adapter import Adapter, read_adapter, refuse_words


def _strength(of: str) -> tuple[str, dict[str, Any]]:
    settings = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}
    return "FLOAT", settings | {"tooltip": f"Factor of what the adapter does to the {of}."}


@dataclass(frozen=True)
class _Made:
    """Patches, and what they were made of."""

    sources: tuple[Any, ...]
    model: weakref.ref[Any]
    patches: Patches


class LoadSVFitAdapter:
    """Puts an adapter on a MODEL and, if it shifts text encoders, on a CLIP."""

    CATEGORY = "loaders"
    DESCRIPTION = (
        "Loads an SVFit adapter, a file of shifted singular values. Those of the base model are "
        "computed once and kept in svfit-diffusion's cache."
    )
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP")

    def __init__(self) -> None:
        self._made: dict[type, _Made] = {}  # other strengths need no other patches

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The inputs, for ComfyUI."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model, without quantisation."}),
                "adapter": (
                    adapter_files(),
                    {"tooltip": "A .safetensors file of svfit-diffusion in models/svfit."},
                ),
                "strength_model": _strength("MODEL"),
                "strength_clip": _strength("CLIP"),
            },
            "optional": {
                "clip": (
                    "CLIP",
                    {"tooltip": "Needed by adapters that shift text encoders."},
                ),
                "basis_model": (
                    "MODEL",
                    {
                        "tooltip": "If MODEL is quantised (fp8, GGUF, …): the same base without "
                        "quantisation, to take singular vectors from."
                    },
                ),
                "ignore_base_mismatch": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Load on another base than that of the training, such as a "
                        "fine-tune of it.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, adapter: str, **_: Any) -> int:
        """When the file was written: a new training can replace it."""
        return adapter_path(adapter).stat().st_mtime_ns

    def load(
        self,
        model: Any,
        adapter: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        basis_model: Any = None,
        ignore_base_mismatch: bool = False,
    ) -> tuple[Any, Any]:
        """The MODEL and the CLIP with the adapter; what it does not shift stays as it is.

        Raises:
            CheckpointError: the file is no adapter, or of layers that are not there.
            BaseMismatchError: it was trained on another base.
            BasisError: a weight cannot be decomposed, such as a quantised one.
            ConfigError: it shifts text encoders and there is no CLIP, or the MODEL is of a family
                whose names are not known.
            InterchangeError: `model` has other layers than `basis_model`.
        """
        path = adapter_path(adapter)
        loaded = read_adapter(path)
        refuse_words(loaded, "load it in ComfyUI")
        sources = (path, path.stat().st_mtime_ns, ignore_base_mismatch)
        encoders = [name for name in loaded.deltas if name.startswith("text_encoder")]
        denoisers = [name for name in loaded.deltas if name not in encoders]
        if encoders and strength_clip and clip is None:
            raise ConfigError(
                f"the adapter shifts {', '.join(encoders)} too: connect a CLIP, or set "
                f"strength_clip to 0 to leave that out"
            )
        if denoisers and strength_model:
            part = only_components(loaded, denoisers)
            base = model if basis_model is None else basis_model
            patches = self._patches(part, base, ModelPlaces, sources)
            model = _patched(model, patches, strength_model)
        if encoders and strength_clip:
            part = only_components(loaded, encoders)
            patches = self._patches(part, clip.patcher, ClipPlaces, sources)
            clip = _patched(clip, patches, strength_clip)
        return model, clip

    def _patches(
        self,
        adapter: Adapter,
        patcher: Any,
        places: type[ModelPlaces] | type[ClipPlaces],
        sources: tuple[Any, ...],
    ) -> Patches:
        made = self._made.get(places)
        if made is None or made.sources != sources or made.model() is not patcher.model:
            weights = HostWeights(patcher)
            patches = make_patches(adapter, weights, places(weights.shapes), sources[-1])
            made = _Made(sources, weakref.ref(patcher.model), patches)
            self._made[places] = made
        return made.patches


def _patched(host: Any, patches: Patches, strength: float) -> Any:
    """A clone of a MODEL or a CLIP with patches; `InterchangeError` if one was not taken."""
    clone = host.clone()
    taken = set(clone.add_patches(patches, strength))
    missing = [str(target) for target in patches if target not in taken]
    if missing:
        raise InterchangeError(listed("ComfyUI found no weight for these patches", missing))
    return clone


NODE_CLASS_MAPPINGS = {"LoadSVFitAdapter": LoadSVFitAdapter}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadSVFitAdapter": "Load SVFit adapter"}
