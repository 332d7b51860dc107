"""Joint training of the denoiser and the text encoder on the latents of the pool."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .average import Average
from .budget import (
    TimeBudget,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
    set_learning_rate,
)
from .compose import LATENT_SIZE
from .export import NOISE_SCHEDULE, assemble, sample_grid, save_half
from .muon import split_optimizers
from .pool import Pool
from .precision import autocast
from .tokenizer import MAX_LENGTH, train_tokenizer
from .vae import HELD_BACK

TEXT_WIDTH = 192
CAPTION_DROP = 0.1
OBJECT_WEIGHT = 2.5
"""Extra loss weight of a latent that the object covers wholly."""

_SNR_CLIP = 5.0
_MUON_RATE = 0.02
_ADAM_RATE = 1.5e-3
_EMA_DECAY = 0.998
_LOG_STEPS = 50
_VALIDATION_IMAGES = 256


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer CLIP text model, its token embeddings wide apart from the start."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    model = CLIPTextModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    return model


def new_unet() -> UNet2DConditionModel:
    """A denoiser that hears the text through cross-attention alone."""
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        resnet_time_scale_shift="scale_shift",
    )
    unet.set_attn_processor(AttnProcessor())
    _zero_residual_ends(unet)
    return unet


def _zero_residual_ends(unet: UNet2DConditionModel) -> None:
    """Let every residual branch, and the output, start from zero."""
    for name, module in unet.named_modules():
        is_end = name.endswith((".conv2", ".to_out.0", ".ff.net.2", ".proj_out"))
        if is_end or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


@dataclass
class Examples:
    """The pool as tensors, ready for training."""

    latents: Tensor
    masks: Tensor
    tokens: Tensor
    empty: Tensor

    @classmethod
    def prepare(
        cls, pool: Pool, latents: Tensor, scale: float, tokenizer: CLIPTokenizer
    ) -> Examples:
        """Scale the latents and tokenise all captions, several per picture."""

        def tokenise(texts: list[str]) -> Tensor:
            encoded = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True)
            return torch.tensor(encoded.input_ids, dtype=torch.int16)

        per_image = len(pool.captions[0])
        flat = [text for texts in pool.captions for text in texts]
        tokens = tokenise(flat).view(-1, per_image, MAX_LENGTH)
        masks = torch.from_numpy(pool.masks)
        return cls(latents.float() * scale, masks, tokens, tokenise([""])[0])

    def batch(
        self, indices: Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, loss weights and tokens; some captions are emptied for guidance."""
        count = len(indices)
        choice = torch.randint(self.tokens.shape[1], (count,), generator=generator)
        tokens = self.tokens[indices, choice].long()
        tokens[torch.rand(count, generator=generator) < CAPTION_DROP] = self.empty.long()
        weights = 1 + OBJECT_WEIGHT * self.masks[indices].float()[:, None] / 255
        return self.latents[indices].to(device), weights.to(device), tokens.to(device)


class Denoiser:
    """Text encoder, denoiser and noise schedule, with the training loss."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.text_encoder = new_text_encoder(tokenizer).to(device)
        self.unet = new_unet().to(device)
        schedule = DDPMScheduler(**NOISE_SCHEDULE)
        self.steps = schedule.config.num_train_timesteps
        self.kept = schedule.alphas_cumprod.to(device)

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """The parts that learn."""
        return self.unet, self.text_encoder

    def parameters(self) -> list[nn.Parameter]:
        """Every weight that learns."""
        return [parameter for module in self.modules for parameter in module.parameters()]

    @torch.no_grad()
    def continue_from(self, folder: Path, tokenizer: CLIPTokenizer) -> None:
        """Start from an exported pipeline; tokens known to both keep their embeddings."""
        self.unet.load_state_dict(
            UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
        )
        learned = CLIPTextModel.from_pretrained(folder / "text_encoder")
        entries = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
        fresh = self.text_encoder.get_input_embeddings().weight
        old = learned.get_input_embeddings().weight
        for entry, index in tokenizer.get_vocab().items():
            if entry in entries:
                fresh[index] = old[entries[entry]]
        learned.get_input_embeddings().weight = fresh
        self.text_encoder.load_state_dict(learned.state_dict())

    def loss(
        self, latents: Tensor, weights: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Weighted squared error of the predicted velocity, at stratified times."""
        device, count = latents.device, len(latents)
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        times = (strata * self.steps).long().clamp(max=self.steps - 1).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        kept = self.kept[times][:, None, None, None]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        with autocast(device):
            context = self.text_encoder(tokens).last_hidden_state
            output = self.unet(noisy, times, encoder_hidden_states=context).sample
        signal_to_noise = kept / (1 - kept)
        clipped = signal_to_noise.clamp(max=_SNR_CLIP) / (signal_to_noise + 1)
        error = F.mse_loss(output.float(), velocity, reduction="none")
        scaled: Tensor = (error * clipped * weights).sum() / (weights.mean() * clipped.sum())
        return scaled / error[0].numel()


@torch.no_grad()
def _validation_loss(denoiser: Denoiser, examples: Examples, device: torch.device) -> float:
    """Loss on held-back pictures, with the same noise every time."""
    generator = torch.Generator().manual_seed(0)
    last = len(examples.latents)
    losses = []
    for start in range(last - _VALIDATION_IMAGES, last, 64):
        batch = examples.batch(torch.arange(start, start + 64), generator, device)
        losses.append(denoiser.loss(*batch, generator).item())
    return float(np.mean(losses))


def train_unet(
    pool: Pool,
    work: Path,
    minutes: float,
    device: torch.device,
    seed: int,
    batch_size: int = 64,
    export_minutes: float = 5.0,
    start: Path | None = None,
) -> None:
    """Train within a time budget, resuming where an earlier run stopped.

    ``work`` holds the course's own files, the autoencoder lies beside it; ``start`` is an
    exported pipeline to begin with. Every few minutes the averaged weights are exported to
    ``latest`` beside a grid of samples.
    """
    tokenizer_folder = work / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").exists():
        train_tokenizer((texts[0] for texts in pool.captions), tokenizer_folder)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL.from_pretrained(work.parent / "vae").to(device).eval()
    stored = torch.load(work / "latents.pt", weights_only=True)["latents"]
    examples = Examples.prepare(pool, stored, vae.config.scaling_factor, tokenizer)
    torch.manual_seed(seed)
    denoiser = Denoiser(tokenizer, device)
    if start is not None:
        denoiser.continue_from(start, tokenizer)
    optimizers = split_optimizers(denoiser.modules, _MUON_RATE, _ADAM_RATE)
    average = Average(denoiser.parameters(), _EMA_DECAY)
    checkpoint = work / "unet.pt"
    step, spent = 0, 0.0
    if (state := load_checkpoint(checkpoint)) is not None:
        for module, values in zip(denoiser.modules, state["modules"], strict=True):
            module.load_state_dict(values)
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average.values = [value.to(device) for value in state["average"]]
        step, spent = state["step"], state["spent"]
    if spent >= minutes * 60:
        return
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    budget = TimeBudget(minutes, spent)
    count = len(examples.latents) - HELD_BACK

    def save() -> None:
        save_checkpoint(
            checkpoint,
            {
                "modules": [module.state_dict() for module in denoiser.modules],
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average.values,
                "step": step,
                "spent": budget.spent_seconds,
            },
        )
        average.swap()
        for module in denoiser.modules:
            module.eval()
        loss = _validation_loss(denoiser, examples, device)
        pipeline = assemble(vae, denoiser.text_encoder, tokenizer, denoiser.unet)
        save_half(pipeline, work / "latest")
        grid = sample_grid(pipeline, rows=3)
        grid.save(work / f"grid_{math.floor(budget.spent_seconds / 60):03d}.png")
        average.swap()
        print(f"unet: exported at step {step}, validation loss {loss:.4f}", flush=True)

    saved, running = time.monotonic(), 0.0
    while (progress := budget.progress) < 1:
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate_factor(progress))
        for module in denoiser.modules:
            module.train()
        indices = torch.randint(count, (batch_size,), generator=generator)
        batch = examples.batch(indices, generator, device)
        loss = denoiser.loss(*batch, generator)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        average.update(step)
        running += loss.item() / _LOG_STEPS
        if step % _LOG_STEPS == 0:
            rate = step * batch_size / budget.spent_seconds
            print(
                f"unet: step {step}, {progress:.1%}, loss {running:.4f}, {rate:.0f} images/s",
                flush=True,
            )
            running = 0.0
        if time.monotonic() - saved > export_minutes * 60:
            save()
            saved = time.monotonic()
    save()
