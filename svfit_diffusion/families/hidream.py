"""HiDream-I1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class HiDream(Family):
    """Two CLIPs, T5 and the layers of Llama; a mixture of experts whose prediction is negated."""

    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    trained_text_encoders = ("text_encoder", "text_encoder_2")
    needs_training_mode = True  # its experts pass no gradients otherwise
    sampling = Sampling(steps=50, guidance_scale=5.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        t5, _, llama, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        # Llama's come with the layers first.
        return Conditions({"t5": t5, "llama": llama.transpose(0, 1), "pooled": pooled})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(
            hidden_states=noisy,
            timesteps=self._timesteps(time),
            encoder_hidden_states_t5=conditions["t5"],
            encoder_hidden_states_llama3=conditions["llama"].transpose(0, 1),
            pooled_embeds=conditions["pooled"],
            return_dict=False,
        )
        return -(prediction if prediction.shape == noisy.shape else self._joined(prediction, noisy))

    def _joined(self, patches: Tensor, like: Tensor) -> Tensor:
        """Patches `(n, c, places, p²)`, as they are left in training mode, as an image."""
        n, channels, height, width = like.shape
        side = self.model.config.patch_size
        rows, columns = height // side, width // side
        patches = patches[:, :, : rows * columns]  # of images that are not square, all are padded
        grid = patches.reshape(n, channels, rows, columns, side, side)
        return grid.transpose(3, 4).reshape_as(like)
