# ruff: noqa: E501 (a table of values)
"""The grammar of overrides: numbers, split slices, sweeps."""

from __future__ import annotations

import pytest

from arctic_hydra.cli.composition.compose import compose_config
from arctic_hydra.cli.overrides import normalize, search_samples, sweep_jobs
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


TEXTS = (
    "#### (.*)", "it's 2^10, {a: [b]} = 50%?", r"\d+ \' \\", "ends in \\\\", "${seed} \\${seed}", "two\nlines", "'quoted'", '"', "1e5",
)  # fmt: skip


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
        ("optimizer.betas=[2^-1,0.95]", "optimizer.betas", [0.5, 0.95]),
        ("output_root='runs-2^3'", "output_root", "runs-2^3"),
        ("data.cache_dir='/tmp/2^3/x'", "data.cache_dir", "/tmp/2^3/x"),
        ("trainer.eval_interval=7", "trainer.eval_frequency", 7),
        ("data.cache=off", "data.cache", False),
        *((f"data.sources.chat.split={split}", "data.sources.chat.split", split.strip("'\"")) for split in SPLITS),
        ("++data.eval_sources.chat.split=test_sft[:50%]", "data.eval_sources.chat.split", "test_sft[:50%]"),
        *((f"exact_match.pattern={text}", "exact_match.pattern", text) for text in TEXTS),
        ("exact_match.pattern=null", "exact_match.pattern", None),
    ],
)  # fmt: skip
def test_human_values_on_the_command_line(argument, key, value):
    node = built(argument)
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-2^3", "-8"),
        ("[2^3, x,[2^-1]]", "[8, x,[0.5]]"),
        ("{a:2^3,b:{c:[2^2]},'d':2^4}", "{a:8,b:{c:[4]},'d':16}"),
        ("2^3,2^4", "8,16"),
        ("choice(2^3,'2^4')", "choice(8,'2^4')"),
        ("tag(log,interval(2^-2,2^0))", "tag(log,interval(0.25,1))"),
        ("range(start=2^0,stop=2^3)", "range(start=1,stop=8)"),
        *((text, text) for text in (
            "/tmp/x/2^3", "runs-2^3", "2^3.jsonl", "2^3/x", "a:2^3", "{path:a:2^3}", "x 2^3", r"a\,2^3", "'[a,2^3]'", '"2^3"', "'/tmp/2^3/x'",
            "{2^3:x}", "f(x)2^3",
        )),
    ],
)  # fmt: skip
def test_powers_are_numbers_where_they_are_a_whole_element(value, expected):
    assert normalize(f"key={value}").replace(" ", "") == f"key={expected}".replace(" ", "")


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


def test_an_experiment_may_have_the_name_of_a_number(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, seed in (("7", 5), ("1e3", 6)):
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
    jobs = sweep_jobs([normalize("experiment=7,1e3")])
    assert [compose_config(job, "config", str(tmp_path)).job["seed"] for job in jobs] == [5, 6]
    assert (normalize("experiment=null"), normalize("experiment=dpo")) == ("experiment=null", "experiment=dpo")


@pytest.mark.parametrize(
    "override",
    [
        "seed=range(1,1000000000000)",
        "seed=range(0,1,0.0000001)",
        "seed=shuffle(range(0,1000000000))",
        f"seed=range(0,{'9' * 400})",
    ],
)
def test_a_sweep_without_end_is_refused_before_it_is_listed(override):
    with pytest.raises(ConfigError, match="seed: the sweep has more than 100,000 jobs; try fewer values"):
        sweep_jobs([override])
    with pytest.raises(ConfigError, match="seed: the sweep has more than 100,000 jobs; try fewer values"):
        search_samples([override])


def test_a_search_may_have_any_number_of_combinations():
    keys = ["seed=range(0,90000)", "trainer.train_iters=range(1,90000)"]
    assert search_samples(keys)[0] == ["seed=0", "trainer.train_iters=1"]


@pytest.mark.parametrize(
    "text", ["range(0,1,0)", "range(nan,1)", "range(0,inf)", "range(0,1,nan)", "shuffle(range(0,1,0))"]
)
def test_a_range_of_no_numbers_is_refused(text):
    for expand in (sweep_jobs, search_samples):
        with pytest.raises(ConfigError, match="seed: got .*, expected range.start,stop,step. with finite numbers"):
            expand([f"seed={text}"])


@pytest.mark.parametrize(
    ("text", "count"), [("range(5,1,-2)", 2), ("range(0,0.3,0.1)", 3), ("range(3)", 3), ("sort(range(0,3))", 3)]
)
def test_ranges_are_expanded(text, count):
    assert len(sweep_jobs([f"seed={text}"])) == count
