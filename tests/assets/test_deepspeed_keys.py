# ruff: noqa: E501 (a table of messages)
"""Keys and types of `deepspeed.config`, checked without DeepSpeed, and the table that they are compared with."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from arctic_hydra import engine
from arctic_hydra.assets import deepspeed_keys
from arctic_hydra.assets.deepspeed_keys import TABLE, problems
from tests.assets.deepspeed_table import text

ZERO = "deepspeed.config.zero_optimization"


def test_the_table_is_that_of_the_installed_deepspeed() -> None:
    assert version("deepspeed") in TABLE.read_text().splitlines()[0]
    assert text() == TABLE.read_text(), "run `python -m tests.assets.deepspeed_table` after an update of DeepSpeed"


class Recorder(dict[str, Any]):
    """A configuration that records which keys are read."""

    read: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> Recorder:
        return self


def test_the_table_holds_every_top_level_key_that_deepspeed_reads() -> None:
    engine.import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    Recorder.read = set()
    DeepSpeedConfig(copy.copy(Recorder(train_batch_size=1)))
    assert len(Recorder.read) > 40
    assert Recorder.read - deepspeed_keys._table()[0].keys() == set()


ACCEPTED: list[dict[str, Any]] = [
    {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8, "overlap_comm": None, "stage3_max_live_parameters": 1e9}},
    {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}, "offload_param": None}},
    {"zero_optimization": {"reduce_bucket_size": "auto", "leaf_module": {"classes": "Block", "names": ["a", "b"]}}},
    {"zero_optimization": {"zenflow": {"topk_ratio": 0.2, "select_interval": "auto", "update_interval": 4}}},
    {"bf16": {"enabled": True, "immediate_grad_update": "yes"}, "fp16": {"enabled": 0}},
    {"activation_checkpointing": {"partition_activations": True, "number_checkpoints": 4}},
    {"communication_data_type": None, "gradient_allreduce_op": "sum", "gradient_clipping": 1, "steps_per_print": 10**9},
    {"compile": {"passes": ["z3", "autosp"]}, "timers": {"throughput": {"enabled": False}}},
    {"checkpoint": {"writer": None, "parallel_write": {"pipeline_stage": True}}, "data_efficiency": {"anything": {"goes": 1}}},
    {"torch_autocast": {"enabled": True, "lower_precision_safe_modules": ["torch.nn.Linear", "torch.nn.Embedding"]}},
    {"tensorboard": {"enabled": True, "output_path": "logs"}, "flops_profiler": {"enabled": True, "output_file": None}},
]  # fmt: skip


@pytest.mark.parametrize("config", ACCEPTED, ids=lambda config: "+".join(config))
def test_what_deepspeed_accepts_is_accepted(config: dict[str, Any]) -> None:
    """By DeepSpeed as well, whose own classes read the same values here."""
    assert list(problems(config)) == []
    engine.import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig({"train_batch_size": 1, **copy.deepcopy(config)})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"zero_optimization": {"stag": 2}}, f"{ZERO}.stag: DeepSpeed has no such key; did you mean 'stage'?"),
    ({"zero_optimization": {"stage": 4}}, f"{ZERO}.stage: got 4, expected one of 0, 1, 2, 3"),
    ({"zero_optimization": True}, f"{ZERO}: got True, expected a dictionary of settings"),
    ({"zero_optimization": {"reduce_bucket_size": 0}}, f"{ZERO}.reduce_bucket_size: got 0, expected more than 0"),
    ({"zero_optimization": {"reduce_bucket_size": 1.5}}, f"{ZERO}.reduce_bucket_size: got 1.5, expected a whole number, more than 0"),
    ({"zero_optimization": {"overlap_comm": "maybe"}}, f"{ZERO}.overlap_comm: got 'maybe', expected true or false or null"),
    ({"zero_optimization": {"mics_shard_size": 8}}, f"{ZERO}.mics_shard_size: MiCS ZeRO-3 sharding has been removed"),
    (
        {"zero_optimization": {"offload_optimizer": {"devise": "cpu", "device": "gpu", "ratio": 2}}},
        f"{ZERO}.offload_optimizer.devise: DeepSpeed has no such key; did you mean 'device'?\n"
        f"{ZERO}.offload_optimizer.device: got 'gpu', expected one of none, cpu, nvme\n"
        f"{ZERO}.offload_optimizer.ratio: got 2, expected 0.0 or more and 1.0 or less",
    ),
    ({"zero_optimization": {"zenflow": {"topk_ratio": 1.0}}}, f"{ZERO}.zenflow.topk_ratio: got 1.0, expected more than 0.0 and less than 1.0"),
    ({"zero_optimization": {"leaf_module": {"names": [1]}}}, f"{ZERO}.leaf_module.names[0]: got 1, expected a text"),
    ({"activation_checkpointing": {"partitoin_activations": True}}, "deepspeed.config.activation_checkpointing.partitoin_activations: DeepSpeed has no such key; did you mean 'partition_activations'?"),
    ({"activation_checkpointing": {"profile": "false"}}, "deepspeed.config.activation_checkpointing.profile: got 'false', expected true or false"),
    ({"aio": {"block_size": "large"}}, "deepspeed.config.aio.block_size: got 'large', expected a whole number"),
    ({"nebula": {"enabled": True}}, "deepspeed.config.nebula: Nebula checkpointing has been removed"),
    ({"bf16": None}, "deepspeed.config.bf16: got None, expected a dictionary of settings"),
    ({"gradient_clipping": -1}, "deepspeed.config.gradient_clipping: got -1, expected 0 or more"),
    ({"gradient_clipping": float("nan")}, "deepspeed.config.gradient_clipping: got nan, expected a number"),
    ({"communication_data_type": "int8"}, "deepspeed.config.communication_data_type: got 'int8', expected one of fp16, bf16, fp32, null"),
    ({"monitor_config": {}}, "deepspeed.config.monitor_config: DeepSpeed has no such key"),
    ({"compile": {"passes": ["z9"]}}, "deepspeed.config.compile.passes[0]: got 'z9', expected one of z1, z3, autosp, autotp"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"), REFUSED, ids=lambda value: value.partition(":")[0][17:] if isinstance(value, str) else ""
)
def test_what_deepspeed_refuses_or_ignores_is_refused(config: dict[str, Any], expected: str) -> None:
    found = list(problems(config))
    assert len(found) == expected.count("\n") + 1
    assert "\n".join(found).startswith(expected)


EFFECTS = [
    ({"torch_autocast": {"enabled": True, "lower_precision_safe_modules": [name]}}, "torch_autocast.lower_precision_safe_modules[0]: got")
    for name in ("evil.H", "torch.nn.evil.H", "torch.hub.load", "torch.nn", "torch.nn.Linear\n", "H", "..H", "torch.nn..H")
] + [
    ({"torch_autocast": {"lower_precision_safe_modules": "evil.H"}}, "torch_autocast.lower_precision_safe_modules"),
    ({"flops_profiler": {"enabled": True, "output_file": "train.py"}}, "flops_profiler.output_file: got 'train.py', but DeepSpeed overwrites"),
    ({"autotuning": {"enabled": True, "metric_path": "train.py"}}, "autotuning.enabled: got true, but DeepSpeed then writes"),
]  # fmt: skip


@pytest.mark.parametrize("installed", ["0.19.8", "0.99.0"])
@pytest.mark.parametrize(("config", "expected"), EFFECTS)
def test_what_makes_deepspeed_import_code_or_overwrite_a_file_is_refused(
    config: dict[str, Any], expected: str, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any DeepSpeed."""
    monkeypatch.setattr(deepspeed_keys, "version", lambda name: installed)
    deepspeed_keys._table.cache_clear()
    try:
        assert next(problems(config)).startswith(f"deepspeed.config.{expected}")
    finally:
        deepspeed_keys._table.cache_clear()


def test_with_another_deepspeed_only_the_outline_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_keys, "version", lambda name: "0.99.0")
    deepspeed_keys._table.cache_clear()
    try:
        assert list(problems({"zero_optimization": {"new_key": 1}, "gradient_clipping": "x"})) == []
        assert len(list(problems({"zero_optimization": True, "gradient_cliping": 1, "amp": {}}))) == 3
    finally:
        deepspeed_keys._table.cache_clear()


def test_the_table_is_read_only_if_there_are_keys_to_check() -> None:
    code = (
        "import sys; from tests.composing import built; built(); print('arctic_hydra.assets.deepspeed_keys' in sys.modules); "
        "built('deepspeed.config={steps_per_print:5}'); print('arctic_hydra.assets.deepspeed_keys' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
