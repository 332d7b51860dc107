"""Language models under PEFT: generation, checkpointing, tied weights, encoders with decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_kinds import KINDS, Kind, gpt2, layers, train
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from svfit_diffusion.peft import SVFitConfig

DECODERS = pytest.mark.parametrize("kind", [KINDS["GPT-2"], KINDS["Llama"]], ids=["GPT-2", "Llama"])
IDS = KINDS["GPT-2"].batch


def generate(model: Any, **kwargs: Any) -> Tensor:
    """Three new words of each row, or what `kwargs` ask for."""
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    return model.generate(**{"input_ids": IDS, **settings, **kwargs})


@DECODERS
def test_generate(kind: Kind) -> None:
    model = kind.adapted()
    merged = kind.adapted().merge_and_unload()
    assert torch.equal(generate(model), generate(merged))


@DECODERS
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_with_mixed_adapter_batches_and_beam_search(kind: Kind, beams: int) -> None:
    model = kind.adapted("one", "two")
    for layer in layers(model):  # far apart, so that words differ
        layer.svfit_delta["two"].data *= -8
    names = ["two", "__base__", "one", "two"]
    mixed = generate(model, adapter_names=names, num_beams=beams)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = generate(model, input_ids=IDS[row : row + 1], num_beams=beams)
        else:
            model.set_adapter(name)
            alone = generate(model, input_ids=IDS[row : row + 1], num_beams=beams)
        assert torch.equal(mixed[row], alone[0]), (row, name)


def test_mixed_batches_of_an_encoder_with_a_decoder() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1}
    base = T5ForConditionalGeneration(T5Config(**sizes, num_heads=4, decoder_start_token_id=0))
    config = SVFitConfig(target_modules=["q", "v"], init_weights=False, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(base.eval(), config).eval()
    names = ["default", "__base__", "default", "__base__"]
    mixed = generate(model, adapter_names=names, num_beams=2)
    assert mixed.shape == (4, 4)
    with model.disable_adapter():
        assert torch.equal(mixed[1], generate(model, num_beams=2)[1])


@DECODERS
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_training_gradient_checkpointing(kind: Kind, reentrant: bool) -> None:
    model = kind.adapted().train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(kind.batch).logits.square().sum().backward()
        return [layer.svfit_delta["default"].grad.clone() for layer in layers(model)]

    plain = gradients()
    model.prepare_model_for_gradient_checkpointing(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for found, expected in zip(gradients(), plain, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32 in another order


@DECODERS
def test_training_layer_indexing(kind: Kind) -> None:
    names = ["c_attn"] if "r" in kind.settings and kind.settings["r"] == 8 else ["q_proj"]
    some = kind.adapted(target_modules=names, layers_to_transform=[1])
    every = kind.adapted(target_modules=names)
    assert (len(layers(some)), len(layers(every))) == (1, 2)


def test_target_modules_of_known_models() -> None:
    model = get_peft_model(gpt2(), SVFitConfig(task_type="CAUSAL_LM"))
    assert model.peft_config["default"].target_modules == {"c_attn"}


@pytest.fixture
def tied() -> Any:
    base: Any = gpt2()
    assert base.lm_head.weight is base.transformer.wte.weight
    return base


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_tied_weights(target: str, tied: Any) -> None:
    """The targeted layer alone is shifted, merged or not; unmerging ties them again."""
    own = tied.lm_head.weight
    expected = gpt2()
    config = SVFitConfig(target_modules=[target], init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tied, config).eval()
    change = layers(model)[0].get_delta_weight("default")
    name = "lm_head" if target == "lm_head" else "transformer.wte"
    expected.get_submodule(name).weight = nn.Parameter(own.detach() + change)
    wanted = expected(IDS).logits
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    model.merge_adapter()
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    model.unmerge_adapter()
    assert tied.lm_head.weight is tied.transformer.wte.weight is own
    merged: PreTrainedModel = model.merge_and_unload()
    assert torch.allclose(merged(IDS).logits, wanted, atol=1e-5)
    assert not merged.config.tie_word_embeddings  # as PEFT writes it down


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_embedding_is_saved_with_its_words_unless_told_otherwise(
    tied: Any, tmp_path: Path
) -> None:
    config = SVFitConfig(target_modules=["wte"], init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tied, config).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1000
    assert torch.equal(PeftModel.from_pretrained(gpt2(), tmp_path)(IDS).logits, model(IDS).logits)


def test_a_second_adapter_of_all_linear_layers() -> None:
    kind = KINDS["Llama"]
    model = kind.adapted("one", "two")
    assert all({"one", "two"} == {*layer.svfit_delta} for layer in layers(model))


def test_multiple_adapters_automatic_modules_to_save(tmp_path: Path) -> None:
    """A classifier's head is trained and saved without being named; each adapter has its own."""

    def build() -> BertForSequenceClassification:
        torch.manual_seed(0)
        sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40}
        config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
        return BertForSequenceClassification(config).eval()

    config = SVFitConfig(r=8, task_type="SEQ_CLS")
    model = get_peft_model(build(), config)
    model.add_adapter("other", SVFitConfig(r=4, task_type="SEQ_CLS"))
    base = model(IDS).logits
    model.set_adapter("default")
    train(model, IDS)
    after = model(IDS).logits
    assert not torch.allclose(after, base)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(IDS).logits, base)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, after)
    model.set_adapter("other")
    assert torch.equal(model(IDS).logits, base)


def test_a_classifiers_head(tmp_path: Path) -> None:
    kind = KINDS["modules_to_save"]
    model = kind.adapted(init_weights=True)
    train(model, kind.batch)
    model.save_pretrained(tmp_path)
    loaded = kind.loaded(tmp_path)
    assert torch.equal(kind.run(loaded), kind.run(model))
    assert torch.equal(kind.run(loaded.merge_and_unload()), kind.run(model.merge_and_unload()))
