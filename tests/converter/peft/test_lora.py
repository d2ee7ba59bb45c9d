"""The fields of LoRA, and added tokens together with it."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.trainer.head import model_inputs
from arctic_hydra.trainer.loss import plain_losses
from tests.converter import lab
from tests.trainer.loop import attached, batch_of, tiny_factory

REFUSED = [
    ("peft=lora peft.config={r:8}", "peft.config.r: this option has the field itself; pass peft.r="),
    ("peft=lora peft.init_lora_weights=eva", "peft.init_lora_weights: got eva, which needs data"),
    ("peft=lora peft.target_modules=[]", r"peft.target_modules: got \[\], expected all-linear"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_malformed_fields_are_refused(arguments, text, model):
    with pytest.raises(ConfigError, match=text):
        lab.compose_run(arguments, None if "model=tiny" in arguments else model)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("saved", [[], ["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_the_rows_of_added_tokens_train_in_embedding_and_head(tied, saved):
    """In full or by row; the rows of two new tokens, equal at the start, become different."""
    network = tiny_factory(tie_word_embeddings=tied, disable_activation_checkpoint=True)
    torch.manual_seed(0)
    model = network.create_model(network.create_config())
    fit_vocabulary(model, 130, [128, 129], 1)
    model = attached(LoraFactory(r=2, modules_to_save=saved)).convert(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    batch = batch_of([([5, 128, 7, 129, 9, 129], [True] * 6)])
    for _ in range(2):
        logits = model(**model_inputs(batch)).logits[0, batch.rows_K]
        for parameter, gradient in zip(
            trained, torch.autograd.grad(plain_losses(logits, batch.targets_K).sum(), trained), strict=True
        ):
            parameter.data -= 0.1 * gradient
    merged = model.merge_and_unload()
    for table in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        one, other = table.weight[[128, 129]]
        assert (one - other).abs().max() > 1e-3
