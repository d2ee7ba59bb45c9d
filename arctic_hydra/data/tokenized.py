"""Base of the data factories that tokenize ahead of training: cache, length policy, packing, splits."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_hydra.data.base import BatchGeometry, DataFactory, DataSource, Loader
from arctic_hydra.data.formats.reading import Reading, RowFormat
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.errors import DataError, FieldError
from arctic_hydra.human_numbers import HumanInt, integer, parse_human_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_hydra.data.arrays import Ints
    from arctic_hydra.data.cache.token_store import JoinedStore, PairStore, TokenStore
    from arctic_hydra.data.prepare.preparer import PrepareOptions, SourceRows
    from arctic_hydra.data.rows.base import Rows
    from arctic_hydra.data.stream.sources import SourceStream
    from arctic_hydra.distributed import World


BUFFER_ROWS = 10_000
STREAM_PROCESSES = 4
"""Most processes that tokenise a stream where `num_proc` is unset: they work beside the training."""


class Malformed(Enum):
    """What becomes of a row that is no proper example."""

    error = "error"
    drop = "drop"


class MixBy(Enum):
    """What the weights of sources are shares of."""

    examples = "examples"
    tokens = "tokens"


@dataclass(kw_only=True)
class TokenizedDataFactory(DataFactory):
    """Base: rows are encoded once, kept in a cache, and served as packs or padded rows."""

    max_length: HumanInt = integer(2048, minimum=2)
    """Most tokens of one example, and of one pack."""
    packing: bool = True
    """Put several examples into one row without padding; they do not see each other."""
    group_by_length: bool = False
    """Without packing: put examples of like length into a batch, which saves padding."""
    mix_by: MixBy = MixBy.examples
    """What the sources' `weight` are shares of, where they have one."""
    overlong: Overlong = Overlong.drop
    """What becomes of an example longer than `max_length`; cuts fall between turns where they can, and are reported."""
    malformed: Malformed = Malformed.error
    """What becomes of a row that is no proper example; `drop` counts it."""
    train_eval_split: list[Any] = field(default_factory=lambda: [1.0, 0.0])
    """Shares of the sources' rows to train on and to evaluate on; sums to 1."""
    num_proc: HumanInt | None = integer(None, minimum=1)
    """Processes that prepare data; all cores when unset."""
    cache: bool = True
    """Keep prepared data for the next run (`on`), or prepare it in every process of every run (`off`)."""
    cache_dir: str | None = None
    """Directory of prepared data; `$XDG_CACHE_HOME/arctic_hydra` when unset."""
    prefetch_steps: HumanInt = integer(2, minimum=0)
    """Optimizer steps whose batches are made ahead by a thread; 0 makes each when it is asked for."""

    streaming: bool = False
    """Read, tokenise and pack while training, without a copy on disk; needs `trainer.train_iters`."""
    buffer_rows: HumanInt = integer(BUFFER_ROWS, minimum=1)
    """Rows of a stream that are shuffled and packed together."""

    outside_identity: ClassVar[frozenset[str]] = frozenset(("num_proc", "cache", "cache_dir", "prefetch_steps"))

    def validate(self) -> None:
        """Check that there are sources, and that evaluation data comes from one place."""
        problems: list[tuple[str, str]] = []
        if not self.sources:
            problems.append(
                (
                    "sources",
                    "got none, expected at least one; choose sets with data/sources=[<name>,...], or add one of your own "
                    "with +source@data.sources.<name>=json",
                )
            )
        problems += self._split_problems()
        problems += self._order_problems()
        problems += self._streaming_problems() if self.streaming else ()
        if problems:
            raise FieldError(problems)

    def _order_problems(self) -> Iterator[tuple[str, str]]:
        if self.group_by_length and self.packing:
            yield "group_by_length", "has no effect beside packing=true, which leaves no padding; pass packing=false"
        weights = {name: getattr(source, "weight", None) for name, source in self.sources.items()}
        without = [name for name, weight in weights.items() if weight is None]
        if 0 < len(without) < len(weights):
            text = "got none, but another source has one; expected a weight for each source or for none"
            yield from ((f"sources.{name}.weight", text) for name in without)
        if self.buffer_rows != BUFFER_ROWS and not self.streaming:
            yield (
                "buffer_rows",
                "has no effect on data that is prepared as a whole; drop it, or pass data.streaming=true",
            )
        if self.mix_by is not MixBy.examples and len(without) == len(weights):
            yield "mix_by", "has no effect without a weight on the sources; set data.sources.<name>.weight"
        for name, source in self.eval_sources.items():
            if getattr(source, "weight", None) is not None:
                yield f"eval_sources.{name}.weight", "has no effect: evaluation takes each example once; drop it"
            if not getattr(source, "split", "") and getattr(source, "split_mapping", {}).get("eval") == "":
                text = f"a part of its training split; pass train[:1%], and data.sources.{name}.split=train[1%:]"
                yield (
                    f"eval_sources.{name}.split",
                    f"got none, but this set has no split to evaluate on; expected {text}",
                )

    def _streaming_problems(self) -> Iterator[tuple[str, str]]:
        unknown = "has no effect beside data.streaming=true, which does not know the number of rows; drop it"
        for name, source in self.sources.items():
            for key in ("sample_ratio", "sample_count"):
                if getattr(source, key, None) is not None:
                    yield f"sources.{name}.{key}", unknown
            if "[" in getattr(source, "split", ""):
                yield f"sources.{name}.split", f"got a slice, which {unknown.replace('drop it', 'drop the slice')}"
            if len(self.sources) > 1 and getattr(source, "weight", 0) is None:
                text = "got none, but sources that are streamed together are mixed by weight; expected a number above 0"
                yield f"sources.{name}.weight", text
        if self.train_eval_split != [1.0, 0.0]:
            text = "beside data.streaming=true, which holds nothing out; set data.eval_sources"
            yield "train_eval_split", f"got {self.train_eval_split} {text}"

    def _split_problems(self) -> Iterator[tuple[str, str]]:
        got = self.train_eval_split
        try:
            self.train_eval_split = [float(parse_human_number(share)) for share in got]
        except ValueError as error:
            yield "train_eval_split", str(error)
            return
        shares = self.train_eval_split
        if len(shares) != 2 or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            yield "train_eval_split", f"got {got}, expected two shares from 0 to 1 that sum to 1, such as [0.9, 0.1]"
        elif shares[0] == 0:
            yield "train_eval_split", f"got {got}, which leaves nothing to train on; expected a first share above 0"
        elif shares[1] > 0 and self.eval_sources:
            names = ", ".join(self.eval_sources)
            drop = " ".join(f"~data.eval_sources.{name}" for name in self.eval_sources)
            text = f"got {got} beside eval_sources ({names}); expected one of them; pass [1.0, 0.0], or {drop}"
            yield "train_eval_split", text

    def check_environment(self) -> Iterator[str]:
        """Yield what the sources lack on this machine, their key within this factory first."""
        for group, sources in (("sources", self.sources), ("eval_sources", self.eval_sources)):
            for name, source in sources.items():
                for problem in source.check_environment():
                    yield f"{group}.{name}.{problem}"

    @property
    def has_evaluation(self) -> bool:
        """Whether there will be an evaluation loader."""
        return bool(self.eval_sources) or self.train_eval_split[1] > 0

    def build(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> tuple[Loader, Loader | None]:
        """Return the training loader, and the evaluation loader where there is evaluation data.

        Needs no collective: ranks that share the cache wait for its lock, others prepare the same data themselves.
        """
        if self.streaming:
            loader: Loader = self.create_stream(tokenizer, geometry)
        else:
            store = self.process("train", tokenizer, geometry.world)
            with self.event("split"):
                train, held_out = self.split(store, geometry.seed)
            loader = self.create_loader(store, train, list(self.sources), tokenizer, geometry, training=True)
        if self.eval_sources:
            store = self.process("eval", tokenizer, geometry.world)
            held_out = _all_of(store)
        if not self.has_evaluation:
            return loader, None
        names = list(self.eval_sources or self.sources)
        return loader, self.create_loader(store, held_out, names, tokenizer, geometry, training=False)

    def load(self, split: str, name: str) -> SourceRows:
        """Return the rows of one source of `split` (train or eval), and how they are read."""
        from arctic_hydra.data.prepare.preparer import SourceRows
        from arctic_hydra.data.rows.read import as_rows

        source, key = self.sources_of(split)[name], self._key(split, name)
        try:
            rows = as_rows(source.load(split))
            reading = self.resolve(rows, self.reading(source)) if source.process else Reading()
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        return SourceRows(key, name, rows, source.process, reading)

    def reading(self, source: DataSource) -> Reading:
        """Return how a source's rows are read, as far as the config says it."""
        mapped = bool(source.role_mapping) and source.format is RowFormat.auto
        form = RowFormat.question_answer if mapped else source.format
        return Reading(form, source.role_mapping, source.content_key)

    def resolve(self, rows: Rows, reading: Reading) -> Reading:
        """Return the reading with a format found out from the first rows, where the config declares none."""
        from arctic_hydra.data.formats.reading import detect_format

        found = detect_format(rows) if reading.format is RowFormat.auto else reading.format
        return replace(reading, format=found, detected=reading.format is RowFormat.auto)

    def process(self, split: str, tokenizer: PreTrainedTokenizerBase, world: World) -> JoinedStore | PairStore:
        """Return the prepared examples of `split`, from the cache where it has them; each source has its own entry."""
        from arctic_hydra.data.cache.token_store import JoinedStore

        identities = self.identities(split)
        return JoinedStore(
            {name: self._process_source(split, name, identities[name], tokenizer, world) for name in identities}
        )

    def _process_source(
        self, split: str, name: str, identity: dict[str, Any], tokenizer: PreTrainedTokenizerBase, world: World
    ) -> TokenStore:
        from arctic_hydra.data.cache.entries import build_private, default_cache_dir, open_or_build
        from arctic_hydra.data.prepare.build import build_entry
        from arctic_hydra.data.prepare.key import cache_key
        from arctic_hydra.data.prepare.row_report import (
            RowReport,
            warn_about_dropped_reasoning,
            warn_about_stop_token,
            warn_about_unsupervised_rows,
        )

        options = self.options()
        key = cache_key(identity, tokenizer, options)
        builders = 1 if self.cache else max(1, world.local_size)
        workers = self.num_proc or max(1, len(os.sched_getaffinity(0)) // builders)

        def build(directory: Path) -> None:
            with self.event("load", split=split, source=name):
                rows = self.load(split, name)
            with self.event("process", split=split, source=name):
                build_entry(directory, rows, tokenizer, options, workers)

        if self.cache:
            directory = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
            store = open_or_build(directory.absolute(), key, build)
        else:
            store = build_private(key, build)
        if world.is_main:
            warn_about_unsupervised_rows(self._key(split, name), store.report)
            warn_about_stop_token(self._key(split, name), RowReport.from_dict(store.report), tokenizer)
            warn_about_dropped_reasoning(self._key(split, name), store.report["thoughts_left_out"])
        return store

    @abstractmethod
    def options(self) -> PrepareOptions:
        """Return what turns rows into examples."""

    def split(self, store: JoinedStore | PairStore, seed: int) -> tuple[Ints, Ints]:
        """Return the examples to train on and those held out, whole rows drawn at random from `seed`."""
        import numpy as np

        everything = _all_of(store)
        if self.train_eval_split[1] == 0:
            return everything, everything[:0]
        # Pieces of one row would give the evaluation away: they stay together.
        starts = np.diff(store.rows, prepend=-1).astype(bool) | np.diff(store.sources, prepend=-1).astype(bool)
        row_of, rows = np.cumsum(starts) - 1, int(starts.sum())
        held_out = max(1, round(rows * self.train_eval_split[1]))
        if held_out >= rows:
            text = f"holds out {held_out} of {rows} rows that have examples; nothing is left to train on"
            raise FieldError([("train_eval_split", text)])
        order = np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")
        is_held_out = np.isin(row_of, order[:held_out])
        return everything[~is_held_out], everything[is_held_out]

    def create_loader(
        self,
        store: JoinedStore | PairStore,
        examples: Ints,
        source_names: list[str],
        tokenizer: PreTrainedTokenizerBase,
        geometry: BatchGeometry,
        training: bool,
    ) -> Loader:
        """Return the loader of these examples, shuffled per epoch where they are for training."""
        from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader

        pad = tokenizer.pad_token_id
        assert isinstance(pad, int), "tokenizer factories return tokenizers with a pad token"
        weights = [getattr(source, "weight", None) for source in self.sources.values()] if training else []
        options = LoaderOptions(
            self.packing,
            pad,
            self.pack_tokens,
            training,
            self.prefetch_steps,
            self.group_by_length,
            tuple(weight for weight in weights if weight is not None),
            self.mix_by is MixBy.tokens,
        )
        return PackedLoader(store, examples, source_names, geometry, options)

    @property
    def pack_tokens(self) -> int:
        """Most tokens of one pack."""
        return self.max_length

    def create_stream(self, tokenizer: PreTrainedTokenizerBase, geometry: BatchGeometry) -> Loader:
        """Return the loader that reads the training sources while it is asked for windows."""
        from arctic_hydra.data.prepare.key import cache_key
        from arctic_hydra.data.stream.segments import StreamOptions
        from arctic_hydra.data.stream.streaming import StreamingLoader

        identities, options = self.identities("train"), self.options()
        streams, sources = [], []
        for index, name in enumerate(self.sources):
            stream, source = self._open_stream(name, geometry.seed + index)
            streams.append(stream)
            sources.append(source)
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int), "tokenizer factories return tokenizers with a pad token"
        batching = StreamOptions(
            self.packing,
            pad,
            self.max_length,
            self.prefetch_steps,
            self.group_by_length,
            tuple(getattr(source, "weight", None) or 1.0 for source in self.sources.values()),
            self.mix_by is MixBy.tokens,
            self.buffer_rows,
        )
        content = [identities, geometry.seed, geometry.global_batch_size, asdict(replace(batching, prefetch_steps=0))]
        cores = max(1, len(os.sched_getaffinity(0)) // max(1, geometry.world.local_size))
        processes = self.num_proc or min(STREAM_PROCESSES, cores)
        fingerprint = cache_key(content, tokenizer, options)
        return StreamingLoader(streams, sources, tokenizer, options, fingerprint, geometry, batching, processes)

    def _open_stream(self, name: str, seed: int) -> tuple[SourceStream, SourceRows]:
        """Return the stream of a training source, and how its rows are read, told by the first of them."""
        from arctic_hydra.data.prepare.preparer import SourceRows
        from arctic_hydra.data.rows.base import JoinedRows
        from arctic_hydra.data.stream.sources import Cursor, SourceStream
        from arctic_hydra.data.stream.streaming import PREVIEW_ROWS

        source, key = self.sources[name], self._key("train", name)
        try:
            with self.event("load", split="train", source=name):
                stream = SourceStream(key, source.shards("train"), seed)
                rows = JoinedRows(stream.read(Cursor(), PREVIEW_ROWS)[0])
            reading = self.resolve(rows, self.reading(source)) if source.process else Reading()
        except DataError as error:
            raise DataError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error
        return stream, SourceRows(key, name, rows, source.process, reading)

    @property
    def needs_limit(self) -> bool:
        """Whether the data has no known end, so that `trainer.train_iters` has to say how long a run is."""
        return self.streaming

    def rows_of(self, source: DataSource, split: str) -> dict[str, Any]:
        """Return what tells a source's rows from others; of streamed ones, what is known without reading them."""
        return source.outline(split) if self.streaming and split == "train" else source.identity(split)

    def identities(self, split: str) -> dict[str, Any]:
        """Return what the rows of each source depend on (content hashes), without reading them or a tokenizer."""
        return {
            name: {"rows": rows, "reading": asdict(self.reading(self.sources_of(split)[name]))}
            for name, rows in super().identities(split).items()
        }


def _all_of(store: JoinedStore | PairStore) -> Ints:
    import numpy as np

    return np.arange(len(store), dtype=np.int64)
