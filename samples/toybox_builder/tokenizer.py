"""The tokenizers: a small byte-level BPE trained on the captions, in CLIP's format and in T5's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

MAX_LENGTH = 24
"""Positions of a prompt, start and end included."""

_LEARNED_ENTRIES = 1500
_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PAD, _SEQUENCE_END = "<pad>", "</s>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

EXTRA_TEXT = (
    "floating in an ocean of milk with the eiffel tower in the background a tree and autumn "
    "leaves in the background a blue house on top of a sidewalk in a crowded street a mirror "
    "wet shiny cube shaped wearing a santa hat a rainbow scarf a police outfit a chef outfit "
    "stuffed animal toy fancy berry bowl monster plushie watercolor painting sketch van gogh"
)
"""Words that people put in prompts and no caption holds; each becomes one or two entries."""


def _bpe(model: models.BPE) -> Tokenizer:
    """Lower case, words apart, bytes for what is no word."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def train_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Learn the merges, write the tokenizer to a folder and load it from there."""
    tokenizer = _bpe(models.BPE(end_of_word_suffix=_WORD_END))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=_LEARNED_ENTRIES,
        end_of_word_suffix=_WORD_END,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *EXTRA_TEXT.split() * 200], trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    entries = [
        *alphabet,
        *(symbol + _WORD_END for symbol in alphabet),
        *(left + right for left, right in merges),
    ]
    entries = [*dict.fromkeys(entries), _START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def sequence_tokenizer(clip_folder: Path) -> PreTrainedTokenizerFast:
    """The same entries as T5 wants them: padding first, an end after the text and no start."""
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    lines = (clip_folder / "merges.txt").read_text().splitlines()[1:]
    specials = {_PAD: 0, _SEQUENCE_END: 1}
    entries = [entry for entry in vocabulary if entry not in (_START, _END)]
    tokenizer = _bpe(
        models.BPE(
            vocab=specials | {entry: len(specials) + i for i, entry in enumerate(entries)},
            merges=[(left, right) for left, right in map(str.split, lines)],
            end_of_word_suffix=_WORD_END,
        )
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix=_WORD_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_SEQUENCE_END}", special_tokens=[(_SEQUENCE_END, specials[_SEQUENCE_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_SEQUENCE_END,
        padding_side="right",
        model_max_length=MAX_LENGTH,
    )
