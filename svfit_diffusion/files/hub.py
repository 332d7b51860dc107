"""The model card of an adapter, and its upload to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.files.metadata import AdapterMetadata

PICTURE_NAME = "before_after.png"


def write_model_card(folder: Path, repo_id: str, metadata: AdapterMetadata, values: int) -> Path:
    """Write `README.md` for an adapter into its folder.

    Args:
        folder: holds the adapter, and the picture if there is one.
        repo_id: how users will load it.
        metadata: of the adapter.
        values: number of trained values.
    """
    local_base = Path(metadata.base_model).exists()
    data = ModelCardData(
        base_model=None if local_base else metadata.base_model or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "svfit", "dreambooth"],
        instance_prompt=metadata.instance_prompt,
    )
    picture = f"\n![before and after]({PICTURE_NAME})\n" if (folder / PICTURE_NAME).exists() else ""
    card = ModelCard(
        f"""---
{data.to_yaml()}
---

# {repo_id}

An [SVFit](https://arxiv.org/abs/2409.05926) adapter for `{metadata.base_model}`, trained with
DreamBooth on "{metadata.instance_prompt}": {values:,} shifted singular values.
{picture}
```python
import torch, svfit_diffusion
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{metadata.base_model}")
pipe.load_svfit_weights("{repo_id}")
image = pipe("{metadata.instance_prompt}").images[0]
```
"""
    )
    path = folder / "README.md"
    write_atomically(path, lambda target: target.write_text(str(card), encoding="utf-8"))
    return path


def push_adapter(folder: Path, repo_id: str, token: str | None = None) -> str:
    """Upload adapter, card and picture, and return the repository's address.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the hub refused.
    """
    address = create_repo(repo_id, exist_ok=True, token=token)
    upload_folder(
        repo_id=address.repo_id,
        folder_path=folder,
        allow_patterns=[WEIGHTS_NAME, "README.md", PICTURE_NAME],
        commit_message="SVFit adapter",
        token=token,
    )
    return str(address)
