"""Data of single answers, each with a label: desirable or undesirable."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from arctic_hydra.component import component
from arctic_hydra.data.preference import AnswerDataFactory
from arctic_hydra.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.arrays import Ints
    from arctic_hydra.data.base import BatchGeometry, Loader
    from arctic_hydra.data.cache.token_store import JoinedStore, PairStore
    from arctic_hydra.data.load.mismatched import LabelledStore
    from arctic_hydra.data.prepare.preparer import PrepareOptions


@component(group="data", name="unpaired")
class UnpairedDataFactory(AnswerDataFactory):
    """Answers with a label, true for desirable and false for undesirable ones; pairs count as one of each.

    Each comes with a mismatched pair, its prompt with the answer of another row of its source, whose end is truncated to
    `max_length`. A pack holds up to twice as many tokens, mismatched ones included.
    """

    examples_are: ClassVar[str] = "labelled answers"
    reads: ClassVar[str] = "answers with a label, or chosen and rejected"

    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become examples: each answer is one, with a label."""
        return replace(super().options(), labelled=True)

    def create_loader(
        self,
        store: JoinedStore | PairStore | LabelledStore,
        examples: Ints,
        source_names: list[str],
        tokenizer: PreTrainedTokenizerBase,
        geometry: BatchGeometry,
        training: bool,
    ) -> Loader:
        """Return a loader of these examples and their mismatched pairs, drawn among them.

        Raises DataError if a source has a single row, or if the training examples lack one of the labels.
        """
        from arctic_hydra.data.load.mismatched import LabelledStore

        flat = store.flat
        self._check(flat, examples, source_names, training)
        labelled = LabelledStore(flat, examples, self.max_length)
        return super().create_loader(labelled, examples, source_names, tokenizer, geometry, training)

    def _check(self, flat: JoinedStore, examples: Ints, source_names: list[str], training: bool) -> None:
        import numpy as np

        assert flat.labels is not None, "the entries of labelled data have labels"
        group = "sources" if training or not self.eval_sources else "eval_sources"
        part = "to train on" if training else "to evaluate"
        sources, rows, labels = flat.sources[examples], flat.rows[examples], flat.labels[examples]
        for index, name in enumerate(source_names):
            if len(np.unique(rows[sources == index])) == 1:
                share = "a larger share in data.train_eval_split, or " if self.train_eval_split[1] else ""
                raise DataError(
                    f"data.{group}.{name}: got a single row {part}, expected two or more, because the KL term of the loss needs "
                    f"the answer of another row of the source; pass {share}more rows"
                )
        if training and labels.min() == labels.max():
            only, other = ("desirable", "false") if labels[0] else ("undesirable", "true")
            raise DataError(
                f"data.sources: got {len(labels)} {only} answers to train on, expected desirable and undesirable ones; add rows "
                f"with the label {other}, or pairs with chosen and rejected, or pass trainer=sft to train on good answers alone"
            )
