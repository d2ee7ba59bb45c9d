"""The command line: composes and checks a config, writes it into the run directory, and starts the ranks.

Imports neither torch nor deepspeed, so that `--help`, `--cfg job` and config errors take a fraction of a second.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser  # Hydra's own flags, so that none is missing here
from omegaconf import DictConfig, OmegaConf

from arctic_hydra import __version__, component, config, redaction
from arctic_hydra.cli import compose, help, multirun, search_path
from arctic_hydra.cli.overrides import flags, is_hydra_override, normalize
from arctic_hydra.cli.run import run_one
from arctic_hydra.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED_EARLY,
    ArcticHydraError,
    ConfigError,
    print_error,
)
from arctic_hydra.launch.job import Job
from arctic_hydra.run_directory import PROGRAM
from arctic_hydra.stopping import SIGNALS


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 75 stopped early and resumable, 1 failed, 2 bad config."""
    arguments = [normalize(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    redaction.protect(arguments)
    try:
        component.load_extensions()
        code = _dispatch(arguments)
        if code == EXIT_STOPPED_EARLY:
            # Another interrupt while the interpreter exits would replace the exit code.
            atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
        return code
    except ArcticHydraError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
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
        raise ConfigError(f"--config-dir: got {options.config_dir!r}, not a directory")
    for flag, value in (("--config-path", options.config_path), ("--experimental-rerun", options.experimental_rerun)):
        if value:
            raise ConfigError(f"{flag}: has no effect here; add options and whole configs with --config-dir DIR")
    if options.hydra_help or options.info or options.shell_completion:
        return _hydra(["--hydra-help"] if options.hydra_help else arguments, name, _not_run)
    if options.multirun and not (options.help or options.cfg):
        return multirun.execute(options.overrides, name, options.config_dir, run_one)
    if options.help:
        help.print_page(PROGRAM, [item for item in options.overrides if "=" not in item])
        return EXIT_DONE
    cfg = compose.compose_config(options.overrides, name, options.config_dir)
    job = compose.without_hydra(cfg)
    if options.cfg:
        Job.of(compose.resolved(job), options.overrides)
        return _show(options, cfg, job)
    # Hydra itself ignores the launcher without -m. A launcher that an experiment selects applies to training only.
    launched = cfg.task is config.Task.train or any(is_hydra_override(item, "launcher") for item in options.overrides)
    if launched and cfg.hydra.runtime.choices["hydra/launcher"] != "basic":
        return multirun.execute(options.overrides, name, options.config_dir, run_one)  # a sweep of one job
    for override in options.overrides:
        if is_hydra_override(override) and not is_hydra_override(override, "searchpath"):
            raise ConfigError(
                f"{override.partition('=')[0]}: has no effect on a single run; pass -m for a sweep, or remove it"
            )
    return run_one(job, [*flags(name, options.config_dir), *options.overrides])


def _show(options: Any, cfg: DictConfig, job: DictConfig) -> int:
    tree = {"job": job, "hydra": OmegaConf.create({"hydra": cfg.hydra}), "all": cfg}[options.cfg]
    node = OmegaConf.select(tree, options.package) if options.package and options.package != "_global_" else tree
    if node is None:
        raise ConfigError(f"--package {options.package}: there is no such node in the composed config")
    print(OmegaConf.to_yaml(node, resolve=options.resolve) if OmegaConf.is_config(node) else f"{node}\n", end="")
    return EXIT_DONE


def _hydra(arguments: list[str], name: str, task: Any) -> int:
    """Pass the command line to Hydra itself, which exits on errors."""
    import hydra

    sys.argv = [PROGRAM, *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    hydra.main(config_path=search_path.conf_dir(), config_name=name, version_base="1.3")(task)()
    return EXIT_DONE


def _not_run(cfg: DictConfig) -> None:
    raise AssertionError("this mode of Hydra does not run the task")


if __name__ == "__main__":
    raise SystemExit(main())
