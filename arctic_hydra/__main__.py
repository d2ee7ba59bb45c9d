"""The command: composes a config once, checks it, writes it into the run directory, and starts the ranks.

Imports neither torch nor deepspeed: `--help`, `--cfg job` and a typo's error take a fraction of a second.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from arctic_hydra import __version__, component, compose, config, launch, multirun, nodes, record, usage
from arctic_hydra.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED_EARLY,
    ArcticHydraError,
    ConfigError,
    print_error,
)
from arctic_hydra.job import Job, conclude, has_stopped
from arctic_hydra.record import PROGRAM, relative
from arctic_hydra.redaction import redact
from arctic_hydra.stopping import SIGNALS
from arctic_hydra.tasks import report


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 75 stopped early and resumable, 1 failed, 2 bad config."""
    arguments = [compose.prepare(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        component.load_extensions()
        code = _dispatch(arguments)
        if code == EXIT_STOPPED_EARLY:
            # Another interrupt while the interpreter ends would replace the exit code.
            atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
        return code
    except ArcticHydraError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"arctic_hydra {__version__}")
        return EXIT_DONE
    options, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]}: there is no such option; see {PROGRAM} --help")
    name = options.config_name or "config"
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise ConfigError(f"--config-dir: got {options.config_dir!r}, which is no directory")
    for flag, value in (("--config-path", options.config_path), ("--experimental-rerun", options.experimental_rerun)):
        if value:
            raise ConfigError(f"{flag}: has no effect here; add options and whole configs with --config-dir DIR")
    if options.hydra_help or options.info or options.shell_completion:
        return _hydra(["--hydra-help"] if options.hydra_help else arguments, name, _not_run)
    if options.multirun and not (options.help or options.cfg):
        return multirun.execute(options.overrides, name, options.config_dir, run_one)
    if options.help:
        usage.print_page(PROGRAM, [item for item in options.overrides if "=" not in item])
        return EXIT_DONE
    cfg = compose.compose_config(options.overrides, name, options.config_dir)
    job = compose.without_hydra(cfg)
    if options.cfg:
        Job.of(job, options.overrides)
        return _show(options, cfg, job)
    # Hydra itself would ignore a launcher here. One that an experiment chooses is for its training: other tasks run here.
    launched = cfg.task is config.Task.train or any(compose.is_hydras(item, "launcher") for item in options.overrides)
    if launched and cfg.hydra.runtime.choices["hydra/launcher"] != "basic":
        return multirun.execute(options.overrides, name, options.config_dir, run_one)  # a sweep of one job
    for override in options.overrides:
        if compose.is_hydras(override) and not compose.is_hydras(override, "searchpath"):
            raise ConfigError(
                f"{override.partition('=')[0]}: has no effect on a single run; pass -m for a sweep, or remove it"
            )
    return run_one(job, [*compose.flags(name, options.config_dir), *options.overrides])


def _show(options: Any, cfg: DictConfig, job: DictConfig) -> int:
    tree = {"job": job, "hydra": OmegaConf.create({"hydra": cfg.hydra}), "all": cfg}[options.cfg]
    node = OmegaConf.select(tree, options.package) if options.package and options.package != "_global_" else tree
    if node is None:
        raise ConfigError(f"--package {options.package}: there is no such node in the composed config")
    print(OmegaConf.to_yaml(node, resolve=options.resolve) if OmegaConf.is_config(node) else f"{node}\n", end="")
    return EXIT_DONE


def run_one(cfg: DictConfig, overrides: list[str]) -> int:
    """Check one composed run, prepare its directory, start its ranks and report; return the exit code."""
    job = Job.of(cfg, overrides)
    run, directory = job.run, job.directory
    if problems := run.environment_problems():
        raise ConfigError(problems)
    machines = nodes.of(run, directory.path)
    if run.task is config.Task.check:
        from arctic_hydra.tasks import check

        lines, errors = check.look_at(job.tree)
        for error in errors:
            print_error(error)
        if errors:
            return max(error.exit_code for error in errors)
        print(f"the configuration is valid; it would run in {directory.path} on {run.world_size_wanted} rank(s)")
        print("\n".join(lines))
        return EXIT_DONE
    if run.task is config.Task.preview:
        from arctic_hydra.tasks import preview

        directory.create()
        print(f"written to {relative(preview.execute(run, directory.path))}")
        return EXIT_DONE
    if run.task is config.Task.report:
        _must_exist(job)
        print(f"written to {relative(report.write(directory))}")
        return EXIT_DONE
    if run.node_rank > 0:
        return _join(job, machines)
    if run.task is not config.Task.train:
        return _look_at(job, machines)
    data = job.data_digest()
    lock = job.open()
    if job.finished(data):
        result = directory.record()["result"]
        print(
            f"finished already: {relative(directory.path)} (step {result['step']}, objective {_number(result['objective'])})"
        )
        print("pass fresh=true to train it again from the start")
        job.tell_trackers(record.FINISHED)
        return EXIT_DONE
    if difference := job.write(data):
        print(difference)
    signals: list[int] = []
    code = launch.start_ranks(directory, run.ranks_per_node, lock, job.secrets(), machines, signals)
    code = _conclude(directory, code, signals)
    if directory.record()["status"] == record.FAILED:
        job.tell_trackers(record.FAILED)
    return code


def _join(job: Job, machines: nodes.Nodes | nodes.Hosts) -> int:
    """Start this machine's ranks of a run that the first machine's command writes; return the exit code."""
    run = job.run
    directory = job.directory if run.task is config.Task.train else job.directory.of_task(run.task.name)
    if run.task is config.Task.train and not run.fresh and directory.record().get("status") == record.FINISHED:
        print(f"finished already: {directory.path}")
        return EXIT_DONE
    signals: list[int] = []
    code = launch.start_ranks(directory, run.ranks_per_node, None, job.secrets(), machines, signals)
    stopped = bool(code) and has_stopped(directory, code, asked_to_stop=bool(signals))
    how = "was stopped" if stopped else "failed" if code else "is done"
    print(f"node {run.node_rank} of {run.nnodes} {how}; the command of node 0 tells how the run ended")
    if stopped or (not code and directory.result().get("status") == record.STOPPED):
        return EXIT_STOPPED_EARLY
    return EXIT_FAILED if code else EXIT_DONE


def _must_exist(job: Job) -> None:
    if not job.directory.path.is_dir():
        task = job.run.task
        other = "" if task is config.Task.report else ", or pass from_checkpoint=<path of a checkpoint or of a run>"
        raise ConfigError(
            f"task: got {task.name}, but {job.directory.path} does not exist: this very configuration was never trained; "
            f"repeat the training's overrides{other}"
        )


def _look_at(job: Job, machines: nodes.Nodes | nodes.Hosts) -> int:
    """Do a task on a checkpoint, in a folder of its own within the run's directory; return the exit code."""
    run, directory = job.run, job.directory
    if run.from_checkpoint is None:
        _must_exist(job)
    directory.create()
    lock = directory.lock()
    place = directory.of_task(run.task.name)
    place.create()
    place.forget_outcome()
    record.write_json(place.run_file, {"config": redact(job.tree)}, mode=0o600)
    ranks, where = (1, None) if run.task is config.Task.export else (run.ranks_per_node, machines)
    signals: list[int] = []
    return _conclude(place, launch.start_ranks(place, ranks, lock, job.secrets(), where, signals), signals)


def _conclude(directory: record.RunDirectory, code: int, signals: list[int]) -> int:
    """Write the end of the run into its record, tell the person, and return the exit code."""
    ending = conclude(directory, code, asked_to_stop=bool(signals))
    if ending.result:
        print_result(directory, ending.result)
    else:
        print(ending.details, file=sys.stderr if ending.status == record.FAILED else sys.stdout)
    return ending.exit_code


def print_result(directory: record.RunDirectory, result: dict[str, Any]) -> None:
    """Say how the run ended, where things are, and what to type next."""
    path = relative(directory.path)
    if result["status"] == record.STOPPED:
        print(f"stopped at step {result['step']} of {result['horizon']}: {result['stop_reason']}")
        saved = any((directory.path / "checkpoints").glob("step-*"))
        print("the same command resumes" if saved else "nothing was saved, so the same command starts over")
        return
    if "export" in result:
        print(f"exported {relative(Path(result['checkpoint']))} to {relative(Path(result['export']))}")
        return
    if "checkpoint" in result:
        print(f"evaluated {relative(Path(result['checkpoint']))}; all figures: {path / 'result.json'}")
        return
    print(f"finished {result['step']} steps; loss {_number(result['first_loss'])} -> {_number(result['last_loss'])}")
    first, last = result["first_evaluation"], result["last_evaluation"]
    if first and last:
        print(
            f"evaluation loss {_number(first['eval/loss'])} -> {_number(last['eval/loss'])}, accuracy {last['eval/accuracy']:.1%}"
        )
    print(f"run          {path}")
    found = [folder.parent.name for folder in sorted(directory.path.glob("*/tokenizer_config.json"))]
    export = next((name for name in found if "-step-" not in name), None)  # of the end, whatever it is called
    for label, name in (
        ("export", export),
        ("checkpoints", "checkpoints"),
        ("metrics", "metrics.jsonl"),
        ("report", report.PAGE),
    ):
        if name is not None and (directory.path / name).exists():
            print(f"{label:<12} {path / name}")
    if export is not None:
        is_adapter = (directory.path / export / "adapter_config.json").exists()
        # transformers loads adapters too, but gives their model no rows for added tokens.
        library, family = (
            ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
        )
        print(f"next: load it with {library}:")
        print(f"  {family}.from_pretrained({str(path / export)!r})")
    print("next: train longer, or on your own data:")
    limits = ("fresh=", "trainer.epochs=", "trainer.train_iters=", "trainer.min_iterations=", "trainer.exit_iteration=")
    overrides = [item for item in directory.record()["overrides"] if not item.startswith(limits)]
    longer = f"trainer.epochs={3 * max(1, round(result['progress']['epoch']))}"
    if any(item.startswith("trainer.train_iters=") for item in directory.record()["overrides"]):
        longer = f"trainer.train_iters={3 * result['step']}"  # a stream has no epochs to count
    print(f"  {shlex.join([*PROGRAM.split(), *overrides, longer])}")
    print(f"  {PROGRAM} data=json data.sources.json.path=<your.jsonl>")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _hydra(arguments: list[str], name: str, task: Any) -> int:
    """Hand the command line to Hydra itself, which exits where something fails."""
    import hydra

    sys.argv = [PROGRAM, *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    hydra.main(config_path=compose.conf_dir(), config_name=name, version_base="1.3")(task)()
    return EXIT_DONE


def _not_run(cfg: DictConfig) -> None:
    raise AssertionError("this mode of Hydra runs no job")


if __name__ == "__main__":
    raise SystemExit(main())
