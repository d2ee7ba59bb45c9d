"""Base of the data factories that tokenize ahead of training: cache, packing, splits, streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import display
from arctic_hydra.data.base import BatchGeometry, DataSource, Loader
from arctic_hydra.data.checks import field_problems
from arctic_hydra.data.formats.reading import Reading, RowFormat, detect_format
from arctic_hydra.data.prepare.row_report import RowReport, warn
from arctic_hydra.data.tokenized_settings import MixBy, TokenizedSettings
from arctic_hydra.errors import ConfigError, DataError, FieldError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.arrays import Ints
    from arctic_hydra.data.cache.token_store import JoinedStore, PairStore, TokenStore
    from arctic_hydra.data.load.mismatched import LabelledStore
    from arctic_hydra.data.prepare.preparer import PrepareOptions, SourceRows
    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.stream.sources import SourceStream
    from arctic_hydra.distributed import World


STREAM_PROCESSES = 4
"""Maximum number of processes that tokenize a stream when `num_proc` is unset: they share the cores with training."""


@dataclass(kw_only=True)
class TokenizedDataFactory(TokenizedSettings):
    """Rows are tokenized once, cached, and served as packs or padded rows; the base of the built-in data factories."""

    def validate(self) -> None:
        """Check the sources, the split, the order and what streaming excludes."""
        problems = list(field_problems(self))
        if problems:
            raise FieldError(problems)

    def check_environment(self) -> Iterator[str]:
        """Yield what is missing for the sources on this machine, each with its key within this factory."""
        for key, source in self.all_sources():
            yield from (f"{key}.{problem}" for problem in source.check_environment())

    def build(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> tuple[Loader, Loader | None]:
        """Return the training loader, and the evaluation loader where there is evaluation data.

        Uses no collective: ranks with a common cache directory wait for its lock, others build the same data themselves.
        """
        if self.streaming:
            loader: Loader = self.create_stream(tokenizer, geometry)
        else:
            store = self.process("train", tokenizer, geometry.world)
            with self.event("split", store=store) as facts:
                facts["examples"] = self.split(store, geometry.seed)
            train, held_out = facts["examples"]
            loader = self.create_loader(store, train, list(self.sources), tokenizer, geometry, training=True)
        if self.eval_sources:
            store = self.process("eval", tokenizer, geometry.world)
            held_out = _all_examples(store)
        if not self.has_evaluation:
            return loader, None
        names = list(self.eval_sources or self.sources)
        return loader, self.create_loader(store, held_out, names, tokenizer, geometry, training=False)

    def load(self, split: str, name: str) -> SourceRows:
        """Return the rows of one source of `split` (train or eval), and how to read them."""
        from arctic_hydra.data.rows.read import as_rows

        try:
            return self._source_rows(split, name, as_rows(self.sources_of(split)[name].rows(split)))
        except DataError as error:
            raise DataError(f"{self._key(split, name)}: {error}") from error

    def _source_rows(self, split: str, name: str, rows: Rows) -> SourceRows:
        """Return rows of one source, and how to read them."""
        from arctic_hydra.data.prepare.preparer import SourceRows

        source = self.sources_of(split)[name]
        reading = self.resolve(rows, self.reading(source)) if source.process else Reading()
        return SourceRows(self._key(split, name), name, rows, source.process, reading)

    def reading(self, source: DataSource) -> Reading:
        """Return how to read a source's rows, as far as the config determines it."""
        mapped = bool(source.role_mapping) and source.format is RowFormat.auto
        form = RowFormat.question_answer if mapped else source.format
        return Reading(form, source.role_mapping, source.content_key)

    def resolve(self, rows: Rows, reading: Reading) -> Reading:
        """Return the reading with its format; format=auto is detected from the first rows."""
        found = detect_format(rows) if reading.format is RowFormat.auto else reading.format
        return replace(reading, format=found, detected=reading.format is RowFormat.auto)

    def process(self, split: str, tokenizer: PreTrainedTokenizerBase, world: World) -> JoinedStore | PairStore:
        """Return the tokenized examples of `split`, cached per source."""
        from arctic_hydra.data.cache.token_store import JoinedStore

        with display.phase("hash", f"{split} data", transient=True):
            identities = self.identities(split)
        return JoinedStore(
            {name: self._process_source(split, name, identities[name], tokenizer, world) for name in identities}
        )

    def _process_source(
        self, split: str, name: str, identity: dict[str, Any], tokenizer: PreTrainedTokenizerBase, world: World
    ) -> TokenStore:
        from arctic_hydra.data.cache.entries import build_private, open_or_build
        from arctic_hydra.data.prepare.build import build_entry
        from arctic_hydra.data.prepare.key import cache_key
        from arctic_hydra.data.prepare.workers import cores_per_process

        options = self.options()
        key = cache_key(identity, tokenizer, options)
        builders = 1 if self.cache else world.local_size
        workers = self.num_proc or cores_per_process(builders)
        with ExitStack() as events:
            about: dict[str, Any] = {"split": split, "source": name}
            processing: dict[str, Any] = {}

            def build(directory: Path) -> None:
                nonlocal processing
                if self.fail_on_missing_cache:
                    raise DataError(
                        f"{self._key(split, name)}: its tokenized data (entry {key}) is not in the cache, and "
                        f"data.fail_on_missing_cache=true; prepare it with task=preview, check data.cache_dir, or pass "
                        f"data.fail_on_missing_cache=false"
                    )
                rows = self.load_replaced(split, name)
                processing = events.enter_context(self.event("process", **about, rows=rows.rows, cached=False))
                build_entry(directory, rows, tokenizer, options, workers)

            if (directory := self.cache_directory) is not None:
                store = open_or_build(directory, key, build, is_named=bool(self.cache_dir))
            else:
                store = build_private(key, build)
            if not processing:  # the cache had them, or another process has built them
                with self.event("load", **about, rows=None, cached=True):
                    pass
                processing = events.enter_context(self.event("process", **about, rows=None, cached=True))
                display.say_cached(self._key(split, name), store.report["kept"])
            processing["store"] = store
        if world.is_main:
            warn(self._key(split, name), RowReport.from_dict(store.report), tokenizer, divisible=not options.answers)
        return store

    def load_replaced(self, split: str, name: str) -> SourceRows:
        """Return the rows of one source, or those that a callback replaces them with."""
        from arctic_hydra.data.rows.read import as_rows

        with (
            display.phase("read", self._key(split, name), unit="rows") as phase,
            self.event("load", split=split, source=name, cached=False) as facts,
        ):
            loaded = self.load(split, name)
            facts["rows"] = loaded.rows
            phase.advance(len(loaded.rows))
        replaced = facts["rows"] is not loaded.rows
        return self._source_rows(split, name, as_rows(facts["rows"])) if replaced else loaded

    @abstractmethod
    def options(self) -> PrepareOptions:
        """Return the options that determine how rows become examples; part of the cache key."""

    def split(self, store: JoinedStore | PairStore, seed: int) -> tuple[Ints, Ints]:
        """Return the examples for training and the held-out ones: whole rows, drawn at random from `seed`."""
        import numpy as np

        everything = _all_examples(store)
        if self.train_eval_split[1] == 0:
            return everything, everything[:0]
        # The parts of a split row stay together, so that evaluation data never leaks into training.
        starts = np.diff(store.rows, prepend=-1).astype(bool) | np.diff(store.sources, prepend=-1).astype(bool)
        row_of, rows = np.cumsum(starts) - 1, int(starts.sum())
        held_out = max(1, round(rows * self.train_eval_split[1]))
        if held_out >= rows:
            raise ConfigError(
                f"data.train_eval_split: holds out {held_out} of the {rows} rows that have examples, which leaves nothing to train on"
            )
        order = np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")
        is_held_out = np.isin(row_of, order[:held_out])
        return everything[~is_held_out], everything[is_held_out]

    def create_loader(
        self,
        store: JoinedStore | PairStore | LabelledStore,
        examples: Ints,
        source_names: list[str],
        tokenizer: PreTrainedTokenizerBase,
        geometry: BatchGeometry,
        training: bool,
    ) -> Loader:
        """Return a loader of these examples; training examples are shuffled in each epoch."""
        from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader

        weights = [source.weight for source in self.sources.values()] if training else []
        options = LoaderOptions(
            self.packing,
            _pad_token_id(tokenizer),
            self.pack_tokens,
            training,
            self.prefetch_steps,
            self.group_by_length,
            tuple(weight for weight in weights if weight is not None),
            self.mix_by is MixBy.tokens,
            max_length=self.max_length,
        )
        if training:  # evaluation uses each example once, as it is
            options = replace(
                options,
                always_max_length=self.always_max_length,
                drop_last=self.drop_last,
                repeat_to_pack_max_length=self.repeat_to_pack_max_length,
                fuse_positions_prob=self.fuse_positions_prob,
            )
        about = "training" if training else "evaluation"
        with display.phase("pack" if self.packing else "batch", about, unit="examples") as phase:
            loader = PackedLoader(store, examples, source_names, geometry, options)
            phase.advance(len(examples))
        return loader

    def create_stream(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> Loader:
        """Return a loader that reads the training sources during training."""
        from arctic_hydra.data.prepare.key import cache_key
        from arctic_hydra.data.prepare.workers import cores_per_process
        from arctic_hydra.data.stream.segments import StreamOptions
        from arctic_hydra.data.stream.streaming import StreamingLoader

        identities, options = self.identities("train"), self.options()
        streams, sources = [], []
        for index, name in enumerate(self.sources):
            stream, source = self._open_stream(name, geometry.seed + index)
            streams.append(stream)
            sources.append(source)
        batching = StreamOptions(
            self.packing,
            _pad_token_id(tokenizer),
            self.max_length,
            self.prefetch_steps,
            self.group_by_length,
            tuple(source.weight or 1.0 for source in self.sources.values()),
            self.mix_by is MixBy.tokens,
            self.buffer_rows,
        )
        content = [identities, geometry.seed, geometry.global_batch_size, asdict(replace(batching, prefetch_steps=0))]
        processes = self.num_proc or min(STREAM_PROCESSES, cores_per_process(geometry.world.local_size))
        fingerprint = cache_key(content, tokenizer, options)
        return StreamingLoader(streams, sources, tokenizer, options, fingerprint, geometry, batching, processes)

    def _open_stream(self, name: str, seed: int) -> tuple[SourceStream, SourceRows]:
        """Return the stream of a training source, and its first rows with the format detected from them."""
        from arctic_hydra.data.rows.base import JoinedRows
        from arctic_hydra.data.stream.sources import Cursor, SourceStream
        from arctic_hydra.data.stream.streaming import PREVIEW_ROWS

        source, key = self.sources[name], self._key("train", name)
        try:
            with self.event("load", split="train", source=name, cached=False):
                stream = SourceStream(key, source.shards("train"), seed)
                rows = JoinedRows(stream.read(Cursor(), PREVIEW_ROWS)[0])
            return stream, self._source_rows("train", name, rows)
        except DataError as error:
            raise DataError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error

    def rows_of(self, source: DataSource, split: str) -> dict[str, Any]:
        """Return values that identify a source's rows; for streamed rows, those known without reading them."""
        return source.outline(split) if self.streaming and split == "train" else source.identity(split)

    def identities(self, split: str) -> dict[str, Any]:
        """Return what the examples of each source depend on, apart from tokenizer and options (such as content hashes)."""
        return {
            name: {"rows": rows, "reading": asdict(self.reading(self.sources_of(split)[name]))}
            for name, rows in super().identities(split).items()
        }


def _all_examples(store: JoinedStore | PairStore) -> Ints:
    import numpy as np

    return np.arange(len(store), dtype=np.int64)


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "tokenizer factories return tokenizers with a pad token"
    return pad
