"""Random command lines and config files end in a config or in one-line errors, never in a traceback."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_hydra.__main__ import main
from tests.composing import GOLDEN

KEYS = GOLDEN.read_text().split()
GROUPS = [
    "model", "tokenizer", "data", "optimizer", "scheduler", "deepspeed", "trainer", "checkpoint", "converter", "peft",
    "callback", "tracking", "log", "data/sources", "data/eval_sources", "experiment", "hydra/launcher", "hydra/sweeper",
    "hydra.searchpath", "hydra.launcher.x", "hydra.sweep.dir", "deepspeed.config", "model.hf_config_kwargs",
]  # fmt: skip
PIECES = [
    "${", "}", "${oc.env:HOME}", "${oc.env:", "${name}", "${a.b}", "${.}", "${..seed}", "${oc.create:x}", "\\${", "'", '"', "[",
    "]", "{", ":", ",", "=", "@", "~", "+", "\\", "null", "true", "???", "nan", "inf", "-inf", "1e400", "2^9999", "50%", "8Ki",
    "-0", "0x10", "1_000", "99999999999999999999", "choice(1,2)", "range(1,3)", "interval(0,1)", "glob(*)", "\x00", "\n", "\t",
    "\u2028", "\ud800", "é", "\U0001f600", " ", "", "adamw", "none", "_target_", "_self_", "x" * 300, "../..", "/dev/null",
    "2^3/x", "(", ")", "shuffle(", "range(nan,1)", "range(0,1,0)", "range(0,9999999999)",
]  # fmt: skip
VALUES = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=4).map("".join)
OVERRIDES = st.builds(
    lambda sign, key, equals, value: f"{sign}{key}{equals}{value}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(KEYS + GROUPS * 5),
    st.sampled_from(["=", "=", "=", "=", "", "@x="]),
    VALUES,
)
SLOW = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
QUICK = settings(SLOW, max_examples=25, derandomize=True)


def assert_clean(arguments: list[str]) -> None:
    """Run the command in this process; it ends with 0 or 2, and each problem is one line."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(arguments)
    lines = errors.getvalue().splitlines()
    assert code in (0, 2), (arguments, code)
    if code == 2:
        assert lines and all(line.startswith("error: ") for line in lines), errors.getvalue()


def random_overrides(overrides: list[str]) -> None:
    assert_clean(["--cfg", "job", *(item for item in overrides if not item.startswith("-"))])


test_random_overrides = QUICK(given(st.lists(OVERRIDES, min_size=1, max_size=3))(random_overrides))
test_many_random_overrides = pytest.mark.faults(
    pytest.mark.long(SLOW(given(st.lists(OVERRIDES, min_size=1, max_size=3))(random_overrides)))
)

YAML = st.lists(
    st.sampled_from(
        [
            "defaults: [config, _self_]\n", "defaults: [adamw, _self_]\n", "defaults: config\n", "lr: 1\n", "seed: [\n",
            "- 1\n", "lr: ${lr}\n",
            "name: !!python/object/apply:os.getcwd []\n", "name: &a x\n", "seed: *a\n", "hydra: {searchpath: [pkg://os]}\n", "? [1]\n: 2\n",
            "seed: 1\nseed: 2\n", "\t\n", "# @package x.y\n", "# @package _global_\n", "optimizer: null\n", "optimizer: {lr: ${seed}}\n",
            "<<: {a: 1}\n",
            "1: 2\n", "null: 3\n", "---\n", "%YAML 9.9\n", "seed: 0o17\n", "name: 2026-11-29\n", "data: {sources: []}\n",
            "checkpoint: [hf]\n", "_target_: arctic_hydra.config.Run\n", "_target_: arctic_hydra.optimizer.adamw.AdamWFactory\n",
            "hostfile: 5\n", 'name: "\\ud800"\n', "unknown: 1\n", "defaults: [own]\n", "defaults: [override model: hf]\n",
            "model: &a {x: *a}\n", "defaults: [config, override modle: hf, _self_]\n", "hydra: {launcher: {x: 1}}\n",
        ]
    )
    | st.text(max_size=8),
    max_size=4,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("arguments", [["--config-name", "own"], ["optimizer=own"]])
@QUICK
@given(content=YAML | st.binary(max_size=20))
def test_random_config_files(
    arguments: list[str], content: str | bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.getbasetemp() / "random-config"
    (folder / "optimizer").mkdir(parents=True, exist_ok=True)
    for path in (folder / "own.yaml", folder / "optimizer" / "own.yaml"):
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    assert_clean(["--cfg", "job", "--config-dir", str(folder), *arguments])
