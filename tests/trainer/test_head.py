"""The loss equals that of the model's own forward for each kind of head, including transforms of logits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from arctic_hydra.trainer.balance import find_balance, real_tokens
from arctic_hydra.trainer.chunked import LogitTransform
from arctic_hydra.trainer.head import Head, model_inputs, tap_head
from arctic_hydra.trainer.loss import LossComputer, plain_losses, supervised_logits
from tests.trainer.heads import SIZES, Shifted, Squared, Viewed, llama, some_batch
from tests.trainer.loop import batch_of, documents

CPU = torch.device("cpu")


MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


EXPERTS = {"output_router_logits": True, "router_aux_loss_coef": 0.3, "num_experts_per_tok": 2}


ARCHITECTURES = {
    "llama": ({}, LogitTransform()),
    "llama, tied": ({"tie_word_embeddings": True}, LogitTransform()),
    "gemma2": ({"final_logit_softcapping": 0.5, "head_dim": 8}, LogitTransform(1.0, 0.5)),
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(0.125)),
    "falcon_h1": ({"lm_head_multiplier": 0.4, **MAMBA}, LogitTransform(0.4)),
    "phi": ({}, LogitTransform()),
    "gpt_neox": ({"rotary_pct": 1.0}, LogitTransform()),
    "mixtral": ({"num_local_experts": 4, **EXPERTS}, LogitTransform()),
    "jetmoe": ({"num_local_experts": 4, "num_key_value_heads": 2, **EXPERTS, "aux_loss_coef": 0.3}, LogitTransform()),
    "qwen3_moe": ({"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, **EXPERTS}, LogitTransform()),
}


def network(name):
    more, _ = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(name.partition(",")[0], **{**SIZES, **more})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    if name == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    for parameter in model.parameters():  # large logits make transforms visible
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
    inputs = model_inputs(batch)
    if "output_router_logits" in ARCHITECTURES[name][0] and not packed:  # excludes padding from the router loss
        inputs["attention_mask"] = real_tokens(batch).long()
    expected = theirs(**inputs, labels=labels, shift_labels=labels).loss * batch.num_supervised
    expected.backward()

    head = tap_head(ours, CPU)
    assert isinstance(head, Head), head
    transform = ARCHITECTURES[name][1]
    assert (head.transform.scale, head.transform.softcap) == pytest.approx((transform.scale, transform.softcap))
    balance = find_balance(ours, CPU, 1)
    assert (balance is not None) == ("output_router_logits" in ARCHITECTURES[name][0])
    loss = LossComputer(ours, head, chunk_rows=4, balance=balance).loss_sum(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=key)


def sums(model):
    """Return the head, and the sums for training and evaluation, with the head tapped if possible."""
    head = tap_head(model, CPU)
    computer = LossComputer(model, head if isinstance(head, Head) else None)
    return head, computer.loss_sum(some_batch()), computer.evaluation_sums(some_batch(), 1)


def test_tapping_leaves_the_plain_forward_unchanged():
    model, batch = llama(), some_batch()
    before = model(**model_inputs(batch)).logits
    head, *_ = sums(model)
    assert isinstance(head, Head)
    assert torch.equal(model(**model_inputs(batch)).logits, before)


def test_a_copy_of_the_model_has_its_own_head():
    model, inputs = llama(), model_inputs(some_batch())
    before = model(**inputs).logits
    assert isinstance(tap_head(model, CPU), Head)
    copy = deepcopy(model)
    copy.lm_head.weight.data.zero_()
    assert not copy(**inputs).logits.any()
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Squared, "Squared transforms its logits in an unknown way"),
        (Viewed, "Viewed transforms its logits in an unknown way"),
        (Shifted, "differ from what its head alone computes"),
    ],
)
def test_an_unknown_transform_falls_back_to_the_models_forward(kind, reason):
    model, batch = llama(), some_batch()
    model.__class__ = kind
    head, loss, _ = sums(model)
    assert reason in head
    logits = model(**model_inputs(batch)).logits[0, batch.rows_K]
    torch.testing.assert_close(loss, plain_losses(logits, batch.targets_K).sum())


def test_an_adapter_on_the_head_falls_back_to_the_models_forward():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    head, loss, _ = sums(model.eval())
    assert head == "the LM head has an adapter, which reading the weight directly would bypass"
    assert loss.requires_grad
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    logits = supervised_logits(model, some_batch())[0]
    assert rows == [some_batch().num_supervised]
    torch.testing.assert_close(loss, plain_losses(logits, some_batch().targets_K).sum())


def test_a_trained_copy_of_the_head_is_tapped():
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(llama(), config).eval()
    copy = model.get_output_embeddings().modules_to_save["default"]
    copy.weight.data += torch.randn_like(copy.weight)
    expected = LossComputer(model, None).loss_sum(some_batch())
    head, loss, _ = sums(model)
    assert isinstance(head, Head)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert copy.weight.grad is not None


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_head_that_trains_the_rows_of_added_tokens_is_tapped(tied):
    """Compares with the loss over full logits: values, and gradients of the rows and of all trained parameters."""
    tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    added = dict.fromkeys(tables, some_batch().targets_K[:2].tolist())  # also the inputs of the next positions
    found = {}
    for tapped in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=added, init_lora_weights=False)
        model = get_peft_model(llama(tied=tied), config).eval()
        for name, parameter in model.named_parameters():
            parameter.data += 0.1 if "tokens_delta" in name else 0.0
        head = tap_head(model, CPU) if tapped else None
        computer = LossComputer(model, head, chunk_rows=4)
        loss = computer.loss_sum(some_batch())
        loss.backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert sum("tokens_delta" in name for name in trained) == len(tables)
        found[tapped] = [loss.detach(), computer.evaluation_sums(some_batch(), 1), *trained.values()]
        logits = model(**model_inputs(some_batch())).logits
        found[tapped].append(logits.detach())
    assert isinstance(head, Head), head
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
