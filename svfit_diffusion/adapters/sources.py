"""Adapters from wherever users keep them: a file, a folder, the hub, a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter import Adapter, parse_adapter, read_adapter

AdapterSource = str | Path | Mapping[str, Tensor]


def adapter_from(source: AdapterSource, weight_name: str, **hub_kwargs: Any) -> Adapter:
    """Read and validate an adapter.

    Args:
        source: a file, a folder, a hub id or a state dict.
        weight_name: file name in the folder or repository.
        **hub_kwargs: `subfolder`, and what `huggingface_hub.hf_hub_download` takes.

    Raises:
        CheckpointError: it is missing, damaged or no adapter.
    """
    if isinstance(source, Mapping):
        return parse_adapter(source, {})
    return read_adapter(_locate(source, weight_name, **hub_kwargs))


def _locate(
    source: str | Path, weight_name: str, subfolder: str | None = None, **hub_kwargs: Any
) -> Path:
    """The adapter file that `source` means, downloaded if it is a hub id."""
    local = Path(source)
    if local.is_file():
        return local
    if local.is_dir():
        return local / (subfolder or "") / weight_name
    try:
        return Path(hf_hub_download(str(source), weight_name, subfolder=subfolder, **hub_kwargs))
    except HFValidationError:
        raise CheckpointError(
            f"{str(source)!r} is no file, no folder and no hub id such as 'user/my-subject'"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{str(source)!r} is no local file or folder, and {weight_name!r} could not be fetched "
            f"from a hub repository of that name: {error}"
        ) from error
