"""Rows of embedding and head for added tokens."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.converter import lab


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_start_at_the_mean_and_are_saved(tied, tmp_path):
    """In new rows and in spare ones; the exported tokenizer has them."""
    from transformers import AutoTokenizer

    spare = lab.save_model(tmp_path / "spare", tied=tied, vocabulary=4160)
    grown = lab.save_model(tmp_path / "grown", tied=tied)
    for folder, rows in ((spare, 4160), (grown, 4128)):
        run_dir = tmp_path / f"run-{rows}"
        chosen = (
            "tokenizer.add_tokens=[uno] tokenizer.add_special_tokens=['<|dos|>'] tokenizer.pad_vocab_to_multiple_of=32"
        )
        lab.in_ranks(1, lab.perform, f"{chosen} optimizer.lr=0 checkpoint=[hf]", run_dir, folder)
        tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
        ids = tokenizer.convert_tokens_to_ids(["uno", "<|dos|>"])
        assert ids == [4096, 4097] and tokenizer("uno<|dos|>")["input_ids"] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == "uno"
        weights, before = (load_file(place / "model.safetensors") for place in (run_dir / "export", folder))
        for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
            assert weights[name].shape[0] == rows
            torch.testing.assert_close(weights[name][ids], before[name][:4096].mean(0).expand(2, -1))
            assert weights[name][:4096].equal(before[name][:4096])
