"""Training on several processes: what travels between them, and how long a step takes."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.architectures import (
    TOYBOX,
    bare_pipeline,
    clip_text_encoder,
    sd15_unet,
    toybox_pipeline,
)
from benchmarks.report import ROOT, Row
from benchmarks.speed_methods import LORA, SVFIT
from benchmarks.speed_rows import make_row, timing_rows
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.trainer import Trainer

TRAVELS = "bytes a process sends into reductions per step, SD 1.5 UNet"
ALONE = "1 process"
_PROCESSES = (1, 2, 4)
_LORA_RANK = 8
_FLOAT_BYTES = 4
_SUBJECT = ROOT / "samples" / "subjects" / "pug"

# Of a usual cluster, for the steps calculated: bytes and seconds.
_BANDWIDTH = 25e9
_LATENCY = 10e-6


@dataclass(frozen=True)
class Job:
    """One training run on several processes.

    Attributes:
        base: "Toybox" or "SD 1.5 UNet".
        processes: how many.
        steps: optimizer steps.
        port: where the processes meet.
        output: folder of the run.
    """

    base: str
    processes: int
    steps: int
    port: int
    output: str


@dataclass(frozen=True)
class Trace:
    """What one process of a run saw.

    Attributes:
        seconds: of each step but the first.
        reduced_bytes: that went into reductions, per step.
    """

    seconds: list[float]
    reduced_bytes: int


def data_parallel(device: str, rounds: int) -> list[Row]:
    """Bytes for SD 1.5, step times for Toybox, and what follows for many GPUs."""
    times = {
        name: run("Toybox", processes, 1 + 4 * rounds).seconds
        for processes in _PROCESSES
        for name in [f"{processes} process{'es' * (processes > 1)}"]
    }
    setting = f"gloo, one thread each on {os.cpu_count()} cores, 4 photos each"
    rows = timing_rows("training step of several processes, Toybox", times, ALONE, setting=setting)
    travelling = run("SD 1.5 UNet", 2, 2).reduced_bytes
    rows.append(make_row(TRAVELS, SVFIT, travelling, "bytes", setting="intercepted, 2 processes"))
    return rows + calculated_rows({SVFIT: travelling, LORA: lora_bytes()})


def ring_seconds(message_bytes: float, processes: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce: `2 (p−1)/p · bytes / bandwidth + 2 (p−1) · latency`.

    Each of p processes sends 1/p of the message to its neighbour, 2 (p−1) times.
    """
    hops = 2 * (processes - 1)
    return hops / processes * message_bytes / bandwidth + hops * latency


def calculated_rows(message_bytes: dict[str, float]) -> list[Row]:
    """Seconds per step that gradients of so many bytes travel, on 8 and on 64 GPUs."""
    rows = [
        make_row("bytes of gradients per step, SD 1.5 UNet", LORA, message_bytes[LORA], "bytes")
        | {"setting": "calculated: 4 bytes for each trained value"}
    ]
    for processes in (8, 64):
        seconds = {
            method: ring_seconds(size, processes, _BANDWIDTH, _LATENCY)
            for method, size in message_bytes.items()
        }
        rows += [
            make_row(
                f"gradients' way over {processes} GPUs (calculated)",
                method,
                value,
                "s",
                LORA,
                value / seconds[LORA],
                setting=f"ring all-reduce, {_BANDWIDTH / 1e9:g} GB/s, {_LATENCY * 1e6:g} µs a hop",
                formula="2(p-1)/p * bytes/bandwidth + 2(p-1) * latency",
            )
            for method, value in seconds.items()
        ]
    return rows


def lora_bytes() -> int:
    """Bytes of the gradients of LoRA of rank 8 on SD 1.5's attention."""
    with torch.device("meta"):
        layers = attention_layers(sd15_unet()).values()
    return sum(_FLOAT_BYTES * _LORA_RANK * sum(layer.weight.shape) for layer in layers)


def run(base: str, processes: int, steps: int) -> Trace:
    """Train on several processes; what the first of them saw."""
    with tempfile.TemporaryDirectory() as output:
        job = Job(base, processes, steps, _free_port(), output)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            # The processes wait for each other, so that none takes the part of another.
            first, *_ = pool.map(train, [job] * processes, range(processes))
        return first


def train(job: Job, rank: int) -> Trace:
    """One process of a run, by the package's own trainer."""
    torch.set_num_threads(1)
    _join(job, rank)
    travelled: list[int] = []
    reduce: Any = torch.distributed.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        travelled.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *args, **kwargs)

    trainer = _trainer(job)
    seconds = []
    with patch.object(torch.distributed, "all_reduce", counting):
        for _ in range(job.steps):
            began = time.perf_counter()
            next(trainer.steps())
            seconds.append(time.perf_counter() - began)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return Trace(seconds[1:], sum(travelled) // job.steps)


def _join(job: Job, rank: int) -> None:
    """Say to accelerate, as torchrun does, which process this is."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["OMP_NUM_THREADS"] = "1"  # or accelerate chooses more, as it does not when launching
    if job.processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(job.port),
        }


def _trainer(job: Job) -> Trainer:
    config = TrainingConfig(
        pretrained_model_name_or_path=str(TOYBOX),
        instance_data_dir=str(_SUBJECT),
        instance_prompt="a photo of sks dog",
        output_dir=job.output,
        max_train_steps=job.steps,
        seed=0,
        **({} if job.base == "Toybox" else _SMALLEST),
    )
    pipe = toybox_pipeline() if job.base == "Toybox" else _sd15_pipeline()
    return Trainer(config, pipe=pipe, show_progress=False)


_SMALLEST: dict[str, Any] = {
    # What travels does not depend on the batch.
    "train_batch_size": 1,
    "resolution": 64,
    "train_text_encoder": False,
}


def _sd15_pipeline() -> Any:
    return bare_pipeline(sd15_unet(), clip_text_encoder(layers=1))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
