"""The methods compared: ours, its peers from PEFT, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import IA3Config, OFTConfig, PsoftConfig, TinyLoraConfig

from benchmarks.adapting import ATTENTION, Adapt, full, lora, nothing, peft, svfit
from benchmarks.cores import leading_core, sparse_core
from benchmarks.own_word import with_own_word
from benchmarks.rules import (
    anchored,
    averaged,
    budget,
    careful,
    chosen,
    part,
    rates_by_sigma,
)

_FEED_FORWARD = {
    "unet": ["ff.net.2"],
    "text_encoder": ["fc2"],
    "transformer": ["ff.net.2", "ff_context.net.2"],
}
_KEYS_AND_VALUES = {
    "unet": ["to_k", "to_v"],
    "text_encoder": ["k_proj", "v_proj"],
    "transformer": ["to_k", "to_v", "add_k_proj", "add_v_proj"],
}


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: in results.
        adapt: makes frozen models trainable.
        learning_rates: to choose from, as many for every method.
        family: of methods drawn alike.
    """

    name: str
    adapt: Adapt
    learning_rates: tuple[float, ...]
    family: str


def _ia3(component: str) -> Any:
    return IA3Config(
        target_modules=[*_KEYS_AND_VALUES[component], *_FEED_FORWARD[component]],
        feedforward_modules=_FEED_FORWARD[component],
    )


def _oft(component: str) -> Any:
    return OFTConfig(r=8, oft_block_size=0, target_modules=ATTENTION[component])


def _psoft(component: str) -> Any:
    # About as many values as SVFit's on attention.
    return PsoftConfig(r=16, psoft_alpha=16, target_modules=ATTENTION[component])


def _tiny_lora(component: str) -> Any:
    # As many values as SVFit's; its projections come from a seed and need not be stored.
    return TinyLoraConfig(r=16, u=192, save_projection=False, target_modules=ATTENTION[component])


_SIGMA_RATES = (0.02, 0.05, 0.1, 0.2)
_ALL_SIGMA_RATES = (0.01, 0.02, 0.05, 0.1)
_LORA_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
_WORD_RATES = (0.01, 0.02, 0.05, 0.1)
_ROTATION_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_SMALL_ROTATION_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_SCALE_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
_SMALL_SCALE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)

METHODS: Sequence[Method] = (
    Method("none", nothing, (0.0,), "base"),
    Method("SVFit", svfit(), _SIGMA_RATES, "SVFit"),
    Method("SVFit, energy 0.99", svfit(0.99), _SIGMA_RATES, "SVFit"),
    Method("SVFit, energy 0.9", svfit(0.9), _SIGMA_RATES, "SVFit"),
    Method("SVFit, rank 8", svfit(8), _SIGMA_RATES, "SVFit"),
    Method("SVFit, rank 32", svfit(32), _SIGMA_RATES, "SVFit"),
    Method("SVFit, all layers", svfit(target="all"), _ALL_SIGMA_RATES, "SVFit, all layers"),
    Method(
        "SVFit, all layers, as many",  # as attention has at full rank: 1/16 of LoRA's of rank 8
        svfit(1.0, "all", budget()),
        _ALL_SIGMA_RATES,
        "SVFit, all layers",
    ),
    Method(
        "SVFit, budget 3000", svfit(1.0, "attention", budget(3000)), _SIGMA_RATES, "SVFit, budget"
    ),
    Method(
        "SVFit, budget 1000", svfit(1.0, "attention", budget(1000)), _SIGMA_RATES, "SVFit, budget"
    ),
    Method("LoRA, r=8", lora(8), _LORA_RATES, "LoRA"),
    Method("LoRA, r=1", lora(1), _LORA_RATES, "LoRA"),
    Method("PiSSA, r=8", lora(8, "pissa"), _LORA_RATES, "PiSSA"),
    Method("OFT, r=8", peft(_oft), _SMALL_ROTATION_RATES, "OFT"),
    Method("PSOFT, r=16", peft(_psoft), _ROTATION_RATES, "PSOFT"),
    Method("TinyLoRA, u=192", peft(_tiny_lora), _SMALL_SCALE_RATES, "TinyLoRA"),
    Method("(IA)³", peft(_ia3), _SCALE_RATES, "(IA)³"),
    Method("full", full, (3e-5, 1e-4, 3e-4, 1e-3), "full"),
)


_BLOCKS = "|".join(
    (
        r".*\.attn\d?\.(to_(q|k|v|out\.0)|add_[qkv]_proj|to_add_out)",
        r".*\.ff(_context)?\.net\.(0\.proj|2)",
        r".*\.proj_(mlp|out|in)",
        r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
        r".*\.(conv[12]|conv_shortcut)",
    )
)
"""All layers of blocks but those of time and of norms."""


def _idea(name: str, adapt: Adapt, rates: tuple[float, ...] = _ALL_SIGMA_RATES) -> Method:
    return Method(name, adapt, rates, "ideas")


IDEAS: Sequence[Method] = (
    *(
        _idea(f"SVFit, {which} half", svfit(1.0, "attention", part(which)), _SIGMA_RATES)
        for which in ("top", "bottom", "spread")
    ),
    _idea("SVFit, rates by √σ", svfit(1.0, "attention", rates_by_sigma(0.5)), _SIGMA_RATES),
    _idea("SVFit, rates by σ", svfit(1.0, "attention", rates_by_sigma(1.0)), _SIGMA_RATES),
    _idea("SVFit, averaged", svfit(1.0, "attention", averaged(0.95)), _SIGMA_RATES),
    _idea("SVFit, noisy steps lead", svfit(1.0, "attention", by_noise=True), _SIGMA_RATES),
    _idea("SVFit, careful", svfit(1.0, "attention", careful, wants_needs=True), _SIGMA_RATES),
    _idea(
        "SVFit, anchored", svfit(1.0, "attention", anchored(0.01), wants_needs=True), _SIGMA_RATES
    ),
    _idea("SVFit, stratified times", svfit(1.0, "attention", stratified=True), _SIGMA_RATES),
    _idea("SVFit, base's prior", svfit(1.0, "attention", base_prior=1.0), _SIGMA_RATES),
    _idea("SVFit, all layers, chosen", svfit(1.0, "all", chosen)),
    _idea("SVFit, blocks", svfit(1.0, _BLOCKS)),
    _idea(
        "SVFit, all layers, as many, careful",
        svfit(1.0, "all", careful, budget(), wants_needs=True),
    ),
    _idea("SVFit, all layers, as many, base's prior", svfit(1.0, "all", budget(), base_prior=1.0)),
    *(_idea(f"SVFit, blocks, rank {rank}", svfit(rank, _BLOCKS)) for rank in (32, 64, 128)),
    *(_idea(f"SVFit, all layers, rank {rank}", svfit(rank, "all")) for rank in (32, 64)),
    *(_idea(f"SVFit, rank {rank}", svfit(rank), _SIGMA_RATES) for rank in (64, 128)),
    # With the word's values no more than attention has.
    Method(
        "SVFit, own word",
        with_own_word(svfit(1.0, "attention", budget(share=0.75))),
        _WORD_RATES,
        "with a word of its own",
    ),
    Method(
        "SVFit, all layers, own word",
        with_own_word(svfit(1.0, "all", budget(share=0.75))),
        _WORD_RATES,
        "with a word of its own",
    ),
    Method(
        "SVFit, all layers, budget 2000, own word",  # the smallest file that a word goes with
        with_own_word(svfit(1.0, "all", budget(2000))),
        _WORD_RATES,
        "with a word of its own",
    ),
    Method("word alone", with_own_word(nothing), _WORD_RATES, "with a word of its own"),
    Method(
        "LoRA, r=8, own word",
        with_own_word(lora(8), gain=80.0),  # at a twentieth of the rate as quick
        _LORA_RATES,
        "with a word of its own",
    ),
    _idea("sparse core", sparse_core, (1e-3, 3e-3, 1e-2, 3e-2)),
    _idea("leading core", leading_core, (1e-3, 3e-3, 1e-2, 3e-2)),
)
"""What was tried for a better front."""


def find_method(name: str) -> Method:
    """The method of that name."""
    return next(method for method in (*METHODS, *IDEAS) if method.name == name)
