# ruff: noqa: E501 (tables of command lines and messages)
"""Bad inputs, by class: each ends with one sentence per problem and its exit code, before torch is imported where possible."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arctic_hydra.__main__ import main
from tests.command import SMALLEST, run

LONG = "/" + "a" * 5000
ZERO = "deepspeed.config.zero_optimization"
CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]}

NUMBERS = [
    ("trainer.epochs=2^9999", "trainer.epochs: got '2^9999', which is out of range"),
    ("optimizer.lr=0^-1", "optimizer.lr: got '0^-1', which is out of range"),
    ("optimizer.lr=1e400", "optimizer.lr: got inf, expected a finite number"),
    ("-m optimizer.lr=2^9999,1e-3", "optimizer.lr: got '2^9999', which is out of range"),
    ("seed=18446744073709551616", "seed: got 18446744073709551616, expected 0 to 18,446,744,073,708,503,040"),
    ("ranks=99999999999", "ranks: got '99999999999', expected auto or 1 to 1,024, on each machine"),
    ("ranks='²'", "ranks: got '²', expected auto or 1 to 1,024"),
    ("nnodes=99999999999", "nnodes: got 99999999999, expected 1 to 100,000"),
    ("nnodes=2 rendezvous=node1:99999", "rendezvous: got 'node1:99999', expected <host>:<port>"),
    ("task=preview preview_examples=10000000", "preview_examples: got 10000000, expected 1 to 10,000"),
    ("trainer.micro_batch_size=1e30", "trainer.micro_batch_size: got 1e+30, expected 1,000,000 or less"),
    ("trainer.gradient_accumulation_steps=1e30", "trainer.gradient_accumulation_steps: got 1e+30, expected 1,000,000 or less"),
    ("trainer.epochs=1e30", "trainer.epochs: got 1e+30, expected 1,000,000 or less"),
    ("trainer.train_iters=1e30", "trainer.train_iters: got 1e+30, expected 1,000,000,000 or less"),
    ("data.max_length=1T", "data.max_length: got '1T', expected 1,000,000,000 or less"),
    ("data.num_proc=1M", "data.num_proc: got '1M', expected 4,096 or less"),
    ("model.hidden_size=1e15", "model.hidden_size: got 1000000000000000.0, expected 1,000,000 or less"),
    ("model.num_hidden_layers=1B", "model.num_hidden_layers: got '1B', expected 100,000 or less"),
    ("checkpoint.deepspeed.save_every_n_steps=1e30", "checkpoint.deepspeed.save_every_n_steps: got 1e+30, expected 1,000,000,000,000,000 or less"),
    ("trainer.max_minutes=1e300", "trainer.max_minutes: got 1e+300, expected 1,000,000,000,000,000 or less"),
    ("tokenizer.pad_vocab_to_multiple_of=99999999", "tokenizer.pad_vocab_to_multiple_of: got 99999999, expected 1 to 1,000,000"),
    ("data.train_eval_split=[2^9999,0]", "data.train_eval_split: "),
    ("exact_match.pattern=a{99999999999}", "exact_match.pattern: got 'a{99999999999}', not a valid regular expression (the repetition number is"),
    ("converter=[freeze] converter.freeze.patterns=['a{99999999999}']", "converter.freeze.patterns: got 'a{99999999999}', which is not a valid regular"),
]  # fmt: skip

DEEPSPEED = [
    ("deepspeed.config={zero_optimization:{stag:2}}", f"{ZERO}.stag: DeepSpeed has no such key; did you mean 'stage'?"),
    ("deepspeed.config={zero_optimization:{stage:4}}", f"{ZERO}.stage: got 4, expected one of 0, 1, 2, 3"),
    ("deepspeed.config={zero_optimization:true}", f"{ZERO}: got True, expected a dictionary of settings"),
    ("deepspeed.config={zero_optimization:{offload_optimizer:cpu}}", f"{ZERO}.offload_optimizer: got 'cpu', expected a dictionary of settings or null"),
    ("deepspeed.config={zero_optimization:{offload_optimizer:{device:nvme}}} deepspeed=zero1", f"{ZERO}.offload_optimizer.device: got nvme, but nvme_path is not set"),
    ("deepspeed.config={zero_optimization:{offload_optimizer:{device:nvme,nvme_path:/tmp}}} deepspeed=zero3", f"{ZERO}.offload_optimizer.device: got nvme, whose files are not part of checkpoints"),
    ("deepspeed.config={bf16:true}", "deepspeed.config.bf16: got True, expected a dictionary of settings"),
    ("deepspeed.config={nebula:{enabled:true}}", "deepspeed.config.nebula: Nebula checkpointing has been removed"),
    ("deepspeed.config={steps_per_print:2^9999}", "deepspeed.config.steps_per_print: got '2^9999', expected a whole number or null, 0 or more"),
]  # fmt: skip

MODEL = [
    ("model.hf_config_kwargs={attention_dropout:5}", "model.hf_config_kwargs.attention_dropout: got 5, expected a probability from 0 to 1"),
    ("model.hf_config_kwargs={attention_dropout:nan}", "model.hf_config_kwargs.attention_dropout: got nan, expected a finite number"),
    ("model.hf_config_kwargs={rope_parameters:{factor:inf}}", "model.hf_config_kwargs.rope_parameters.factor: got inf, expected a finite number"),
    ("model.hf_config_kwargs={hidden_size:64}", "model.hf_config_kwargs.hidden_size: is a field of this model; pass model.hidden_size=<value>"),
    ("model.hf_config_kwargs={attn_implementation:owner/kernel}", "model.hf_config_kwargs.attn_implementation: got 'owner/kernel', expected a name without a slash; transformers"),
    ("model.hf_config_kwargs={num_nextn_predict_layers:1e9}", "model.hf_config_kwargs.num_nextn_predict_layers: got 1000000000.0, expected 100,000 or less"),
    ("peft=any peft.peft_type=shadow peft.config={shadow_model:evil/model}", "peft.config.shadow_model: got 'evil/model', expected mirror"),
    ("peft=lora peft.config={auto_mapping:{parent_library:evil}}", "peft.config.auto_mapping: makes peft import a module by its name; remove it"),
    ("peft=lora peft.config={megatron_config:{a:1},megatron_core:evil}", "peft.config.megatron_config: makes peft import a module by its name; remove it"),
    ("peft=any peft.peft_type=lora peft.config={megatron_core:evil}", "peft.config.megatron_core: makes peft import a module by its name; remove it"),
    ("model=random model.architecture=qwen3 model.hf_config_kwargs={attention_dropout:-1}", "model.hf_config_kwargs.attention_dropout: got -1, expected a probability"),
]  # fmt: skip

PATHS = [
    ("data=json data.sources.json.path=", "data.sources.json.path: got '', expected a path; `.` means the working directory"),
    ("data=json data.sources.json.path=[]", "data.sources.json.path: got an empty list, expected at least one path"),
    ("data=json data.sources.json.path=['']", "data.sources.json.path: got '', expected a path"),
    ("output_root=", "output_root: got '', expected a path"),
    ("init_from=", "init_from: got '', expected a path"),
    ("hostfile=", "hostfile: got '', expected a path"),
    ("data.cache_dir=", "data.cache_dir: got '', expected a path"),
    ("task=chat prompts=", "prompts: got '', expected a path"),
    (f"task=chat prompts={'b' * 300}", "prompts: got 'bbb"),
    (f"task=chat prompts=x out={LONG}", "out: got '/aaa"),
    ("tokenizer.chat_template=", "tokenizer.chat_template: got '', expected a path"),
    ("objective=", "objective: got '', expected auto or a metric"),
    ('objective="a\nb"', "objective: got 'a\\nb', expected auto or a metric"),
    ("init_from='/nowhere/2^3'", "init_from: got /nowhere/2^3, which is not a directory"),
    ("a" * 100_000, "'aaaa"),
    ("init_from=/nowhere/2^3", "init_from=/nowhere/2^3: not a valid override; expected key=value, with quotes around special characters"),
    ("trainer.kill_switch_path=", "trainer.kill_switch_path: got '', expected a path"),
    ("trainer.kill_switch_path=/nowhere/at/all/STOP", "trainer.kill_switch_path: got /nowhere/at/all/STOP, but there is no folder /nowhere/at/all"),
    ("output_root='~nobody-of-that-name/x' --cfg job", ""),
    *(
        (f"{key}={LONG}", f"{key.split(' ')[-1]}: got '/aaa")
        for key in ("data=json data.sources.json.path", "output_root", "init_from", "hostfile", "tokenizer.chat_template",
                    "trainer.kill_switch_path", "data.cache_dir", "model=hf tokenizer=bundled model.name_or_path")
    ),
    (f"data=json data.sources.json.path=[{'b' * 300}.jsonl]", "data.sources.json.path: got 'bbb"),
]  # fmt: skip


def check_output(error: str) -> list[str]:
    """Return the lines of an error, each of which reports one problem."""
    lines = error.splitlines()
    assert "Traceback" not in error
    assert all(line.startswith("error: ") and len(line) < 400 for line in lines), error
    return lines


@pytest.mark.parametrize(
    ("arguments", "text"), [*NUMBERS, *DEEPSPEED, *MODEL, *PATHS], ids=lambda value: value[:60] or "-"
)
def test_a_bad_config_is_refused_while_composing(
    arguments: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments.split(" "))
    lines = check_output(capsys.readouterr().err)
    if not text:
        assert (code, lines) == (0, [])
        return
    assert code == 2
    if arguments.startswith("hostfile="):  # read before the other checks, because it sets the number of machines
        text = text.replace("'/", "/")
    assert any(line.startswith(f"error: {text}") for line in lines), lines
    assert list(tmp_path.iterdir()) == []


def test_extreme_values_that_machines_have_are_accepted() -> None:
    assert (
        main(
            "--cfg job seed=18446744073708503040 ranks=1024 trainer.epochs=1M data.max_length=1M model.max_position_embeddings=1M".split()
        )
        == 0
    )


class RunsCode:
    """Leaves a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (open, (str(self.witness), "w"))


def flipped(content: bytes, start: int, count: int = 16) -> bytes:
    damaged = bytearray(content)
    for index in range(start, start + count):
        damaged[index] ^= 0xFF
    return bytes(damaged)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and damaged data files and directories of weights."""
    folder = tmp_path_factory.mktemp("inputs")
    table = pa.Table.from_pylist([CHAT] * 500)
    (folder / "good.jsonl").write_text(json.dumps(CHAT) + "\n")
    (folder / "deep.jsonl").write_text('{"messages":' + "[" * 5000 + "]" * 5000 + "}\n")
    pq.write_table(table, folder / "good.parquet", use_dictionary=False, compression="none")
    content = (folder / "good.parquet").read_bytes()
    (folder / "page.parquet").write_bytes(flipped(content, 4))
    (folder / "text.parquet").write_bytes(content.replace(b"It is 4.", b"It is \xff\xff"))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    (folder / "text.arrow").write_bytes(stream.replace(b"It is 4.", b"It is \xff\xff", 1))
    (folder / "schema.arrow").write_bytes(flipped(stream, 100))
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "pipes").mkdir()
    os.mkfifo(folder / "pipes" / "a.jsonl")
    (folder / "lost.jsonl").symlink_to("nowhere")
    (folder / "file").write_text("x")
    (folder / "binary").write_bytes(b"\xff\xfe\x00{{")
    for name, file in (("pickled", "pytorch_model.bin"), ("disguised", "model.safetensors")):
        (folder / name).mkdir()
        (folder / name / file).write_bytes(pickle.dumps(RunsCode(folder / "ran")))
    (folder / "index").mkdir()
    (folder / "index" / "model.safetensors").write_bytes(b"")
    (folder / "index" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../a.safetensors"}}')
    (folder / "lfs").mkdir()
    (folder / "lfs" / "config.json").write_text("{}")
    (folder / "lfs" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n")
    return folder


ON_THIS_MACHINE = [
    ("data=json data.sources.json.path={}/pipe.jsonl", "data.sources.json.path: {}/pipe.jsonl: is not a regular file"),
    ("data=json data.sources.json.path={}/lost.jsonl", "data.sources.json.path: {}/lost.jsonl: no such file"),
    ("data=json data.sources.json.path={}/pickled", "data.sources.json.path: {}/pickled: the directory contains no .json or .jsonl file"),
    ("data=json data.sources.json.path={}/pipes", "data.sources.json.path: {}/pipes/a.jsonl: is not a regular file; remove it"),
    ("trainer.kill_switch_path={}/file", "trainer.kill_switch_path: got {}/file, which exists already; a kill switch is a file"),
    ("tokenizer.chat_template={}/binary", "tokenizer.chat_template: {}/binary cannot be read ('utf-8' codec"),
    ("init_from={}/file", "init_from: got {}/file, which is not a directory"),
    ("trainer.kill_switch_path={}/pickled", "trainer.kill_switch_path: got {}/pickled, which is a directory"),
    ("callback=[profiler] callback.profiler.output_dir={}/file", "callback.profiler.output_dir: {}/file is a file, expected a directory; pass a folder"),
    ("callback=[memory_profiler] callback.memory_profiler.output_dir={}/file/x", "callback.memory_profiler.output_dir: {}/file is a file, expected a directory"),
    ("tracking=[tensorboard] tracking.tensorboard.log_dir={}/file/x", "tracking.tensorboard.log_dir: {}/file is a file, expected a directory"),
    ("callback=[profiler] callback.profiler.output_dir={}/lost.jsonl/x", "callback.profiler.output_dir: {}/lost.jsonl is a symbolic link, expected a directory"),
    ("output_root={}/file", "output_root: cannot write to {}/file/"),
    ("model=hf tokenizer=bundled model.name_or_path={}/lfs", "model.name_or_path: {}/lfs/model.safetensors is a git-lfs pointer, not the weights"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ON_THIS_MACHINE, ids=lambda value: value[:60])
def test_what_this_machine_lacks_is_found_before_a_rank_starts(
    arguments: str,
    text: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.replace("{}", str(inputs)).split(" ")) == 2
    lines = check_output(capsys.readouterr().err)
    assert any(line.startswith(f"error: {text.replace('{}', str(inputs))}") for line in lines), lines


def test_a_file_that_cannot_be_read_is_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process's own memory, whose first page is not mapped: root, as whom tests may run, can read any file by its mode."""
    monkeypatch.chdir(tmp_path)
    assert main(["data=json", "data.sources.json.path=/proc/self/mem"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: data.sources.json: /proc/self/mem: cannot be read (Input/output error); check"
    )


DATA = "data=json data.sources.json.path={}/"
IN_THE_RANK = [
    (1, DATA + "deep.jsonl", "data.sources.json: {}/deep.jsonl:1: JSON nested too deeply to read"),
    (1, DATA + "page.parquet", "data.sources.json: {}/page.parquet: a damaged Parquet file ("),
    (1, DATA + "text.parquet", "data.sources.json: {}/text.parquet: a damaged Parquet file ("),
    (1, DATA + "text.arrow", "data.sources.json: {}/text.arrow: a damaged Arrow file ("),
    (1, DATA + "text.arrow data.streaming=true", "data.sources.json: {}/text.arrow: a damaged Arrow file ("),
    (1, DATA + "schema.arrow", "data.sources.json: {}/schema.arrow: a damaged Arrow file ("),
    (1, DATA + "good.jsonl init_from={}/pickled", "init_from: {}/pickled holds pytorch_model.bin, but pickled weights are not loaded"),
    (1, DATA + "good.jsonl init_from={}/disguised", "{}/disguised/model.safetensors cannot be read: "),
    (1, DATA + "good.jsonl init_from={}/index", '{}/index/model.safetensors.index.json: weight_map.a: got "../../a.safetensors", expected a name inside the directory'),
    (1, DATA + "good.jsonl model.hf_config_kwargs={typo:7}", "model.hf_config_kwargs.typo: LlamaConfig has no such value"),
    (1, DATA + "good.jsonl model.hf_config_kwargs={rms_norm_eps:abc}", "model.hf_config_kwargs: "),
    (1, DATA + "good.jsonl model.hf_config_kwargs={hidden_act:nope}", "model: KeyError: 'nope'"),
    (2, DATA + "good.jsonl deepspeed.config={zero_optimization:{compute_grad_norm:false}}", "deepspeed.config: Value error, compute_grad_norm=false is supported only with ZeRO Stage 1 or 2 (DeepSpeed "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "arguments", "text"), IN_THE_RANK, ids=[arguments[5:] for _, arguments, _ in IN_THE_RANK]
)
def test_what_only_a_rank_can_find_is_one_sentence_too(
    code: int, arguments: str, text: str, inputs: Path, tmp_path: Path
) -> None:
    done = run(f"{SMALLEST} trainer.train_iters=1 {arguments.replace('{}', str(inputs))}", tmp_path, code=code)
    error, logs = done.stderr.splitlines()
    assert check_output(error) and logs.startswith("logs: ")
    assert error.startswith(f"error: {text.replace('{}', str(inputs))}")
    assert not (inputs / "ran").exists(), "the pickle was executed"
