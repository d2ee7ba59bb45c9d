"""Answers of a model: in batches with a cache of keys and values, or token by token through an engine in training.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.export_config import special_tokens, token_list
from arctic_hydra.checkpoint.hf import without_adapter
from arctic_hydra.errors import DataError
from arctic_hydra.model.names import SPEC_MODEL_TYPE, VARLEN_ATTENTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen, and the maximum number of tokens."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most probable token each time."""
    top_p: float = 1.0


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    """The answer without special tokens."""
    finish_reason: str
    """`stop` if the model ended the answer, `length` if the limit of tokens or of positions did."""


def positions_of(model: Any) -> int | None:
    """Return the maximum number of tokens of a text; None if the model has no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


class Generator:
    """Generates answers to prompts with a model of transformers or peft."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[int],
        decoding: Decoding,
        *,
        device: Any = None,
        synchronized: bool = False,
    ) -> None:
        """`stops` are the tokens that end an answer, `device` is that of the inputs, by default the model's.

        `synchronized`: ranks hold parts of the weights, so all of them go on until the last one ends; calls are collective.
        """
        self._model, self._tokenizer, self._device = model, tokenizer, device or model.device
        self.stops, self._decoding, self.synchronized = list(stops), decoding, synchronized

    @property
    def positions(self) -> int | None:
        """Maximum number of tokens of prompt and answer together; None if the model has no limit."""
        return positions_of(self._model)

    def check_length(self, prompt: Sequence[int]) -> None:
        """Raise DataError for a prompt that leaves no room for an answer."""
        if self.positions is not None and len(prompt) >= self.positions:
            raise DataError(
                f"the conversation has {len(prompt):,} tokens, but the model has {self.positions:,} positions, which an answer needs too"
            )

    def is_limited(self, prompt: Sequence[int]) -> bool:
        """Whether the positions of the model allow fewer tokens after a prompt than `max_new_tokens`."""
        return self.positions is not None and len(prompt) + self._decoding.max_new_tokens > self.positions

    def answer(self, prompts: Sequence[list[int]], streamer: BaseStreamer | None = None) -> list[Answer]:
        """Return the answers to prompts, each independent of the others; a streamer, for one prompt only, gets the tokens as they are made.

        They are one batch, unless one of them is limited, which would limit the others: then each is generated alone.
        """
        import torch

        alone = self._model.config.model_type == SPEC_MODEL_TYPE or any(map(self.is_limited, prompts))
        if len(prompts) > 1 and alone:  # a registered model gets no mask, so rows are not padded
            return [answer for prompt in prompts for answer in self.answer([prompt])]
        for prompt in prompts:
            self.check_length(prompt)
        longest, pad = max(map(len, prompts)), self._pad_token
        rows = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
        masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        room = self._decoding.max_new_tokens
        room = room if self.positions is None else min(room, self.positions - longest)
        device = self._device
        with torch.no_grad(), _without_own_settings(self._model):
            made_BT = self._model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=self._config(room),
                streamer=streamer,
                synced_gpus=self.synchronized,
            )
        return [self._read(row[longest:]) for row in made_BT.tolist()]

    @property
    def _pad_token(self) -> int:
        pad = self._tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0  # masked, so any token will do

    def _config(self, most: int) -> Any:
        from transformers import GenerationConfig

        samples = self._decoding.temperature > 0
        how = {"temperature": self._decoding.temperature, "top_p": self._decoding.top_p, "top_k": 0}
        return GenerationConfig(
            do_sample=samples,
            **(how if samples else {}),
            max_new_tokens=most,
            eos_token_id=self.stops or None,
            pad_token_id=self._pad_token,
            use_cache=True,
        )

    def _read(self, ids: list[int]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self.stops), None)
        text = str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))
        return Answer(text, "length" if end is None else "stop")


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Make `generate` use only the config that it is given within this context.

    What that leaves unset, transformers takes from the model's own generation config, which is for another way of decoding.
    """
    from transformers import GenerationConfig

    base = without_adapter(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def prepare_for_generation(model: Any) -> None:
    """Put a model into its evaluation mode, with an attention that has a cache of keys and values."""
    model.eval()
    base = without_adapter(model)
    if base.config._attn_implementation == VARLEN_ATTENTION and base.config.model_type != SPEC_MODEL_TYPE:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Prepare a model in training for generation within this context."""
    base, was_training = without_adapter(model), model.training
    attention = base.config._attn_implementation
    prepare_for_generation(model)
    try:
        yield
    finally:
        model.train(was_training)
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, trained: Sequence[int]) -> list[int]:
    """Return the ids of the tokens that end an answer, as an export of the model has them; `trained` are those of training."""
    return token_list(special_tokens(without_adapter(model), tokenizer, trained)["eos_token_id"])


def continue_greedily(engine: Any, device: Any, prompt: list[int], stops: Sequence[int], most: int) -> list[int]:
    """Return up to `most` tokens that follow a prompt, a stop token included, each the most probable one after the text so far.

    They are fewer where the model has no positions left.

    Every token takes a forward pass of the DeepSpeed engine over the whole text, in evaluation mode and without a cache, which
    works for any model and attention in the middle of training. Collective at ZeRO-3.
    """
    import torch

    model = getattr(engine, "module", engine)  # `training` of an engine is always True
    if (positions := positions_of(model)) is not None:
        most = min(most, positions - len(prompt))
    partitioned, made, was_training = engine.zero_optimization_stage() == 3, list[int](), model.training
    # Ranks must agree when to end, or some would wait for the weights of others; in a stream, each has seen other stop tokens.
    stops = distributed.broadcast_object(stops) if partitioned else stops
    engine.eval()
    try:
        with torch.no_grad(), distributed.without_sequence_group():
            while len(made) < most and not (made and made[-1] in stops):
                text_BT = torch.tensor([prompt + made], device=device)
                places_BT = torch.arange(text_BT.shape[1], device=device)[None]
                token = int(engine(input_ids=text_BT, position_ids=places_BT, use_cache=False).logits[0, -1].argmax())
                made.append(distributed.broadcast_object(token) if partitioned else token)
    finally:
        engine.train(was_training)
    return made
