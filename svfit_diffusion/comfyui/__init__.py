"""A folder of custom nodes for ComfyUI: SVFit adapters on its MODEL and CLIP, without loss.

Link or copy it into `ComfyUI/custom_nodes`, where this package is installed; see `README.md`.
"""

from svfit_diffusion.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
