"""Callbacks: what each event hands over, what a returned value replaces, and how a callback ends a run."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from arctic_hydra import runner
from arctic_hydra.assembly import startup
from arctic_hydra.callback.base import EVENTS, MOMENTS, REPLACES, Callback, fire
from arctic_hydra.checkpoint.deepspeed import DeepSpeedCheckpoint
from arctic_hydra.data.batch import Batch
from arctic_hydra.distributed import World
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.preference.simpo import SimPOTrainer
from arctic_hydra.trainer.sft import SFTTrainer
from tests.command import SMALL, only_run, run
from tests.converter import lab
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, pairs, tiny_factory

DATA = documents([12] * 8, [4] * 8)


def test_each_moment_has_two_events() -> None:
    assert len(EVENTS) == len(set(EVENTS)) == 2 * len(MOMENTS) + 2
    assert {"on_step_start", "on_step_end", "on_log", "on_exception"} < set(EVENTS)
    assert set(REPLACES) < set(EVENTS)


def test_the_page_lists_every_event_and_what_it_replaces(repository) -> None:
    page = (repository / "docs" / "extending" / "callbacks.md").read_text()
    rows = re.findall(r"^\| `(on_\w+)` \|.*\|(.*)\|$", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(EVENTS)
    replaced = {name: re.match(r" *`(\w+)`", last) for name, last in rows}
    assert {name: found[1] for name, found in replaced.items() if found} == REPLACES


def test_a_misspelt_event_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Late.on_steps_end is not an event; did you mean on_step_end\?"):

        class Late(Callback):
            def on_steps_end(self, trainer, facts):
                pass


def test_an_event_that_does_not_take_trainer_and_facts_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(
        TypeError, match=r"Short.on_step_end cannot .*; declare `def on_step_end\(self, trainer, facts\)`"
    ):

        class Short(Callback):
            def on_step_end(self, trainer):
                pass

    class Fitting(Callback):
        @staticmethod
        def on_step_start(trainer, facts):
            pass

        @classmethod
        def on_step_end(cls, trainer, facts):
            pass

        def on_log(self, *given, **named):
            pass


class Acting(Callback):
    """Returns the value of its field at every event of interest."""

    only_observes: ClassVar[bool] = False

    def __init__(self, value):
        self.value = value

    def on_loss_end(self, trainer, facts):
        return self.value(facts) if callable(self.value) else self.value

    on_step_end = on_log = on_loss_end


class Observing(Acting):
    only_observes: ClassVar[bool] = True


def test_values_replace_a_fact_in_the_order_of_the_callbacks() -> None:
    facts = {"loss": torch.tensor(2.0)}
    double, none, add = Acting(lambda held: held["loss"] * 2), Acting(None), Acting(lambda held: held["loss"] + 1)
    fire([double, none, add], "loss_end", None, facts)  # type: ignore[arg-type]
    assert float(facts["loss"]) == 5.0


def test_a_callback_that_only_observes_and_finishes_the_run_is_a_warning(caplog) -> None:
    class Quiet(Callback):
        def on_log(self, trainer, facts):
            trainer.stop("enough", finished=True)

    class Acting(Quiet):
        only_observes: ClassVar[bool] = False

    for cls, warnings in ((Acting, 0), (Quiet, 1)):
        trainer = SFTTrainer()
        trainer.set_callbacks([cls()], World.from_env())
        for _ in range(2):
            trainer.notify("log", trainer, {"metrics": {}})
        assert len(caplog.records) == warnings
    assert "Quiet finished the run, but only observes" in caplog.text


@pytest.mark.parametrize(
    ("callback", "event", "facts", "message"),
    [
        (Acting(1), "step_end", {}, "Acting.on_step_end returned a int, but a value replaces nothing at this event; return None"),
        (Observing(1), "loss_end", {"loss": 2}, "on_loss_end returned a int, which would replace 'loss', but Observing only"),
        (Acting(1.0), "loss_end", {"loss": torch.tensor(1.0)}, "returned a float, expected a Tensor to replace 'loss', or None"),
        (Observing({"step": 1}), "log", {"metrics": {"step": 1, "loss": 2.0}}, "returned a dict, which lacks loss; return a copy"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_replace_anything_is_an_error(callback, event, facts, message) -> None:
    with pytest.raises(TypeError) as caught:
        fire([callback], event, None, facts)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_value_of_another_kind_is_an_error_that_names_the_event() -> None:
    for event, fact, value, problem in (
        (
            "create_optimizer_end",
            "optimizer",
            5,
            "returned a int, which lacks param_groups, step, expected what can replace",
        ),
        ("load_end", "rows", 5, "returned a int, which lacks __len__, expected what can replace 'rows'"),
        ("split_end", "examples", 5, "returned a int, expected two arrays of indices to replace 'examples'"),
        ("log", "metrics", {"t": torch.ones(1)}, "returned a dict, whose t is a Tensor, expected a number or a text"),
    ):
        given = {"only_observes": False, f"on_{event}": lambda self, trainer, facts, value=value: value}
        with pytest.raises(TypeError, match=f"Own.on_{event} {re.escape(problem)}"):
            fire([type("Own", (Callback,), given)()], event, None, {fact: {}})  # type: ignore[arg-type]


def _noting(name):
    def note(self, trainer, facts):
        self.heard.append((name, {**facts, "done": trainer.global_step}))

    return note


class Ledger(Callback):
    """Keeps every event, in order, with its facts."""

    def __init__(self):
        self.heard = []

    for _name in EVENTS:
        locals()[_name] = _noting(_name)


def _kind(value):
    return value if isinstance(value, int | float | str | bool) else type(value).__name__


def _plain(heard):
    return [(name, {key: _kind(value) for key, value in facts.items() if key != "component"}) for name, facts in heard]


def _loop(folder):
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "eval_data": DATA[:2], "eval_at_end": False}
    trainer = make_trainer(DATA, folder, eval_frequency=2, **settings)
    checkpoint = DeepSpeedCheckpoint(save_every_n_steps=1, save_end_of_training=True)
    checkpoint.bind(trainer.tools.state)
    trainer.tools.checkpoints.append(checkpoint)
    ledger = Ledger()
    trainer.set_callbacks([ledger], trainer.world)
    trainer.attach(trainer)
    trainer.train()
    lines = [facts["metrics"] for name, facts in ledger.heard if name == "on_log"]
    return _plain(ledger.heard), lines, trainer.last_metrics, trainer.last_evaluation


def test_each_event_of_the_loop_hands_over_what_it_is_about(tmp_path):
    [(heard, lines, last, evaluation)] = run_ranks(1, _loop, tmp_path)
    micro_batch = ["on_loss_start", "on_loss_end", "on_backward_start", "on_backward_end"]
    step = ["on_step_start", *micro_batch, *micro_batch, "on_step_end", "on_log"]
    save = ["on_checkpoint_start", "on_save_start", "on_save_end", "on_checkpoint_end"]
    evaluate = ["on_evaluate_start", "on_evaluate_end", "on_log"]
    start = ["on_train_start", *evaluate, "on_epoch_start"]
    assert [name for name, _ in heard] == [
        *start,
        *step,
        *save,
        *step,
        *evaluate,
        "on_epoch_end",
        *save,
        "on_train_end",
    ]
    facts = dict(heard)
    about = {"engine": "DeepSpeedEngine", "loader": "MemoryLoader"}
    assert facts["on_train_start"] == {**about, "eval_loader": "MemoryLoader", "done": 0}
    assert facts["on_epoch_start"] == {"epoch": 0, "done": 0}
    assert facts["on_step_start"] == {"window": "StepBatch", "counts": "dict", "done": 1}
    ended = facts["on_step_end"]
    assert ended.keys() == {"window", "counts", "loss_sum", "grad_norm", "applied", "learning_rate", "done"}
    assert ended["applied"] is True and ended["loss_sum"] == "Tensor" and ended["grad_norm"] == last["grad_norm"]
    assert facts["on_loss_start"] == {"batch": "Batch", "done": 1}
    assert facts["on_loss_end"] == facts["on_backward_start"] == {"batch": "Batch", "loss": "Tensor", "done": 1}
    assert facts["on_evaluate_end"] == {**about, "metrics": "dict", "done": 2}
    assert facts["on_save_start"] == {"engine": "DeepSpeedCheckpoint", "path": "PosixPath", "done": 2}
    assert [line["step"] for line in lines] == [0, 1, 2, 2]
    assert lines[2] == last and lines[3].items() > evaluation.items()


class Scale(Callback):
    """Multiplies each loss and adds a figure to each log line."""

    only_observes: ClassVar[bool] = False

    def __init__(self, by):
        self.by = by

    def on_step_start(self, trainer, facts):
        for group in trainer.tools.engine.optimizer.param_groups:
            group["lr"] = self.by / 64

    def on_loss_start(self, trainer, facts):
        assert isinstance(facts["batch"], Batch)
        return facts["batch"]

    def on_loss_end(self, trainer, facts):
        return facts["loss"] * self.by

    def on_evaluate_end(self, trainer, facts):
        return {**facts["metrics"], "eval/own": 7.0}

    def on_log(self, trainer, facts):
        return {**facts["metrics"], "own": self.by}


def _scaled(folder, *factors):
    trainer = make_trainer(DATA, folder, clipping=0.0, epochs=1, eval_data=DATA[:2], train_iters=1)
    rows = []
    trainer._record = rows.append
    trainer.set_callbacks([Scale(by) for by in factors], trainer.world)
    trainer.attach(trainer)
    trainer.train()
    return rows, trainer.last_evaluation


def test_a_replaced_loss_is_the_one_that_trains_and_a_replaced_line_the_one_that_is_written(tmp_path):
    [(plain, _)] = run_ranks(1, _scaled, tmp_path)
    [(scaled, evaluation)] = run_ranks(1, _scaled, tmp_path, 2.0, 3.0)
    assert scaled[1]["grad_norm"] == pytest.approx(6 * plain[1]["grad_norm"])
    assert scaled[1]["loss"] == pytest.approx(6 * plain[1]["loss"])
    assert scaled[1]["lr"] == 3 / 64, "the one that the step has used, also where it is not the schedule's"
    assert [row["own"] for row in scaled] == [3.0, 3.0, 3.0], "the last callback's"
    assert evaluation["eval/own"] == scaled[-1]["eval/own"] == 7.0


class Masker(Callback):
    """Takes the first supervised token out of each batch."""

    only_observes: ClassVar[bool] = False

    def on_loss_start(self, trainer, facts):
        return facts["batch"].only(slice(1, None))


def _masked(folder, data, trainer_class):
    trainer = make_trainer(data, folder, trainer_class=trainer_class, train_iters=2)
    trainer.set_callbacks([Masker()], trainer.world)
    trainer.attach(trainer)
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return trainer.global_step


def test_a_replaced_batch_keeps_its_units_which_are_those_of_the_trainer(tmp_path):
    given = "on_loss_start returned a batch with 3 units, expected 4 as in the batch that it replaces"
    assert run_ranks(1, _masked, tmp_path, DATA, SFTTrainer)[0].startswith(given)
    assert run_ranks(1, _masked, tmp_path, pairs([(4, 5), (3, 6)]), SimPOTrainer) == [2]


class Exchange(Callback):
    """Replaces the optimizer."""

    only_observes: ClassVar[bool] = False

    def on_create_optimizer_end(self, trainer, facts):
        self.made = torch.optim.AdamW(facts["optimizer"].param_groups, lr=1e-3)
        return self.made


def _exchanged(folder, model):
    run, _ = lab.compose_run(f"checkpoint=[] data.cache_dir={folder / 'cache'}", model)
    exchange, seen = Exchange(), []
    run.callback = {"exchange": exchange}
    run.attach(run.trainer)
    run.model.post_optimizer_build = lambda optimizer, model: seen.append(optimizer)
    (folder / "run.json").write_text("{}")
    with startup.report_exceptions(run, folder):
        runner.build(run, folder, StopRequest(folder / "STOP"))
    return [optimizer is exchange.made for optimizer in seen]


def test_the_model_gets_the_optimizer_that_a_callback_made(tmp_path):
    lab.warm()
    assert run_ranks(1, _exchanged, tmp_path, lab.save_model(tmp_path / "model")) == [[True]]


class Stopper(Callback):
    """Asks for the end after step 2, on the last rank only."""

    def __init__(self, finished):
        self.finished = finished

    def on_step_end(self, trainer, facts):
        if trainer.global_step == 1 and trainer.world.rank == trainer.world.size - 1:
            trainer.stop("seen enough", finished=self.finished)
            trainer.stop("too late", finished=not self.finished)


def _stopped(folder, finished):
    trainer = make_trainer(DATA, folder, eval_data=DATA[:2], stage=2)
    checkpoint = DeepSpeedCheckpoint()
    checkpoint.bind(trainer.tools.state)
    trainer.tools.checkpoints.append(checkpoint)
    trainer.set_callbacks([Stopper(finished)], trainer.world)
    trainer.attach(trainer)
    trainer.train()
    saved = [path.name for path in sorted((folder / "checkpoints").glob("step-*"))]
    done = (trainer.global_step, trainer.stop_reason, trainer.training_finished)
    again = make_trainer(DATA, folder, eval_data=DATA[:2], stage=2)
    checkpoint = DeepSpeedCheckpoint(save_end_of_training=True)
    checkpoint.bind(again.tools.state)
    if saved:
        checkpoint.load()
        again.setup(again.tools)
        again.train()
    return done, trainer.last_evaluation["step"], saved, again.global_step


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_on_one_rank_ends_all_of_them(ranks, tmp_path):
    steps = len(DATA) // ranks
    for done, evaluated, saved, again in run_ranks(ranks, _stopped, tmp_path / "stopped", False):
        assert done == (2, "seen enough", False)
        assert (evaluated, saved, again) == (0, ["step-00000002"], steps), "resumable, and the next start goes on"
    for done, evaluated, saved, _ in run_ranks(ranks, _stopped, tmp_path / "finished", True):
        assert done == (2, "seen enough", True)
        assert (evaluated, saved) == (2, []), "evaluated as after the last step; this engine saves nothing there"


ENDER = """
from typing import ClassVar

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component


@component(group="callback", name="ender")
class Ender(Callback):
    only_observes: ClassVar[bool] = False

    def on_train_start(self, trainer, facts):
        trainer.stop("nothing to do", finished=True)
"""


def test_a_run_that_is_finished_before_its_first_step_exports_the_weights_it_began_with(tmp_path):
    (tmp_path / "ender.py").write_text(ENDER)
    done = run(f"{SMALL} code=ender.py callback=[code:ender] tracking=[]", tmp_path)
    assert "finished 0 steps" in done.stdout and "nothing to do" in done.stdout
    run_dir = only_run(tmp_path)
    assert (run_dir / "export" / "model.safetensors").exists()


def _finished_twice(folder):
    found = []
    for start in (1, 2):
        trainer = make_trainer(DATA, folder, eval_data=DATA[:2])
        checkpoint = DeepSpeedCheckpoint(save_end_of_training=True)
        checkpoint.bind(trainer.tools.state)
        checkpoint.load()
        trainer.setup(trainer.tools)
        trainer.tools.checkpoints.append(checkpoint)
        trainer.set_callbacks([Stopper(True)] if start == 1 else [], trainer.world)
        trainer.attach(trainer)
        trainer.train()
        found.append((trainer.global_step, trainer.training_finished, trainer.stop_reason))
    return found


def test_a_start_after_a_finished_run_does_not_train_on(tmp_path):
    assert run_ranks(1, _finished_twice, tmp_path) == [[(2, True, "seen enough")] * 2]


def _built(folder, model, callbacks):
    """Build a run with callbacks, three times: cold, warm, and with another cache key."""
    found = []
    for made in callbacks:
        run, _ = lab.compose_run(f"checkpoint=[] data.cache_dir={folder / 'cache'}", model)
        run.callback = {"mine": made}
        run.attach(run.trainer)
        run_dir = folder / str(len(found))
        run_dir.mkdir()
        (run_dir / "run.json").write_text("{}")
        with startup.report_exceptions(run, run_dir):
            trainer, _, _ = runner.build(run, run_dir, StopRequest(run_dir / "STOP"))
        weight = trainer.tools.engine.module.get_output_embeddings().weight
        found.append(
            (_plain(getattr(made, "heard", [])), trainer.tools.loader.summary()["examples"], float(weight.abs().sum()))
        )
    return found


class Shortener(Ledger):
    """Keeps the first rows and zeroes the head."""

    only_observes: ClassVar[bool] = False

    def on_load_end(self, trainer, facts):
        return None if facts["cached"] else facts["rows"].take(range(30))

    def on_create_model_end(self, trainer, facts):
        facts["model"].get_output_embeddings().weight.data.zero_()
        return facts["model"]


def test_events_of_construction_hand_over_what_was_made_on_warm_caches_too(tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    [[cold, warm, acting, plain]] = run_ranks(1, _built, tmp_path, model, [Ledger(), Ledger(), Shortener(), Callback()])
    for heard, examples, _ in (cold, warm):
        names = [name for name, _ in heard]
        assert [name for name in names if "load_" in name or "process" in name] == [
            "on_load_start", "on_load_end", "on_process_start", "on_process_end"
        ]  # fmt: skip
        starts = [name.removesuffix("_start") for name in names if name.endswith("_start")]
        assert starts == [f"on_{moment}" for moment in (
            "init create_tokenizer create_loader load process split create_config create_model create_optimizer create_scheduler"
        ).split()]  # fmt: skip
        facts = dict(heard)
        assert facts["on_process_end"]["store"] == "TokenStore"
        assert facts["on_split_end"]["examples"] == "tuple"
        assert facts["on_create_model_start"]["config"] == facts["on_create_config_end"]["config"] == "LlamaConfig"
        assert (
            facts["on_create_optimizer_start"]["model"] == facts["on_create_model_end"]["model"] == "LlamaForCausalLM"
        )
        assert facts["on_create_scheduler_end"].keys() > {"optimizer", "scheduler"}
        assert facts["on_create_loader_end"].keys() > {"tokenizer", "loader", "eval_loader"}
        assert examples == plain[1]
    assert (dict(cold[0])["on_load_end"]["cached"], dict(warm[0])["on_load_end"]["cached"]) == (False, True)
    assert not dict(acting[0])["on_process_end"]["cached"], "what a callback replaces has its own cache entry"
    assert 0 < acting[1] < plain[1] and acting[2] == 0.0 < plain[2]


def test_an_error_in_on_exception_names_the_run_directory(tmp_path):
    ledger = Ledger()
    run = SimpleNamespace(trainer=lab.compose_run("", None)[0].trainer, callback={"ledger": ledger})
    with pytest.raises(OSError, match="gone"), startup.report_exceptions(run, tmp_path):  # type: ignore[arg-type]
        raise OSError("gone")
    assert [(name, facts["run_dir"]) for name, facts in ledger.heard] == [("on_exception", tmp_path)]


class Clamp(Callback):
    """Sets one weight after a step, and reads it later."""

    def __init__(self):
        self.values = []

    def on_step_end(self, trainer, facts):
        with trainer.weights("norm.weight", "lm_head|embed_tokens", writes=trainer.global_step == 0) as weights:
            if trainer.global_step == 0 and trainer.world.is_main:
                weights["model.norm.weight"].fill_(0.2501)
            self.values.append({name: value.clone() for name, value in weights.items()})
        with (
            pytest.raises(Exception, match="trainer.weights: 'nothing' matches no parameter"),
            trainer.weights("nothing"),
        ):
            pass


def _clamped(folder):
    found = {}
    for stage in (0, 1, 2, 3):
        for dtype in ("fp32", "bf16"):
            trainer = make_trainer(DATA, folder, stage=stage, lr=1e-6, model=tiny_factory(dtype=dtype), train_iters=2)
            clamp = Clamp()
            trainer.set_callbacks([clamp], trainer.world)
            trainer.attach(trainer)
            trainer.train()
            found[stage, dtype] = clamp.values[-1]["model.norm.weight"], full_weights(trainer)["model.norm.weight"]
    return found


def test_weights_are_whole_and_writable_at_every_stage(tmp_path):
    for found in run_ranks(2, _clamped, tmp_path):
        for (_, dtype), (master, shown) in found.items():
            assert master.shape == shown.shape == (32,)
            assert torch.allclose(master, torch.full((32,), 0.2501), atol=1e-5), (
                "fp32 at every stage, after another step"
            )
            precision = torch.bfloat16 if dtype == "bf16" else torch.float32
            assert torch.equal(shown, master.to(precision).float())
