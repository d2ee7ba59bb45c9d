"""The load-balancing loss of experts: equal under sequence parallelism, independent of padding, with the model's weight."""

from __future__ import annotations

import pytest
import torch
import transformers

from arctic_hydra import distributed
from arctic_hydra.data.load.sequence_parallel import shard_batch
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.trainer import balance
from arctic_hydra.trainer.balance import find_balance
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.ranks import run_ranks
from tests.trainer.loop import batch_of, documents

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 1.0}


def mixtral():
    factory = RandomModelFactory(architecture="mixtral", dtype="fp32", **SIZES, hf_config_kwargs=EXPERTS)
    torch.manual_seed(0)
    model = factory.create_model(factory.create_config()).train()
    for parameter in model.parameters():  # makes the experts clearly unbalanced
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model


DOCUMENTS = documents([20, 9, 12], [7, 9, 1], vocabulary=96)
CASES = {
    "packed": batch_of(DOCUMENTS),
    "packed, of odd length": batch_of(DOCUMENTS[:2]),
    "padded": batch_of(DOCUMENTS, packed=False),
    "nothing but padding on rank 1": batch_of(DOCUMENTS[1:2], packed=False),
}


def computed(ranks):
    """Return the loss and gradients of each case, summed over the ranks, which share every row."""
    world = World.from_env()
    distributed.start_sequence_groups(world, ranks, 60)
    results = {}
    for name, batch in CASES.items():
        tokens = 24 if name.startswith("nothing") else None
        share = shard_batch(batch, world.rank, ranks, tokens) if ranks > 1 else batch
        for tapped in (False, True):
            model = mixtral()
            with distributed.without_sequence_group():
                head = tap_head(model, CPU) if tapped else None
                added = find_balance(model, CPU, ranks)
            loss = LossComputer(model, head, balance=added).loss_sum(share)
            loss.backward()
            values = [loss.detach(), *(p.grad for p in model.parameters())]
            for value in values:
                distributed.sum_tensor(value)
            results[name, tapped] = values
    return results


def test_two_ranks_on_each_sequence_have_the_loss_and_gradients_of_one():
    alone = computed(1)
    for shared in run_ranks(2, computed, 2):
        for case, expected in alone.items():
            assert float(expected[0]) > 10
            for ours, theirs in zip(shared[case], expected, strict=True):
                torch.testing.assert_close(
                    ours, theirs, atol=1e-6, rtol=1e-6, msg=lambda text, case=case: f"{case}: {text}"
                )


def test_padding_does_not_change_the_loss():
    model = mixtral()
    computer = LossComputer(model, None, balance=find_balance(model, CPU, 1))
    packed, padded = (batch_of(DOCUMENTS, packed) for packed in (True, False))
    torch.testing.assert_close(computer.loss_sum(padded), computer.loss_sum(packed))
    filled = shard_batch(packed, 0, 1, 64)
    assert filled.num_padding == 23
    torch.testing.assert_close(computer.loss_sum(filled), computer.loss_sum(packed))


def test_an_empty_batch_adds_nothing():
    model = mixtral()
    dummy = batch_of([])
    dummy.num_tokens = 0
    assert LossComputer(model, None, balance=find_balance(model, CPU, 1)).loss_sum(dummy).item() == 0


def test_the_models_function_is_restored_after_a_batch():
    model = mixtral()
    function = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func
    LossComputer(model, None, balance=find_balance(model, CPU, 1)).loss_sum(CASES["padded"])
    assert transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func is function


def network(architecture, **values):
    config = transformers.AutoConfig.for_model(architecture, output_router_logits=True, pad_token_id=0, **values)
    if architecture == "dbrx":
        config.attn_config.rope_theta = 1e4
    return transformers.AutoModelForCausalLM.from_config(config)


DBRX = {
    "vocab_size": 96, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0},
    "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_num_experts": 4, "moe_loss_weight": 0.07},
}  # fmt: skip
JETMOE = {**SIZES, "num_local_experts": 4, "aux_loss_coef": 0.03}
DOGE = {**SIZES, "is_moe": True, "num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.05}


@pytest.mark.parametrize(
    ("architecture", "values", "weight"), [("dbrx", DBRX, 0.07), ("jetmoe", JETMOE, 0.03), ("doge", DOGE, 0.05)]
)
def test_the_coefficient_is_found_in_every_architecture(architecture, values, weight):
    assert find_balance(network(architecture, **values), CPU, 1).coefficient == weight


def test_an_unknown_coefficient_is_refused(monkeypatch):
    model = network("jetmoe", **JETMOE)
    monkeypatch.setattr(balance, "_COEFFICIENTS", ("router_aux_loss_coef",))
    with pytest.raises(
        ModelError, match="output_router_logits is on, but JetMoeForCausalLM has no router loss coefficient"
    ):
        find_balance(model, CPU, 1)


def test_a_nonstandard_loss_is_refused_if_ranks_share_sequences():
    with pytest.raises(
        ConfigError, match="sequence_parallel_size: got 2, but DogeForCausalLM has its own load-balancing loss"
    ):
        find_balance(network("doge", **DOGE), CPU, 2)


def test_a_model_without_experts_has_no_balancing_loss():
    assert find_balance(network("llama", **SIZES), CPU, 2) is None
