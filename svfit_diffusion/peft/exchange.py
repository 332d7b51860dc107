"""Adapters of PEFT's form made ours, and ours made PEFT's, without loss.

PEFT keeps an adapter of one model in a folder, `adapter_config.json` and
`adapter_model.safetensors`; ours are files that may shift several components of a pipeline. What
the other form has no place for goes along: our header in that of PEFT's tensors, which PEFT does
not read, and PEFT's config among the training settings in our header.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from svfit_diffusion.errors import CheckpointError, ConfigError, InterchangeError, clipped, listed
from svfit_diffusion.files.adapter import Adapter, refuse_words
from svfit_diffusion.files.atomic import make_folder, save_safetensors, write_folder_atomically
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions
from svfit_diffusion.files.reading import read_safetensors
from svfit_diffusion.peft.config import SVFitConfig
from svfit_diffusion.peft.method import Method
from svfit_diffusion.peft.shifts import SUFFIX, WRAPPED, shifts_in
from svfit_diffusion.spectrum.rank import Rank, parse_rank
from svfit_diffusion.spectrum.sketch import PROBES

_HEADER = "svfit"
_SKETCHES = "svfit_sketches"
_CONFIGS = "peft_configs"


def write_peft_adapter(adapter: Adapter, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write an adapter as PEFT reads it: a folder for each component, such as `folder/unet`.

    `PeftModel.from_pretrained(pipe.unet, folder / "unet")` loads one.

    Args:
        adapter: the adapter.
        folder: made if it is not there.
        overwrite: replace folders of components that are there.

    Returns:
        The folders of its components.

    Raises:
        InterchangeError: one is there, or the adapter's settings under PEFT cannot be used.
        StorageError: there is no room or no permission.
    """
    refuse_words(adapter, "write it for PEFT")
    folders = {component: folder / component for component in adapter.deltas}
    for path in folders.values():
        if path.exists() and not overwrite:
            raise InterchangeError(f"{path} exists; choose another name, or pass overwrite=True")
    make_folder(folder)
    for component, path in folders.items():
        write_folder_atomically(path, partial(_write, adapter, component))
    return list(folders.values())


def read_peft_adapter(folders: Mapping[str, Path]) -> Adapter:
    """Read adapters that PEFT has saved as one of ours.

    Args:
        folders: of PEFT's `save_pretrained`, by the component of a pipeline that each is for, such
            as `{"unet": Path("my-adapter")}`.

    Raises:
        CheckpointError: a folder holds no adapter of SVFit's, or a damaged one.
        InterchangeError: one holds modules trained as a whole, or of several bases.
    """
    if not folders:
        raise InterchangeError('no folder is given; give them by component: {"unet": folder}')
    parts = {component: _read(Path(folder)) for component, folder in folders.items()}
    known = {part.header for part in parts.values()}
    header = known.pop() if len(known) == 1 else ""
    return Adapter(
        {component: part.shifts for component, part in parts.items()},
        AdapterMetadata.from_header(parse_json(header)) if header else _metadata(parts),
        {component: part.sketches for component, part in parts.items() if part.sketches},
    )


@dataclass(frozen=True)
class _Part:
    """What a folder of PEFT's holds.

    Attributes:
        shifts: `(r,)` float32 by module path.
        sketches: of them, if it was made from a file of ours.
        header: of that file, as JSON; else empty.
        config: PEFT's.
    """

    shifts: dict[str, Tensor]
    sketches: dict[str, Tensor]
    header: str
    config: dict[str, Any]


def _write(adapter: Adapter, component: str, folder: Path) -> None:
    deltas = adapter.deltas[component]
    header = {"format": "pt", _HEADER: json.dumps(adapter.metadata.to_header(), sort_keys=True)}
    if sketches := adapter.sketches.get(component):
        rows = {path: sketches[path].tolist() for path in sorted(sketches)}
        header[_SKETCHES] = json.dumps(rows)
    tensors = {f"{WRAPPED}{path}{SUFFIX}": delta for path, delta in deltas.items()}
    save_safetensors(folder / SAFETENSORS_WEIGHTS_NAME, tensors, header)
    _config(adapter.metadata, component, deltas).save_pretrained(str(folder))


def _config(metadata: AdapterMetadata, component: str, deltas: Mapping[str, Tensor]) -> SVFitConfig:
    """The config that an adapter had under PEFT, or one that means its layers and ranks."""
    configs = metadata.training.get(_CONFIGS, {})
    if not isinstance(configs, dict):
        raise InterchangeError(f"the adapter's header has {_CONFIGS} that are no JSON object")
    if stored := configs.get(component):
        try:
            return _checked(stored)
        except (TypeError, ValueError) as error:
            raise InterchangeError(f"the adapter's settings under PEFT: {error}") from None
    # transformers 5 dropped the `text_model.` level of CLIPTextModel; the end of a path fits both.
    lengths = {path.removeprefix("text_model."): len(delta) for path, delta in deltas.items()}
    rank = _rank(metadata.rank.get(component, ""))
    usual = rank or Counter(lengths.values()).most_common(1)[0][0]
    return SVFitConfig(
        r=usual,
        target_modules=set(lengths),
        rank_pattern={} if rank else {p: n for p, n in lengths.items() if n != usual},
        base_model_name_or_path=metadata.base_model or None,
        revision=metadata.base_revision or None,
        base_fingerprint=metadata.fingerprints.get(component),
        inference_mode=True,
    )


def _rank(text: str) -> Rank | None:
    try:
        return parse_rank(text)
    except ConfigError:
        return None


def _read(folder: Path) -> _Part:
    config = _object(folder / CONFIG_NAME)
    if config.get("peft_type") != Method.SVFIT.value:
        raise CheckpointError(
            f"{folder} holds an adapter of type {config.get('peft_type')!r}, expected "
            f"{Method.SVFIT.value!r}; for a LoRA use svfit import"
        )
    tensors, header = read_safetensors(folder / SAFETENSORS_WEIGHTS_NAME)
    others = sorted(name for name in tensors if not name.endswith(SUFFIX))
    if others:
        raise InterchangeError(
            listed(f"{folder} holds modules trained as a whole, which our files do not", others)
        )
    try:
        _checked(config)
        # Copies: what is mapped goes when someone else shortens the file.
        shifts = {p: t.to(torch.float32, copy=True) for p, t in shifts_in(tensors).items()}
        rows, ours = (parse_json(header.get(name, "{}")) for name in (_SKETCHES, _HEADER))
        if not isinstance(rows, dict):
            raise ValueError(f"{_SKETCHES!r} in the header is no JSON object")
        sketches = {path: _sketch(rows[path]) for path in shifts if path in rows}
        if not isinstance(ours, dict) or not all(isinstance(v, str) for v in ours.values()):
            raise ValueError(f"{_HEADER!r} in the header is no JSON object of texts")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return _Part(shifts, sketches, header.get(_HEADER, ""), config)


def _checked(config: Any) -> SVFitConfig:
    """PEFT's config of an adapter; `TypeError` or `ValueError` if it is none of SVFit's."""
    if not isinstance(config, dict):
        raise ValueError(f"a config is a JSON object, got a {type(config).__name__}")
    for name in ("base_model_name_or_path", "revision", "base_fingerprint"):
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"{name} is a text, got {clipped(config[name])}")
    checked = SVFitConfig.from_peft_type(**config)
    if not isinstance(checked, SVFitConfig):
        raise ValueError(f"it is of type {config['peft_type']}, expected {Method.SVFIT.value}")
    return checked


def _sketch(row: Any) -> Tensor:
    """A shift's sketch; `ValueError` if it is none."""
    if not isinstance(row, list) or len(row) != PROBES or not all(type(v) is float for v in row):
        raise ValueError(f"a sketch has {PROBES} numbers, got {clipped(row)}")
    return torch.tensor(row)


def _object(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} should hold a JSON object, got a {type(found).__name__}")
    return found


def _metadata(parts: Mapping[str, _Part]) -> AdapterMetadata:
    """What PEFT's configs say of an adapter."""
    configs = {component: part.config for component, part in parts.items()}
    bases = {(c.get("base_model_name_or_path"), c.get("revision")) for c in configs.values()}
    if len(bases) > 1:
        raise InterchangeError(f"the folders are of several bases: {sorted(map(str, bases))}")
    base, revision = bases.pop()
    prints = {component: config.get("base_fingerprint") for component, config in configs.items()}
    return AdapterMetadata(
        base_model=base or "",
        base_revision=revision or "",
        fingerprints={component: own for component, own in prints.items() if own},
        rank={component: str(config.get("r")) for component, config in configs.items()},
        target={component: _target(config) for component, config in configs.items()},
        training={_CONFIGS: configs},
        versions=package_versions(),
    )


def _target(config: Mapping[str, Any]) -> str:
    target = config.get("target_modules") or ""
    return target if isinstance(target, str) else " ".join(sorted(target))
