# ruff: noqa: E501 (a table of values)
"""The grammar of overrides: numbers, split slices, sweeps."""

from __future__ import annotations

import pytest

from arctic_hydra.cli.overrides import normalize, sweep_jobs
from arctic_hydra.errors import ConfigError
from tests.composing import built, composed

SPLITS = (
    "train[:10%]",
    "train[100:200]",
    "[100:200]",
    "[:50%]",
    "[-50:]",
    "train[33%:67%]",
    "train",
    "'[:50%]'",
    '"[:5]"',
)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("optimizer.lr=2^-10", "optimizer.lr", 2**-10),
        ("data.max_length=0.5Ki", "data.max_length", 512),
        ("optimizer.weight_decay=1%", "optimizer.weight_decay", 0.01),
        ("trainer.train_iters=1_000", "trainer.train_iters", 1000),
        ("optimizer.betas=[0.9,0.95]", "optimizer.betas", [0.9, 0.95]),
        ("deepspeed.config={zero_optimization:{reduce_bucket_size:2^20}}", "deepspeed.config.zero_optimization", {"reduce_bucket_size": 2**20}),
        ("deepspeed.config.gradient_clipping=50%", "deepspeed.config", {"gradient_clipping": 0.5}),
        ("trainer.eval_interval=7", "trainer.eval_frequency", 7),
        ("data.cache=off", "data.cache", False),
        *((f"data.sources.chat.split={split}", "data.sources.chat.split", split.strip("'\"")) for split in SPLITS),
        ("++data.eval_sources.chat.split=test_sft[:50%]", "data.eval_sources.chat.split", "test_sft[:50%]"),
    ],
)  # fmt: skip
def test_human_values_on_the_command_line(argument, key, value):
    node = built(argument)
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value


@pytest.mark.parametrize(
    "values",
    [["train[:10%]", "train[-10%:]"], ["[:100]", "[100:]"]],
)
def test_slices_can_be_swept_over(values):
    key = "data.sources.chat.split"
    for text in (",".join(values), f"choice({','.join(values)})", ",".join(f"'{value}'" for value in values)):
        jobs = sweep_jobs([normalize(f"{key}={text}"), "seed=1,2"])
        assert len(jobs) == 4
        found = [composed(*job)["data"]["sources"]["chat"]["split"] for job in jobs]
        assert found == [value for value in values for _ in range(2)]


@pytest.mark.parametrize("override", ["seed=range(1,1000000000000)", "seed=range(0,1,0.0000001)"])
def test_a_sweep_without_end_is_refused_before_it_is_listed(override):
    with pytest.raises(ConfigError, match="seed: the sweep has more than 100,000 jobs; try fewer values"):
        sweep_jobs([override])
