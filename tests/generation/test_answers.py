"""Answers of a model: alone, in batches, and up to a stop token."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import GenerationConfig

from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.distributed import World
from arctic_hydra.errors import DataError
from arctic_hydra.generation.answers import Decoding, Generator, continue_greedily, generating, stop_tokens
from arctic_hydra.model.attention import register
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.ranks import run_ranks

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]


@pytest.fixture(scope="module")
def tokenizer():
    return BundledTokenizerFactory().create_tokenizer()


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=4096, max_position_embeddings=16, initializer_range=0.3, **sizes)
    ).eval()


def _by_hand(model, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_holds_the_answers_of_its_prompts_alone(model, tokenizer):
    greedy = {len(prompt): _by_hand(model, prompt, 5) for prompt in PROMPTS}
    stop = greedy[3][2]  # the first prompt's answer ends at its third token
    generator = Generator(model, tokenizer, [stop], Decoding(max_new_tokens=5))
    found = generator.answer(PROMPTS)
    assert found == [generator.answer([prompt])[0] for prompt in PROMPTS]
    ends = [ids.index(stop) if stop in ids else None for ids in greedy.values()]
    expected = [
        tokenizer.decode(ids[:end], skip_special_tokens=True) for ids, end in zip(greedy.values(), ends, strict=True)
    ]
    assert [answer.text for answer in found] == expected
    assert [answer.finish_reason for answer in found] == ["length" if end is None else "stop" for end in ends]
    assert found[0].finish_reason == "stop"


def test_a_long_prompt_of_a_batch_cuts_no_other_answer(model, tokenizer):
    generator = Generator(model, tokenizer, [], Decoding(max_new_tokens=5))
    prompts = [[5, 6, 7], [5] * 14]
    assert generator.answer(prompts) == [generator.answer([prompt])[0] for prompt in prompts]


def test_sampling_follows_the_seed_and_ends_at_the_last_position(model, tokenizer):
    generator = Generator(model, tokenizer, [], Decoding(max_new_tokens=50, temperature=1.5, top_p=0.9))
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generator.answer([[5] * 10])[0].text)
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(1)
    shorter = Generator(model, tokenizer, [], Decoding(max_new_tokens=6, temperature=1.5, top_p=0.9))
    assert shorter.answer([[5] * 10])[0].text == texts[0], "6 positions are left"
    with pytest.raises(DataError, match="the conversation has 16 tokens, but the model has 16 positions"):
        generator.answer([[5] * 16])


PLANTED = [
    dict(
        do_sample=True,
        top_k=3,
        min_p=0.5,
        typical_p=0.2,
        num_beams=2,
        repetition_penalty=1.9,
        no_repeat_ngram_size=1,
        min_new_tokens=4,
        eos_token_id=2,
    ),
    dict(
        do_sample=True,
        suppress_tokens=list(range(0, 4096, 2)),
        begin_suppress_tokens=list(range(1, 4096, 4)),
        bad_words_ids=[[token] for token in range(3, 4096, 4)],
        forced_bos_token_id=1,
        forced_eos_token_id=5,
        exponential_decay_length_penalty=(1, 9.0),
        num_return_sequences=2,
        guidance_scale=3.0,
        stop_strings="a",
        token_healing=True,
        prompt_lookup_num_tokens=2,
        max_time=1e-9,
        cache_implementation="static",
        return_dict_in_generate=True,
    ),
]


@pytest.mark.parametrize("planted", PLANTED, ids=["strategy", "tokens"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_generation_config_of_the_model_changes_no_answers(model, tokenizer, planted, temperature, adapted):
    chosen = copy.deepcopy(model)
    if adapted:
        chosen = peft.get_peft_model(chosen, peft.LoraConfig(target_modules=["q_proj"])).eval()
    generator = Generator(chosen, tokenizer, [], Decoding(max_new_tokens=5, temperature=temperature))
    torch.manual_seed(0)
    expected = generator.answer(PROMPTS)
    own = without_adapter(chosen).generation_config = GenerationConfig(**planted)
    torch.manual_seed(0)
    assert generator.answer(PROMPTS) == expected
    assert without_adapter(chosen).generation_config is own


def test_a_model_in_training_generates_with_a_cache_and_trains_on_as_before(model, tokenizer):
    """`arctic_varlen` itself takes neither a mask nor cached keys."""
    expected = Generator(model, tokenizer, [], Decoding(max_new_tokens=4)).answer(PROMPTS)
    register()
    model.set_attn_implementation(VARLEN_ATTENTION)
    model.train()
    try:
        with generating(model):
            assert not model.training
            assert Generator(model, tokenizer, [], Decoding(max_new_tokens=4)).answer(PROMPTS) == expected
        assert model.training and model.config._attn_implementation == VARLEN_ATTENTION
    finally:
        model.eval()
        model.set_attn_implementation("sdpa")


def test_stop_tokens_are_those_of_an_export(model, tokenizer):
    eos = tokenizer.eos_token_id
    assert stop_tokens(model, tokenizer, [9]) == [9, eos] and stop_tokens(model, tokenizer, []) == [eos]


class _CountingEngine(torch.nn.Module):
    """Its model writes the number after the last one, in training any number; each rank holds a part of it.

    As an engine of DeepSpeed, it is always in training mode itself.
    """

    def __init__(self, stage: int = 3) -> None:
        super().__init__()
        self.stage, self.module = stage, _Counting()

    def zero_optimization_stage(self) -> int:
        return self.stage

    def train(self, mode: bool = True) -> _CountingEngine:
        self.module.train(mode)
        return self

    def forward(self, **inputs):
        return self.module(**inputs)


class _Counting(torch.nn.Module):
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=7))

    def forward(self, input_ids, position_ids, use_cache):
        logits = torch.nn.functional.one_hot(input_ids + 1, 20).float()
        return SimpleNamespace(logits=torch.nn.functional.dropout(logits, 0.999, self.training))


def continue_with_other_stops():
    return continue_greedily(_CountingEngine(), "cpu", [5], [] if World.from_env().rank else [8], 6)


def test_ranks_that_know_other_stop_tokens_end_together():
    assert run_ranks(2, continue_with_other_stops) == [[6, 7, 8], [6, 7, 8]]


def test_a_model_in_training_is_continued_without_dropout_and_trains_on():
    engine, random = _CountingEngine(stage=0), torch.get_rng_state()
    for training in (True, False):
        engine.train(training)
        assert continue_greedily(engine, "cpu", [5], [], 3) == [6, 7, 8]
        assert engine.module.training is training and torch.equal(torch.get_rng_state(), random)


def test_a_model_in_training_is_continued_up_to_its_last_position():
    engine = _CountingEngine(stage=0)
    assert continue_greedily(engine, "cpu", [1, 2, 3, 4, 5], [], 6) == [6, 7]
    assert continue_greedily(engine, "cpu", [*range(9)], [], 6) == []
