"""What architectures do around their heads is kept: the loss equals the model's own forward, for each kind of head."""

from __future__ import annotations

import pytest
import torch
import transformers

from arctic_hydra.trainer.chunked import LogitTransform
from arctic_hydra.trainer.head import Head, model_inputs, tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.trainer.loop import batch_of, documents

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "llama": ({}, LogitTransform()),
    "llama, tied": ({"tie_word_embeddings": True}, LogitTransform()),
    "gemma2": ({"final_logit_softcapping": 0.5, "head_dim": 8}, LogitTransform(1.0, 0.5)),
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(0.125)),
    "falcon_h1": ({"lm_head_multiplier": 0.4, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}, LogitTransform(0.4)),
    "phi": ({}, LogitTransform()),
    "gpt_neox": ({"rotary_pct": 1.0}, LogitTransform()),
    "mixtral": ({"output_router_logits": True, "router_aux_loss_coef": 0.3, "num_local_experts": 4}, LogitTransform()),
    "qwen3_moe": ({"output_router_logits": True, "router_aux_loss_coef": 0.3, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}, LogitTransform()),
}  # fmt: skip


def network(name):
    more, _ = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(name.partition(",")[0], **{**SIZES, **more})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    for parameter in model.parameters():  # large logits, so that transforms show
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model.eval()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_equals_the_models_own_forward(name, packed):
    lengths = [17] if packed else [9, 14]
    batch = batch_of(documents(lengths, [length - 3 for length in lengths], vocabulary=96), packed)
    if packed:
        batch.cu_seqlens = None  # one document: eager attention needs no bounds
    theirs, ours = network(name), network(name)
    shift_labels = torch.full((batch.input_ids_BT.numel(),), -100)
    shift_labels[batch.rows_K] = batch.targets_K
    labels = shift_labels.view_as(batch.input_ids_BT)
    expected = theirs(**model_inputs(batch), labels=labels, shift_labels=labels).loss * batch.num_supervised
    expected.backward()

    head = tap_head(ours, CPU)
    assert isinstance(head, Head), head
    transform = ARCHITECTURES[name][1]
    assert (head.transform.scale, head.transform.softcap) == pytest.approx((transform.scale, transform.softcap))
    loss = LossComputer(ours, head, chunk_rows=4).loss_sum(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=key)
