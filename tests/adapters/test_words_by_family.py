"""Words of subjects' own in each family of denoisers that reads them: where they are, by hand.

A tokenizer of bytes tells where: a prompt's letters are tokens, in a text that begins somewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merged import make_adapter, merge_pipeline
from tiny_pipelines import build
from tiny_training import advance, make_config
from torch import Tensor, nn

from svfit_diffusion import CheckpointError, ConfigError, StateError
from svfit_diffusion.families import family_of
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, read_adapter, write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.files.own_word import OwnWord
from svfit_diffusion.training import Trainer
from svfit_diffusion.training.own_word import new_word

PROMPTS = ("sks", "a photo of sks dog on the beach", "a big dog")
_GAIN = 4.0
_SIZE = 0.01
_BLOCKS = ("transformer_blocks", "joint_transformer_blocks", "single_transformer_blocks", "layers")
_CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}
"""Of pictures: shifts are so small that rounding vectors to float16 changes them by less than a
fifth of what a word of three letters does among FLUX.2's 512.
"""


def _behind(pipe: Any, before: str) -> int:
    return len(pipe.tokenizer(before).input_ids)


def _of_chat(pipe: Any, message: Callable[[str], Any], **settings: Any) -> int:
    text = pipe.tokenizer.apply_chat_template(message("PROMPT"), tokenize=False, **settings)
    return _behind(pipe, text.partition("PROMPT")[0])


def _flux2(pipe: Any) -> int:
    system = {"role": "system", "content": [{"type": "text", "text": pipe.system_message}]}
    return _of_chat(
        pipe, lambda said: [system, {"role": "user", "content": [{"type": "text", "text": said}]}]
    )


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        begins: where in a text its prompt begins.
        is_crossed: whether the text is read by layers of values, and the word after has a vector.
        tokenizer: the component that makes its tokens.
        guidance: with which no text goes into a pass of its own.
    """

    begins: Callable[[Any], int]
    is_crossed: bool = False
    tokenizer: str = "tokenizer"
    guidance: float = 3.0


CASES = {
    "sd3": Case(lambda pipe: pipe.tokenizer_max_length, tokenizer="tokenizer_3"),
    "qwen_image": Case(
        lambda pipe: _behind(pipe, pipe.prompt_template_encode.partition("{}")[0]) - 34,
        guidance=1.0,
    ),
    "flux2": Case(_flux2),
    "flux2_klein": Case(
        lambda pipe: _of_chat(
            pipe, lambda said: [{"role": "user", "content": said}], add_generation_prompt=True
        ),
        guidance=1.0,
    ),
    "chroma": Case(lambda pipe: 0, guidance=1.0),
    "pixart_sigma": Case(lambda pipe: 0, is_crossed=True),
    "pixart_alpha": Case(lambda pipe: 0, is_crossed=True),
    # Its instructions are left out but for one token, and another stays of what it counts.
    "sana": Case(lambda pipe: 2, is_crossed=True),
    "ovis_image": Case(
        lambda pipe: (
            _of_chat(
                pipe,
                lambda said: [{"role": "user", "content": pipe.system_prompt + said}],
                add_generation_prompt=True,
                enable_thinking=False,
            )
            - pipe.user_prompt_begin_id
        ),
        guidance=1.0,
    ),
    "krea2": Case(
        lambda pipe: (
            _behind(pipe, pipe.prompt_template_encode_prefix)
            - pipe.prompt_template_encode_start_idx
        ),
        guidance=0.0,
    ),
    "aura_flow": Case(lambda pipe: pipe.transformer.register_tokens.shape[1]),
    "lumina2": Case(
        lambda pipe: _behind(pipe, pipe.system_prompt + " <Prompt Start> "), guidance=1.0
    ),
    # A picture comes first, padded to 32 tokens.
    "z_image": Case(
        lambda pipe: (
            32
            + _of_chat(
                pipe,
                lambda said: [{"role": "user", "content": said}],
                add_generation_prompt=True,
                enable_thinking=True,
            )
        ),
        guidance=0.0,
    ),
}
each = pytest.mark.parametrize("name", CASES)
_TRAINED = sorted(set(CASES) - {"flux2", "pixart_alpha", "sana"})


def draw(pipe: Any, *prompts: str, guidance: float = 3.0) -> Tensor:
    size = (32, 32) if hasattr(pipe.vae.config, "encoder_block_out_channels") else (16, 16)
    arguments = family_of(pipe).generation_arguments(size, 2, guidance)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    return pipe(prompt=list(prompts), generator=generators, output_type="pt", **arguments).images


@functools.cache
def worded(name: str) -> Adapter:
    pipe, case = build(name), CASES[name]
    adapter = make_adapter({"transformer": pipe.transformer}, size=_SIZE)
    shape = _shape(pipe.transformer, case)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 8
    tokens = getattr(pipe, case.tokenizer)("sks", add_special_tokens=False).input_ids
    assert len(tokens) == 3
    return replace(adapter, words={"transformer": OwnWord("sks", (tuple(tokens),), vectors)})


def _readers(transformer: Any, case: Case) -> list[nn.Module]:
    if case.is_crossed:
        return [block.attn2.to_v for block in transformer.transformer_blocks]
    return [block for name in _BLOCKS for block in getattr(transformer, name, ())]


def _shape(transformer: Any, case: Case) -> tuple[int, int, int]:
    config = transformer.config
    width = config.get("hidden_size") or config.get("dim")
    width = width or config.num_attention_heads * config.attention_head_dim
    return len(_readers(transformer, case)), 1 + case.is_crossed, width


def by_hand(name: str, prompts: Sequence[str], strength: float) -> Any:
    """A pipeline with merged weights that reads the word in these prompts, and draws them alone."""
    case, adapter = CASES[name], worded(name)
    pipe = merge_pipeline(build(name), adapter, strength)
    begins = [case.begins(pipe) + p.find("sks") if "sks" in p else None for p in prompts]
    vectors = adapter.words["transformer"].vectors * strength
    for reader, own in zip(_readers(pipe.transformer, case), vectors, strict=True):
        reader.forward = functools.partial(_reading, reader.forward, begins, own)
    return pipe


def _reading(inner: Any, begins: Sequence[int | None], own: Tensor, *args: Any, **kw: Any) -> Any:
    where = "encoder_hidden_states" if kw.get("encoder_hidden_states") is not None else None
    where = where or ("hidden_states" if "hidden_states" in kw else None)
    text = (kw[where] if where else args[0]).clone()
    size = _GAIN * text.square().mean(-1, keepdim=True).sqrt()
    first = len(text) - len(begins)  # those before are unconditional
    for row, begin in enumerate(begins):
        if begin is not None:
            said = (first + row, slice(begin, begin + 3))
            text[said] += size[said] * own[0]
            if len(own) > 1:
                after = first + row, begin + 3
                text[after] += size[after] * own[1]
    return inner(*args, **{**kw, where: text}) if where else inner(text, *args[1:], **kw)


@each
def test_a_file_draws_as_words_read_by_hand(name: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / WEIGHTS_NAME, worded(name))
    pipe, guidance = build(name), CASES[name].guidance
    base = draw(pipe, *PROMPTS)
    pipe.load_svfit_weights(tmp_path, show_progress=False)
    pipe.set_svfit_adapters("default_0", 0.7)
    expected = draw(by_hand(name, PROMPTS, 0.7), *PROMPTS, guidance=guidance)
    torch.testing.assert_close(draw(pipe, *PROMPTS, guidance=guidance), expected, **_CLOSE)
    plain = build(name)
    write_adapter(tmp_path / "plain" / WEIGHTS_NAME, replace(worded(name), words={}))
    plain.load_svfit_weights(tmp_path / "plain", show_progress=False)
    plain.set_svfit_adapters("default_0", 0.7)
    told, untold = draw(pipe, *PROMPTS), draw(plain, *PROMPTS)
    assert torch.equal(told[2], untold[2])
    assert ((told - untold).abs().amax((1, 2, 3))[:2] > 1e-4).all()
    pipe.unload_svfit_weights()
    assert torch.equal(draw(pipe, *PROMPTS), base)


@pytest.mark.parametrize("name", _TRAINED)
def test_it_learns_and_draws_what_it_learned(name: str, tmp_path: Path) -> None:
    config = make_config(tmp_path, train_identifier="sks", resolution=16)
    trainer = Trainer(config, pipe=build(name), show_progress=False)
    advance(trainer, 2)
    (vectors,) = [p.detach() for p in trainer.sigma_parameters() if p.dim() == 3]
    assert (vectors.abs().amax(-1) > 0).all()
    with trainer.generating() as pipe:
        expected = draw(pipe, "a photo of sks dog")
    other = build(name)
    other.load_svfit_weights(trainer.save(tmp_path), show_progress=False)
    torch.testing.assert_close(draw(other, "a photo of sks dog"), expected, **_CLOSE)


def test_bytes_are_written_in_two_ways_and_a_file_keeps_both(tmp_path: Path) -> None:
    family = family_of(build("qwen_image"))
    word, _ = new_word(family, "sks")
    tokenizer = family.pipe.tokenizer
    assert [tokenizer.decode(tokens) for tokens in word.spellings] == ["sks", " sks"]
    shifts = make_adapter({"transformer": family.model}).deltas
    write_adapter(
        tmp_path / WEIGHTS_NAME, Adapter(shifts, AdapterMetadata(), words={"transformer": word})
    )
    (read,) = read_adapter(tmp_path / WEIGHTS_NAME).words.values()
    assert read.spellings == word.spellings


def test_without_the_encoder_that_reads_it_it_is_refused(tmp_path: Path) -> None:
    pipe = build("sd3_without_t5")
    with pytest.raises(ConfigError, match="has no text_encoder_3, which reads train_identifier"):
        new_word(family_of(pipe), "sks")
    write_adapter(tmp_path / WEIGHTS_NAME, worded("sd3"))
    with pytest.raises(CheckpointError, match="the pipeline no text_encoder_3"):
        pipe.load_svfit_weights(tmp_path, show_progress=False)


def test_of_several_sizes_or_texts_at_once_nobody_could_tell_where_a_word_is(
    tmp_path: Path,
) -> None:
    write_adapter(tmp_path / WEIGHTS_NAME, worded("z_image"))
    pipe = build("z_image")
    pipe.load_svfit_weights(tmp_path, show_progress=False)
    texts, _ = pipe.encode_prompt(["a sks dog"] * 2, do_classifier_free_guidance=False)
    small, large = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 4)
    with pytest.raises(StateError, match="of several sizes in one call"):
        pipe.transformer([small, large], torch.tensor([0.5, 0.5]), texts)
    with pytest.raises(StateError, match="where several texts lie among pictures"):
        pipe.transformer([[small]], torch.tensor([0.5]), [texts])
    pipe.transformer([small, small], torch.tensor([0.5, 0.5]), texts)


@pytest.mark.parametrize("name", ["hidream", "ideogram4"])
def test_other_families_have_no_place_for_it(name: str) -> None:
    with pytest.raises(ConfigError, match="is for Stable Diffusion 1, 2, XL and 3"):
        new_word(family_of(build(name)), "sks")
