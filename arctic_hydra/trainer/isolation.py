"""Probes that a loss depends neither on later tokens nor on other documents of a packed row or a batch, and that it is a sum.

They look at the trainer's own loss, so they hold for any model and any trainer. Two batches that differ only in tokens which
must not matter give the same loss, bit for bit, in almost every run, which costs two forward passes. If they do not, the
change of the loss is compared with that by a token which matters, because some kernels round depending on other rows.

Layers whose weights begin at zero pass nothing on at first, so the trainer repeats these probes after a few steps. That the loss
is a sum is checked before the first step only, with three forward passes, and that it is finite with two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from transformers import AttentionInterface

from arctic_hydra import distributed
from arctic_hydra.component import class_name
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.load.batches import empty_batch
from arctic_hydra.determinism import kept_random_state, random_state, seed_everything, set_random_state
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.model.attention import varlen_attention
from arctic_hydra.model.layers import layer_configs
from arctic_hydra.model.names import VARLEN_ATTENTION
from arctic_hydra.trainer.head import model_inputs, probe_batch, probing, unwrap

Loss = Callable[[Batch], torch.Tensor]

_FIRST, _SECOND = 17, 12
"""Lengths of the two documents."""
_ROWS = 4
"""Supervised positions of a probe."""


@dataclass(frozen=True)
class Subject:
    """A trainer's loss with everything that is needed to probe it."""

    loss: Loss
    engine: Any
    device: torch.device
    attention: str
    """The model's `attn_implementation`."""
    trainer: str
    """How the config selects the trainer."""
    units: Callable[[Batch], int] = attrgetter("num_supervised")
    """Over how many units the loss of a batch is a sum."""

    @property
    def takes_pairs(self) -> bool:
        """Whether a unit is two documents, as for a loss that compares answers."""
        one, two = (_batch(self, lengths, [0], packed=False) for lengths in ([_SECOND], [_SECOND] * 2))
        return self.units(one) == 0 < self.units(two)

    @property
    def name(self) -> str:
        """Class of the model, and the trainer."""
        return f"{class_name(unwrap(self.engine))} (under {self.trainer})"

    def losses(self, batches: Sequence[Batch]) -> list[float]:
        """Return the loss of each batch, without dropout, with the same random numbers for each; collective."""
        found, state = [], random_state()
        with probing(self.engine):
            for batch in batches:
                try:
                    loss = self.loss(batch)
                except Exception as error:
                    error.add_note(
                        f"raised while the loss of {self.trainer} was probed on documents of {batch.document_lengths} tokens, without "
                        "labels and stored scores; a trainer whose loss needs more overrides `probed_loss`"
                    )
                    raise
                if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                    got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
                    raise ConfigError(
                        f"{self.trainer}: `loss` returned {got} for {batch.num_supervised} supervised positions, expected a scalar tensor: "
                        "the sum of their losses"
                    )
                found.append(float(loss.detach()))
                set_random_state(state)
        return list(distributed.broadcast_object(found))  # what follows from them must follow on all ranks

    def leak(self, base: Batch, changed: Batch, context: Batch) -> tuple[float, float] | None:
        """Return how much `changed` and how much `context` change the loss of `base`; None if `changed` does not.

        `context` differs from `base` in one token before the last three supervised positions.
        """
        before, after = self.losses([base, changed])
        if before == after:
            return None
        self._check_repeatable(base, before)
        rows = base.num_supervised
        befores, afters, contexts = (
            self.losses([batch.only(slice(row, row + 1)) for row in range(rows)]) for batch in (base, changed, context)
        )
        seen = sum(abs(a - b) for a, b in zip(befores, afters, strict=True))
        usual = sum(abs(a - b) for a, b in zip(befores[1:], contexts[1:], strict=True)) * rows / (rows - 1)
        rounding = 1e-6 * sum(map(abs, befores))
        return (seen, usual) if seen > self.precision * usual + rounding else None

    @property
    def precision(self) -> float:
        """How far two losses may be apart by rounding, as a share."""
        whole = next(iter(unwrap(self.engine).parameters())).dtype == torch.float32
        return 1e-4 if whole else 5e-2

    def is_random(self, batch: Batch, before: float) -> bool:
        """Return whether the loss of a batch, `before`, is another one with other random numbers; collective."""
        with kept_random_state():
            seed_everything(1)
            [after] = self.losses([batch])
            return abs(after - before) > self.precision * abs(before)

    def _check_repeatable(self, batch: Batch, before: float) -> None:
        """Raise ConfigError if the loss is not `before` when recomputed: what a random loss depends on cannot be tested."""
        [again] = self.losses([batch])
        if abs(again - before) > self.precision * abs(before) + 1e-6 * batch.num_supervised:
            raise ConfigError(
                f"{self.trainer}: `loss` returned {before:.4g} and then {again:.4g} for the same tokens, weights and random numbers, "
                "so it cannot be probed; let what it remembers from call to call change in `step`, or only while "
                "`self.tools.engine.module.training`, or override `probed_loss`"
            )


def check_attention(engine: Any, device: torch.device) -> None:
    """Raise ConfigError for a model that never calls `arctic_varlen`, its chosen attention; one forward pass, collective.

    transformers builds no mask for `arctic_varlen`, which is causal by itself. An architecture with its own attention code,
    which ignores that name, may then have no mask at all.
    """
    model = unwrap(engine)
    problem = ConfigError(
        f"model.attn_implementation: got {VARLEN_ATTENTION}, but {class_name(model)} has its own attention code and never calls "
        "it; pass model.attn_implementation=eager, plus data.packing=false if packed documents then attend to each other"
    )
    with _recorded_calls() as calls, probing(engine):
        try:
            engine(**model_inputs(probe_batch(model, device)))
        except Exception as error:
            if calls:
                raise
            raise problem from error
    has_heads = any(getattr(layer, "num_attention_heads", None) for layer in layer_configs(model.config))
    if has_heads and not calls:
        raise problem


def check_finite(subject: Subject) -> None:
    """Raise ConfigError for a loss that is not finite on a few tokens; one forward pass, collective."""
    [loss] = subject.losses([_document(subject, supervised=range(8, 8 + _ROWS))])
    if not math.isfinite(loss):
        raise ConfigError(
            f"{subject.trainer}: on {class_name(unwrap(subject.engine))} `loss` returned {loss} before the first step, expected a finite "
            "number; check the weights that the run starts from, and compute the loss in fp32 (`.float()`)"
        )


def check_empty(subject: Subject, packed: bool) -> None:
    """Raise ConfigError for a loss that fails, or is not finite, on a batch without examples; one forward pass, collective."""
    batch = empty_batch(0, packed).to(subject.device)
    cause, found = None, ""
    try:
        [loss] = subject.losses([batch])
        found = "" if math.isfinite(loss) else f"returned {loss}"
    except (ArcticHydraError, torch.OutOfMemoryError, torch.distributed.DistError):
        raise
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        cause, found = error, f"raised {type(error).__name__} ({error})"
    if found:
        raise ConfigError(
            f"{subject.trainer}: `loss` {found} for a batch without supervised positions, which a rank gets where its share of the data "
            "ends; expected 0 with a graph, as a sum over no positions is"
        ) from cause


def check_causality(subject: Subject) -> None:
    """Raise ConfigError for a loss that depends on tokens after those that it predicts; collective."""
    base = _document(subject, supervised=range(8, 8 + _ROWS))
    target, end = 8 + _ROWS, _FIRST + _SECOND  # the target of the last supervised position, and the end of its document
    earlier = _changed(base, slice(4, 5))
    found = subject.leak(base, _changed(base, slice(target, end)), earlier)
    if found is None:
        return
    if subject.leak(base, _changed(base, slice(target + 1, end)), earlier) is None:
        before, after = subject.losses([base, replace(base, targets_K=base.targets_K.flip(0))])
        if before == after:  # it takes the targets from the input
            return
    raise ConfigError(
        f"model: in {subject.name} with model.attn_implementation={subject.attention} tokens depend on later ones: changing the tokens "
        f"after a supervised position changed its loss by {found[0]:.2g} (changing one before it: {found[1]:.2g}); expected a causal "
        "model (for BERT and similar models pass model.hf_config_kwargs={is_decoder: true}) and a loss of the supervised positions only "
        "(batch.rows_K); a trainer that intends this declares `looks_ahead`"
    )


def check_isolation(subject: Subject, sharing: int = 1, *, packed: bool = True) -> None:
    """Raise ConfigError for a loss in which the documents of a packed row, or else the rows of a batch, affect each other; collective.

    Such a model is also refused if `sharing` ranks share a sequence, packed or not: it mixes tokens outside attention, and
    only attention communicates across ranks.

    Attention isolates documents by their boundaries, but not every architecture passes these on to its attention, and
    recurrent layers, convolutions and a model's own masks ignore them.
    """
    base = _batch(subject, [_FIRST, _SECOND], list(range(_FIRST, _FIRST + _ROWS)), packed=packed)
    changes = (_changed(base, slice(0, _FIRST)), _changed(base, slice(_FIRST, _FIRST + 1)))
    found = subject.leak(base, *changes)
    if found is None:
        return
    if sharing > 1:
        raise ConfigError(
            f"trainer.sequence_parallel_size: got {sharing}, but in {subject.name} tokens interact outside attention (recurrent "
            f"layers, convolutions), and only attention communicates across the ranks that share a sequence; pass "
            "trainer.sequence_parallel_size=1"
        )
    if not packed:
        raise ConfigError(
            f"trainer.micro_batch_size: got more than 1, but {subject.name} mixes the rows of a batch: changing the first, which is not "
            f"supervised, changed the loss of the second by {found[0]:.2g} (changing one of its own tokens: {found[1]:.2g}); pass "
            "trainer.micro_batch_size=1; a trainer whose loss may do that declares `mixes_documents`"
        )
    other = ""
    if subject.attention == VARLEN_ATTENTION:
        other = ", or try model.attn_implementation=sdpa or eager, whose masks are built from the positions"
    raise ConfigError(
        f"data.packing: got true, but {subject.name} mixes the documents of a packed row with "
        f"model.attn_implementation={subject.attention}: changing the first document, which is not supervised, changed the loss of the "
        f"second by {found[0]:.2g} (changing one of its own tokens: {found[1]:.2g}); pass data.packing=false{other}; a trainer "
        "whose loss may do that declares `mixes_documents`"
    )


def check_sum(subject: Subject, packed: bool, coarse: bool = False) -> None:
    """Raise ConfigError for a loss that is not a sum over documents, such as a mean over the batch or a row; collective.

    The threshold is coarse on request, as documents that may affect each other have another loss together than alone, and for
    losses with random numbers, as by dropout in a second model.
    """
    part = [_FIRST, _SECOND] if subject.takes_pairs else [_FIRST]
    other = part if subject.takes_pairs else [_SECOND]
    batches = [
        _answers(subject, lengths, packed=packed, start=start)
        for lengths, start in (([*part, *other], 0), (part, 0), (other, sum(part)))
    ]
    together, *alone = subject.losses(batches)
    apart, whole = abs(together - sum(alone)), sum(map(abs, alone))
    if apart < 1e-6 * batches[0].num_supervised:  # rounding, of a loss that starts near 0
        return
    if apart > 0.25 * whole or (apart > 0.05 * whole and not coarse and not subject.is_random(batches[0], together)):
        whose = "two pairs" if subject.takes_pairs else "two documents"
        unit = "units" if subject.takes_pairs else "supervised positions"
        raise ConfigError(
            f"{subject.trainer}: on {class_name(unwrap(subject.engine))} the loss of {whose} is {together:.4g}, and of each alone "
            f"{alone[0]:.4g} and {alone[1]:.4g}; expected their sum {sum(alone):.4g}, because the step divides the losses of all "
            f"micro-batches and ranks by the number of their {unit}; return a sum instead of a mean "
            "(reduction='sum'); a trainer that intends this declares `not_additive`"
        )


@contextmanager
def _recorded_calls() -> Iterator[list[bool]]:
    """Yield a list that grows with each call of `arctic_varlen` within this context."""
    calls: list[bool] = []

    def watched(*given: Any, **named: Any) -> Any:
        calls.append(True)
        return varlen_attention(*given, **named)

    AttentionInterface.register(VARLEN_ATTENTION, watched)
    try:
        yield calls
    finally:
        AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _document(subject: Subject, supervised: range) -> Batch:
    """Return one document with the next tokens of `supervised` as targets; with its pair, if the loss takes pairs."""
    lengths = [_FIRST + _SECOND, *([_SECOND] if subject.takes_pairs else [])]
    return _batch(subject, lengths, list(supervised), packed=False)


def _answers(subject: Subject, lengths: list[int], *, packed: bool, start: int) -> Batch:
    """Return documents whose last tokens are supervised."""
    ends = list(accumulate(lengths))
    supervised = [row for end in ends for row in range(end - 1 - _ROWS, end - 1)]
    return _batch(subject, lengths, supervised, packed=packed, start=start)


def _batch(subject: Subject, lengths: list[int], supervised: list[int], *, packed: bool, start: int = 0) -> Batch:
    """Return documents of `lengths` tokens in one packed row, or in a padded row each.

    `supervised` indexes the tokens of all documents, without padding. The tokens follow from their place, from `start` on.
    """
    device, width, count = subject.device, max(lengths), len(lengths)
    document_N = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths)).to(device)
    position_N = torch.cat([torch.arange(length) for length in lengths]).to(device)
    ids_N = (torch.arange(start, start + sum(lengths), device=device) * 7 + 3) % _vocabulary(unwrap(subject.engine))
    chosen = torch.tensor(supervised, device=device)
    if packed:
        rows_K, ids_BT, positions_BT = chosen, ids_N[None], position_N[None]
    else:
        rows_K = (document_N * width + position_N)[chosen]
        ids_BT = ids_N.new_zeros(count, width)
        ids_BT[document_N, position_N] = ids_N
        positions_BT = torch.arange(width, device=device).expand(count, width)
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    return Batch(
        input_ids_BT=ids_BT,
        position_ids_BT=positions_BT,
        rows_K=rows_K,
        targets_K=ids_N[chosen + 1],
        source_K=torch.zeros_like(rows_K),
        cu_seqlens=bounds if packed else None,
        max_seqlen=width,
        num_tokens=sum(lengths),
        num_padding=ids_BT.numel() - sum(lengths),
        example_ids=list(range(count)),
        document_lengths=lengths,
        document_K=document_N[chosen],
    )


def _changed(batch: Batch, tokens: slice) -> Batch:
    """Return the batch with other input tokens at some of its flattened B*T places, and the same targets."""
    ids_N = batch.input_ids_BT.flatten().clone()
    ids_N[tokens] = torch.where(ids_N[tokens] == 0, 1, ids_N[tokens] - 1)
    return replace(batch, input_ids_BT=ids_N.view_as(batch.input_ids_BT))
