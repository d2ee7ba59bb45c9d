"""Real DeepSpeed engines in forked ranks: torch, transformers and DeepSpeed are imported once, in the parent."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.warm import import_libraries

TIMEOUT_SECONDS = 90


@pytest.fixture(scope="session")
def libraries() -> SimpleNamespace:
    """The heavy libraries, warm, so that a forked rank starts at once."""
    import_libraries()
    import deepspeed
    import peft  # noqa: F401  # which some ranks use
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    return SimpleNamespace(
        torch=torch, deepspeed=deepspeed, transformers=transformers, LlamaConfig=LlamaConfig, Llama=LlamaForCausalLM
    )


@pytest.fixture
def in_ranks(libraries: SimpleNamespace) -> Callable[..., list[Any]]:
    """Return `call(world_size, function, *args)`: runs function(rank, *args) in forked ranks, returns their results."""

    def call(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        with tempfile.TemporaryDirectory() as scratch:
            children = [_fork(Path(scratch), rank, world_size, function, args) for rank in range(world_size)]
            codes = _wait(children)
            results = [_result(Path(scratch), rank, codes[rank]) for rank in range(world_size)]
        failures = [text for ok, text in results if not ok]
        assert not failures, "\n".join(failures)
        return [value for _, value in results]

    return call


def _fork(scratch: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        outcome = (True, _run_rank(scratch, rank, world_size, function, args))
    except BaseException:
        outcome = (False, f"rank {rank}:\n{traceback.format_exc()}")
    (scratch / f"result{rank}").write_bytes(pickle.dumps(outcome))
    os._exit(0)


def _run_rank(scratch: Path, rank: int, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    import torch

    gc.freeze()  # DeepSpeed collects garbage often, and what the parent imported is none
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ.update(zip(names, map(str, (rank, rank, world_size, world_size)), strict=True))
    store = torch.distributed.FileStore(str(scratch / "store"), world_size)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )
    return function(rank, *args)


def _wait(children: list[int]) -> list[int]:
    deadline, codes = time.monotonic() + TIMEOUT_SECONDS, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > deadline:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in children]


def _result(scratch: Path, rank: int, code: int) -> tuple[bool, Any]:
    file = scratch / f"result{rank}"
    return pickle.loads(file.read_bytes()) if file.exists() else (False, f"rank {rank} ended with {code}, no result")


@dataclass
class Lab:
    """One tiny run in this rank: model, engine, scheduler and the state that a checkpoint engine works on."""

    libraries: SimpleNamespace

    def start(
        self,
        run_dir: Path,
        rank: int,
        *,
        zero: int = 2,
        world_size: int = 1,
        bf16: bool = False,
        tied: bool = False,
        gas: int = 1,
        seed: int = 0,
        lora: bool = False,
        persistence_threshold: int = 0,
        **fields: Any,
    ) -> Any:
        """Return the TrainingState of a new run; `seed` is that of the random states, the weights are always equal."""
        from arctic_hydra.checkpoint.base import TrainingState
        from arctic_hydra.distributed import World
        from arctic_hydra.progress import Progress

        torch = self.libraries.torch
        torch.manual_seed(1)
        model = self.libraries.Llama(
            self.libraries.LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                vocab_size=128,
                max_position_embeddings=64,
                attention_dropout=0.1,
                tie_word_embeddings=tied,
            )
        )
        if lora:
            import peft

            model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-2)
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": gas,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": persistence_threshold},
            "bf16": {"enabled": bf16},
            "checkpoint": {"tag_validation": "Ignore"},
        }
        engine, *_ = self.libraries.deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.seed(seed, rank)
        return TrainingState(
            engine=engine,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.9**done),
            tokenizer=fields.pop("tokenizer", None),
            progress=Progress(),
            world=World(rank, world_size, rank, world_size),
            run_dir=run_dir,
            identity={"config_hash": "c0", "data_fingerprint": "d0", "versions": {"torch": "x"}, "zero_stage": zero},
            **fields,
        )

    def seed(self, seed: int, rank: int) -> None:
        """Seed python, numpy and torch, differently on each rank."""
        import numpy

        self.libraries.torch.manual_seed(100 * seed + rank)
        numpy.random.seed(100 * seed + rank)
        random.seed(100 * seed + rank)

    def train(self, state: Any, steps: int) -> None:
        """Take optimizer steps on data drawn from all three generators."""
        torch = self.libraries.torch
        for _ in range(steps):
            for _ in range(state.engine.gradient_accumulation_steps()):
                ids = torch.tensor(self.draw(16), dtype=torch.int64).view(2, 8)
                state.engine.backward(state.engine(input_ids=ids, labels=ids).loss)
                state.engine.step()
            state.scheduler.step()
            state.progress.global_step += 1
            state.progress.tokens += 16

    def draw(self, count: int) -> list[int]:
        """Return token ids that depend on all three generators."""
        import numpy

        drawn = self.libraries.torch.randint(0, 128, (count,)).tolist()
        return [(token + int(numpy.random.randint(128)) + random.randrange(128)) % 128 for token in drawn]

    def digest(self, state: Any) -> dict[str, Any]:
        """Return hashes of this rank's weights and optimizer, its counters, learning rates and next draws."""
        engine = state.engine
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        generators = (random.getstate(), self._generator_states())
        result = {
            "weights": _hash([getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]),
            "optimizer": _hash(engine.optimizer.state_dict()),
            "progress": state.progress.state_dict(),
            "rates": rates,
            "epoch of the schedule": state.scheduler.last_epoch,
            "draws": self.draw(5),
            "steps": (engine.global_steps, engine.micro_steps, engine.skipped_steps),
        }
        random.setstate(generators[0])
        self._set_generator_states(generators[1])
        return result

    def hash(self, value: Any) -> str:
        """Return one hash of nested containers: keys, values, dtypes and shapes."""
        return _hash(value)

    def _generator_states(self) -> Any:
        import numpy

        return numpy.random.get_state(), self.libraries.torch.get_rng_state()

    def _set_generator_states(self, states: Any) -> None:
        import numpy

        numpy.random.set_state(states[0])
        self.libraries.torch.set_rng_state(states[1])

    def checkpoint(self, state: Any, **fields: Any) -> Any:
        """Return a bound `deepspeed` checkpoint engine."""
        from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint

        engine = DeepSpeedCheckpoint(**fields)
        engine.bind(state)
        return engine


def _hash(value: Any) -> str:
    digest = hashlib.sha256()

    def visit(item: Any) -> None:
        import torch

        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
            digest.update(item.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in item:
                digest.update(str(key).encode())
                visit(item[key])
        elif isinstance(item, list | tuple):
            for child in item:
                visit(child)
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            visit(vars(item))
        else:
            digest.update(repr(item).encode())

    visit(value)
    return digest.hexdigest()


@pytest.fixture
def lab(libraries: SimpleNamespace) -> Lab:
    """Builds tiny runs inside forked ranks."""
    return Lab(libraries)
