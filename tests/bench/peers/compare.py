"""Preparation of conversations beside TRL's and ArcticTraining's: the same ids and labels.

`nox -s peers` makes an environment for each and runs this; `python -m tests.bench prepare` also times them. Every preparation
is a process of its own with empty caches, on the same rows, template and tokenizer, from the file to packs of 2,048 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat" / "train_sft.jsonl"
BUNDLED = ROOT / "arctic_hydra" / "assets" / "chat" / "train_sft.jsonl"
SCRIPTS = {"arctic_hydra": "here.py", "TRL": "trl_sft.py", "ArcticTraining": "arctic.py"}
MAX_LENGTH = 2048
IGNORED = -100


class Bench:
    """The folder of one comparison, and the interpreters that it runs in."""

    def __init__(self, folder: Path, pythons: dict[str, str], chats: Path) -> None:
        self.folder, self.pythons = folder, pythons
        lines = chats.read_text(encoding="utf-8").rstrip("\n").split("\n")
        self.chats = [json.loads(line)["messages"] for line in lines]
        self.tokenizer = BundledTokenizerFactory().create_tokenizer()
        self.tokenizer.save_pretrained(folder / "tokenizer")
        # Said in a way that transformers 4 understands too, and without columns that nobody asked for.
        config = folder / "tokenizer" / "tokenizer_config.json"
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        config.write_text(json.dumps(json.loads(config.read_text()) | said))

    def write_rows(self) -> Path:
        """Write the conversations without other columns."""
        path = self.folder / "rows.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in self.chats), encoding="utf-8")
        return path

    def prepare(self, peer: str, processes: int, dump: str = "") -> dict[str, Any]:
        """Run one preparation with empty caches and return its figures."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        environment = {**os.environ, "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        if peer == "arctic_hydra":
            environment["PYTHONPATH"] = str(ROOT)
        arguments = [self.write_rows(), self.folder / "tokenizer", work, processes, MAX_LENGTH]
        command = [self.pythons[peer], HERE / SCRIPTS[peer], *arguments, *([self.folder / dump] if dump else [])]
        done = subprocess.run([*map(str, command)], env=environment, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{peer} failed:\n{done.stderr[-4000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def compare(self, peer: str) -> None:
        """Compare ids and labels row by row; a row that differs must be one where the peer is wrong."""
        for name in ("arctic_hydra", peer):
            self.prepare(name, 1, dump=f"{name}.dump")
        found: Counter[str] = Counter()
        examples: dict[str, int] = {}
        with (self.folder / "arctic_hydra.dump").open() as ours, (self.folder / f"{peer}.dump").open() as theirs:
            for row, (mine, other) in enumerate(zip(map(json.loads, ours), map(json.loads, theirs), strict=True)):
                kind = self._kind(self.chats[row], mine, other)
                found[kind] += 1
                examples.setdefault(kind, row)
        print(f"{peer}: " + "; ".join(f"{count:,} rows {kind}" for kind, count in found.most_common()), flush=True)
        for kind in found.keys() - {EQUAL, PEER_WRONG}:
            raise SystemExit(f"{peer}: row {examples[kind]}: {kind}")
        if PEER_WRONG in examples:
            print(f"  the first of them: row {examples[PEER_WRONG]}")

    def _kind(self, messages: list[dict[str, str]], mine: list[list[int]], other: list[list[int]]) -> str:
        wanted = [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]
        if self._trained(*mine) != wanted:
            return "are wrong here"
        if mine == other:
            return EQUAL
        if mine[0] != other[0]:
            return "have other ids"
        return PEER_WRONG if self._trained(*other) != wanted else "differ without a reason"

    def _trained(self, ids: list[int], labels: list[int]) -> list[str]:
        runs: list[list[int]] = []
        for token, label, before in zip(ids, labels, [IGNORED, *labels], strict=False):
            if label != IGNORED:
                runs += [[]] if before == IGNORED else []
                runs[-1].append(token)
        return [self.tokenizer.decode(run) for run in runs]


EQUAL = "equal"
PEER_WRONG = "where the peer trains another text than the answer and its stop token"


def main() -> None:
    """Compare with each peer that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=Path, default=CHATS if CHATS.exists() else BUNDLED)
    parser.add_argument("--trl", help="interpreter of an environment with TRL")
    parser.add_argument("--arctic", help="interpreter of an environment with ArcticTraining")
    options = parser.parse_args()
    peers = {"TRL": options.trl, "ArcticTraining": options.arctic}
    pythons = {"arctic_hydra": sys.executable} | {name: python for name, python in peers.items() if python}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), pythons, options.chats)
        for peer in pythons:
            if peer != "arctic_hydra":
                bench.compare(peer)


if __name__ == "__main__":
    main()
