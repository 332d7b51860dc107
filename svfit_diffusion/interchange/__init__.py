"""In and out: LoRAs, changes and whole models for other programs, and adapters from them."""

from svfit_diffusion.interchange.based import with_base
from svfit_diffusion.interchange.combining import Reduction, merge_adapters, reduce_adapter
from svfit_diffusion.interchange.dense import export_dense
from svfit_diffusion.interchange.export import Export
from svfit_diffusion.interchange.lora import export_lora
from svfit_diffusion.interchange.merged import export_pipeline
from svfit_diffusion.interchange.projection import Import, import_difference, import_lora
from svfit_diffusion.interchange.single_file import export_checkpoint

__all__ = [
    "Export",
    "Import",
    "Reduction",
    "export_checkpoint",
    "export_dense",
    "export_lora",
    "export_pipeline",
    "import_difference",
    "import_lora",
    "merge_adapters",
    "reduce_adapter",
    "with_base",
]
