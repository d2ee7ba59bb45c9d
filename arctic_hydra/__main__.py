"""The command line: composes and checks a config, writes it into the run directory, and starts the ranks.

Imports neither torch nor deepspeed, so that `--help`, `--cfg job` and config errors take a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from arctic_hydra import __version__, config, entry_point, redaction
from arctic_hydra.cli import command_line, hydra_parser, user_code
from arctic_hydra.cli.composition import compose, search_path
from arctic_hydra.cli.composition.compose_errors import translate_error
from arctic_hydra.cli.overrides import flags, normalize, of_first_job
from arctic_hydra.errors import EXIT_DONE, ConfigError
from arctic_hydra.launch.extended_run import with_overrides_of_extended_run
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction.masking import MASK, mask_settings
from arctic_hydra.redaction.secret_names import is_secret_name
from arctic_hydra.run_directory import PROGRAM


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 75 stopped early and resumable, 1 failed, 2 bad config."""
    arguments = sys.argv[1:] if argv is None else argv

    def run() -> int:
        typed = [normalize(argument) for argument in user_code.load(arguments)]
        return _dispatch(with_overrides_of_extended_run(typed))

    return entry_point.exit_code(run, arguments)


def _dispatch(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"arctic_hydra {__version__}")
        return EXIT_DONE
    options = command_line.parse(arguments)
    name = options.config_name
    if options.shell_completion:
        from arctic_hydra.cli.completion import shells

        print(shells.respond(options.overrides), end="")
        return EXIT_DONE
    if options.hydra_help or options.info:
        return _hydra(options, name)
    if options.multirun and not (options.help or options.cfg):
        return _sweep(options, name)
    if options.help:
        from arctic_hydra.cli.help import topics

        topics.print_help(PROGRAM, options.overrides, options.config_dir)
        return EXIT_DONE
    if options.multirun:
        print("this is the config of the first job of the sweep", file=sys.stderr)
        options.overrides = of_first_job(options.overrides)
    composed = compose.compose_config(options.overrides, name, options.config_dir)
    if options.cfg:
        Job.of(compose.with_paths(composed.job), options.overrides)
        return _show(options, composed)
    if command_line.is_launched(composed, options.overrides):
        return _sweep(options, name)  # of one job
    command_line.refuse_hydra_overrides(options.overrides)
    from arctic_hydra.cli.run import run_one

    answers = composed.job["task"] == config.Task.chat.name  # then standard output is for these only
    for line in composed.followed:
        print(f"default  {line}", file=sys.stderr if answers else sys.stdout)
    return run_one(composed.job, [*flags(name, options.config_dir), *options.overrides])


def _sweep(options: Any, name: str) -> int:
    from arctic_hydra.cli import multirun
    from arctic_hydra.cli.run import run_one

    return multirun.run_sweep(options.overrides, name, options.config_dir, run_one)


def _show(options: Any, composed: compose.Composed) -> int:
    """Print the composed config, with its interpolations unless `--resolve` is given."""
    tree = composed.unresolved
    if options.cfg == "job":
        compose.remove_hydra(tree)
    elif options.cfg == "hydra":
        tree = OmegaConf.create({"hydra": tree.hydra})
    with compose.closed_resolvers():
        try:
            node = OmegaConf.select(tree, options.package) if options.package not in (None, "_global_") else tree
            if node is None:
                raise ConfigError(f"--package {options.package}: there is no such node in the composed config")
            text = _yaml_without_secrets(node, options)
        except (OmegaConfBaseException, GrammarParseError) as error:  # the config itself is resolved already
            raise translate_error(error, [f"--package {options.package}"], None) from error
    print(text, end="")
    return EXIT_DONE


def _yaml_without_secrets(node: Any, options: Any) -> str:
    names = (options.package or "").split(".")
    if any(map(is_secret_name, names)):
        return f"{MASK}\n"
    if not OmegaConf.is_config(node):
        return f"{node}\n"
    shown = redaction.redact(OmegaConf.to_container(node, resolve=options.resolve))
    return OmegaConf.to_yaml(OmegaConf.create(shown))


def _hydra(options: Any, name: str) -> int:
    """Print what `--hydra-help` and `--info` ask Hydra for."""
    if options.info:
        compose.compose_config(options.overrides, name, options.config_dir)  # reports errors
    with search_path.hydra_with(options.config_dir), compose.closed_resolvers():
        hydra: Any = GlobalHydra.instance().hydra
        if options.hydra_help:
            parser = hydra_parser.parser()
            flag = next(action for action in hydra_parser.actions(parser) if action.dest == "shell_completion")
            flag.help = "Print the TAB completion for a shell: install=bash, install=zsh or install=fish"
            hydra.hydra_help(None, parser, argparse.Namespace(overrides=[]))
        elif options.info:
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                hydra.show_info(options.info, name, options.overrides)
            print(mask_settings(shown.getvalue()), end="")
    return EXIT_DONE


if __name__ == "__main__":
    raise SystemExit(main())
