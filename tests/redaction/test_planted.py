"""Secrets are planted in every place of a config that takes a value, and are in no file and no output of the runs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sqlite3
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from arctic_hydra.__main__ import main
from tests.command import run

BY_KEY = {
    "apikey": "'plant-key-01'",
    "accessToken": "'plant-key-02'",
    "API-KEY": "'plant-key-03'",
    "auth": "{user: plant-key-04, ports: [plant-key-05, 7411852963]}",
    "passwd": "8520741963",
    "HUB_TOKENS": "[plant-key-06, plant-key-07]",
    "client_secret_value": "'plant-key-08'",
    "Authorization": "'Basic cGxhbnQta2V5LTA5'",
    "sshKey2": "'plant-key-10'",
    "nested": "{deeper: [{credentials: {id: plant-key-11}}]}",
}
"""Values below secret keys."""
BY_FORM = {
    "endpoint": "'https://me:plant-url-01@host.example/x'",
    "link": "'https://host.example/x?a=1&token=plant-url-02&b=2'",
    "signed": "'https://bucket.example/x?X-Amz-Signature=plant-url-03'",
    "header": "'Authorization: Bearer plant-bearer-01'",
    "flags": "'--password=plant-flag-01 --steps=3'",
    "hf": "'hf_PlantPlantPlantPlantPlant000001'",
    "openai": "'sk-proj-PlantPlantPlantPlant000002'",
    "github": "'ghp_PlantPlantPlantPlantPlant000003'",
    "pat": "'github_pat_PlantPlantPlant_PlantPlant000004'",
    "gitlab": "'glpat-PlantPlantPlant000005'",
    "aws": "'AKIAPLANTPLANT000006'",
    "slack": "'xoxb-plantplant-000007'",
    "jwt": "'eyJwbGFudHBsYW50.eyJwbGFudHBsYW50MDg.plantplant'",
    "pem": "'-----BEGIN RSA PRIVATE KEY----- plantplant09 -----END RSA PRIVATE KEY-----'",
    "hf_PlantPlantPlantPlantPlant000010": "1",
    "from_environment": "'${oc.env:PLANT_TOKEN}'",
    "within": "'x${oc.env:PLANT_TOKEN}y'",
    "url": "'http://h/${oc.env:PLANT_PASSWORD}'",
}
"""Values that are secret by themselves."""
ENVIRONMENT = {"PLANT_TOKEN": "plantenvironment01", "PLANT_PASSWORD": "plant environment/02"}
PLANTED = (
    [f"plant-key-{number:02}" for number in (*range(1, 9), 10, 11)]
    + ["7411852963", "8520741963", "cGxhbnQta2V5LTA5"]
    + [f"plant-url-{number:02}" for number in range(1, 5)]
    + [
        "plant-bearer-01",
        "plant-flag-01",
        "plantplant-000007",
        "eyJwbGFudHBsYW50",
        "plantplant09",
        "AKIAPLANTPLANT000006",
    ]
    + [f"PlantPlant{number:06}" for number in (1, 2, 3, 4, 10, 11, 12, 13, 14)]
    + [
        "PlantPlantPlant000005",
        "plantenvironment01",
        "plant environment/02",
        "plant%20environment%2F02",
        "plant-sweep-01",
    ]
)
TOKEN = "hf_PlantPlantPlantPlantPlant"
PLACES = (
    "data.max_length=256 data.num_proc=1 optimizer.lr=1e-3 log.report=true trainer.train_iters=2 callback=[courier] "
    "name=good,fails callback.courier.password=plant-key-01 "
    "data.eval_sources.chat.sample_count=20 tracking=[mlflow] tokenizer=bundled model=hf model.name_or_path=model "
    f"'model.hf_config_kwargs={{problem_type: {TOKEN}000013, pad_token_id: 0}}' "
    f"'deepspeed.config.wandb={{enabled: false, project: {TOKEN}000011}}' "
    f"'deepspeed.config.csv_monitor={{enabled: false, output_path: \"https://me:plant-url-04@h/\", job_name: {TOKEN}000012}}'"
)
"""Overrides of the sweep, with secrets in several keys."""


def _options() -> str:
    items = ", ".join(f"{key}: {value}" for key, value in {**BY_KEY, **BY_FORM}.items())
    return f'"++callback.courier.options={{{items}}}"'.replace("$", "\\$")


def _contents(root: Path) -> dict[str, bytes]:
    """Return the content of every file and its name, and with compressed streams and the pages of databases as they are."""
    found = {}
    for path in (item for item in root.rglob("*") if item.is_file()):
        content = path.read_bytes()
        if content[:15] == b"SQLite format 3":
            with sqlite3.connect(path) as database:
                content += "\n".join(database.iterdump()).encode()
        found[str(path.relative_to(root))] = content + path.name.encode()
    return found


def _leaks(texts: dict[str, bytes]) -> list[str]:
    return [
        f"{secret} in {name}" for secret in PLANTED for name, content in texts.items() if secret.encode() in content
    ]


@pytest.fixture(scope="module")
def planted(my_lab, tmp_path_factory):
    """A sweep of a job that is exported and one that fails, with secrets in their configs; and what they printed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("planted")
    shape = dict.fromkeys(("hidden_size", "intermediate_size"), 32) | dict.fromkeys(("num_hidden_layers",), 1)
    config = LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2, vocab_size=4096)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    before = os.umask(0o022)
    try:
        done = run(f"-m {PLACES} {_options()}", folder, code=1, **ENVIRONMENT, PYTHONPATH=str(my_lab))
    finally:
        os.umask(before)
    return folder, done.stdout + done.stderr


def test_no_planted_secret_is_in_a_file_or_an_output(planted):
    folder, printed = planted
    files = _contents(folder / "outputs")
    for name in ("mlflow.db", "report.html", "sweep.html", "export/config.json", "mp_rank_00_model_states.pt"):
        assert any(path.endswith(name) for path in files), (name, sorted(files))
    assert _leaks({**files, "the terminal": printed.encode()}) == []
    assert "cannot deliver {'apikey': ***" in printed
    assert len(PLANTED) == len(set(PLANTED)) == 37


def test_everything_below_the_outputs_is_private(planted):
    folder, _ = planted
    found = [folder / "outputs", *(folder / "outputs").rglob("*")]
    assert [f"{path} {path.stat().st_mode & 0o777:o}" for path in found if path.stat().st_mode & 0o077] == []


def test_the_ranks_receive_what_the_files_hide(planted):
    folder, _ = planted
    [held] = [path.read_text() for path in folder.glob("outputs/*/*/courier.txt")]
    options = OverridesParser.create().parse_override(shlex.split(_options().replace("\\$", "$"))[0]).value()
    text = json.dumps(options, sort_keys=True)
    for name, value in ENVIRONMENT.items():
        text = text.replace(f"${{oc.env:{name}}}", value)
    assert held == hashlib.sha256(f"plant-key-01{text}".encode()).hexdigest()


@pytest.mark.parametrize(
    "wrong",
    [
        f"optimizer.lr={TOKEN}000001",
        "optimizer.password=plant-key-01",
        "tracking.mlflow.uri=me:plant-url-01@host",
        "tracking.mlflow.uri=ftp//x?token=plant-url-01",
        "'deepspeed.config={wandb: {password: plant-key-01}, x: 1}'",
        "'deepspeed.config={token: plant-key-01'",
        f"name={TOKEN}000001",
        f"output_root=/tmp/{TOKEN}000001",
        f"objective=eval/{TOKEN}000001",
        f"-m seed=1,2 hydra.sweep.dir={TOKEN}000001",
        "name=${oc.env:PLANT_TOKEN}",
        f"checkpoint.hf.save_name={TOKEN}000001",
        f"tracking.mlflow.experiment={TOKEN}000001",
        *(f"tracking=[wandb] tracking.wandb.{field}={TOKEN}000001" for field in ("project", "name", "entity")),
        f"tracking=[tensorboard] tracking.tensorboard.log_dir={TOKEN}000001",
        f"callback=[profiler] callback.profiler.output_dir=/tmp/{TOKEN}000001",
        f"+data.sources={{{TOKEN}000001: ${{data.sources.chat}}}}",
        f"-m hydra/launcher=slurm hydra.launcher.dry_run=true hydra.launcher.comment={TOKEN}000001",
        "-m hydra/launcher=slurm hydra.launcher.dry_run=true 'hydra.launcher.setup=[\"export A_TOKEN=plant-key-01\"]'",
        "-m hydra/launcher=slurm hydra.launcher.dry_run=true '+hydra.launcher.additional_parameters={password: plant-key-01}'",
        "-m hydra/launcher=slurm hydra.launcher.dry_run=true hydra.launcher.account=${oc.env:PLANT_TOKEN}",
    ],
)
def test_errors_do_not_show_secrets(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert main(shlex.split(wrong)) == 2
    printed = "".join(capsys.readouterr())
    assert "error: " in printed
    assert _leaks({"the terminal": printed.encode()}) == []
    assert not any(tmp_path.iterdir())


def test_the_printed_config_shows_no_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--cfg",
                "job",
                "deepspeed.config.comet.api_key=plant-key-01",
                f"deepspeed.config.wandb.project={TOKEN}000011",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "project: '***'" in printed or "project: ***" in printed
    assert _leaks({"the terminal": printed.encode()}) == []


@pytest.mark.parametrize("word", ["tokenizer", "mlflow", "checkpoint", "arctic_hydra", "deepspeed"])
def test_a_password_that_is_a_word_of_the_package_changes_nothing(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--cfg", "job", "tracking=[mlflow]"]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setenv("DB_PASSWORD", word)
    assert main(["--cfg", "job", "tracking=[mlflow]"]) == 0
    assert capsys.readouterr().out == expected


def test_printed_configs_hide_secrets_of_several_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        "defaults: [config, _self_]\nmodel:\n hf_config_kwargs:\n  api_key: |\n   plant-1\n   plant-2\n  auth: >\n   plant-3\n   "
        f"plant-4\n  passwords:\n  - plant-5\n  - |\n   plant-6\n   plant-7\n  token: {'plant-8 ' * 40}\n  last: 77\n"
    )
    for words in (["--cfg", "job"], ["--cfg", "all"], ["--info", "config"], ["--info", "all"]):
        assert main([*words, "--config-dir", ".", "--config-name", "own"]) == 0
        shown = capsys.readouterr().out
        assert "api_key: " in shown and "last: 77" in shown and "plant" not in shown, (words, shown)


def test_printed_configs_hide_everything_below_a_secret_key(tmp_path, monkeypatch, capsys):
    """Also words and numbers that could not be masked in other texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nmodel: {hf_config_kwargs: {api_key: abc12, password: Checkpoint, passwd: 12345, x: {auth: {a: b7b7}}}}\n"
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(text)
    own = ["--config-dir", "mine", "experiment=own"]
    words = (
        ["--cfg", "job"],
        ["--cfg", "all"],
        ["--info", "config"],
        ["--cfg", "job", "--package", "model.hf_config_kwargs"],
    )
    below = (
        ["--cfg", "job", "--package", f"model.hf_config_kwargs.{key}"] for key in ("api_key", "x.auth", "x.auth.a")
    )
    for arguments in (*words, *below):
        assert main([*own, *arguments]) == 0
        shown = capsys.readouterr().out
        assert "***" in shown
        for planted in ("abc12", "password: Checkpoint", "12345", "b7b7"):
            assert planted not in shown, (arguments, planted)
