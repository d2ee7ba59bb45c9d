"""Prepare conversations with arctic_hydra: `here.py ROWS.jsonl TOKENIZER WORK PROCESSES MAX_LENGTH [DUMP]`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(rows: str, tokenizer_path: str, work: str, processes: str, max_length: str, dump: str = "") -> None:
    """Time the way from the file to the packing plan, or write ids and labels of each row to `dump`."""
    # Imported here, before the time is taken as the peers' imports are, and not by the helpers, which need but a part.

    import arctic_hydra.data.cache.entries
    import arctic_hydra.data.encode.chat
    import arctic_hydra.data.load.loader
    import arctic_hydra.data.prepare.build
    import arctic_hydra.data.prepare.key
    import arctic_hydra.data.rows.jsonl
    import arctic_hydra.data.rows.read  # noqa: F401
    from arctic_hydra.data.base import BatchGeometry
    from arctic_hydra.data.sft import SFTDataFactory
    from arctic_hydra.data.source.json import JsonSource
    from arctic_hydra.distributed import World
    from arctic_hydra.tokenizer.hf import HFTokenizerFactory

    tokenizer = HFTokenizerFactory(name_or_path=tokenizer_path).create_tokenizer()
    data = SFTDataFactory(
        sources={"chat": JsonSource(path=rows)}, num_proc=processes, cache_dir=f"{work}/cache", max_length=max_length
    )
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    loader, _ = data.build(tokenizer, BatchGeometry(1, 1, World(), 42))
    taken = {"seconds": time.perf_counter() - start, "cpu": sum(os.times()[:4]) - cpu}
    figures = loader.summary()
    print(json.dumps({**taken, "tokens": figures["tokens"], "packs": figures["packs"]}))
    if dump:
        store = data.process("train", tokenizer, World())
        with Path(dump).open("w", encoding="utf-8") as file:
            for index in range(len(store)):
                ids, mask = store.ids(index).tolist(), store.mask(index).tolist()
                labels = [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]
                file.write(json.dumps([ids, labels]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
