"""Converts a recipe of ArcticTraining into an experiment: python -m arctic_hydra.migrate recipe.yaml.

For a config of another project, lists its keys in arctic_hydra's terms.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path

from arctic_hydra import entry_point, redaction
from arctic_hydra.config import NAME
from arctic_hydra.errors import EXIT_DONE, ConfigError, printable
from arctic_hydra.migrate import arctictraining, key_map, recipe
from arctic_hydra.migrate.experiment import Experiment


def main(argv: list[str] | None = None) -> int:
    """Convert or list what the arguments name; return the exit code: 0 done, 2 for what cannot be converted."""
    parser = argparse.ArgumentParser(prog="python -m arctic_hydra.migrate", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="YAML file of the other project")
    parser.add_argument("--out", metavar="FILE", help="write the experiment to FILE, such as experiment/my_recipe.yaml")
    parser.add_argument(
        "--table", choices=key_map.PROJECTS, help="print all keys of a project in arctic_hydra's terms, in Markdown"
    )
    options = parser.parse_args(argv)
    if not (options.table or options.recipe):
        parser.error("the path of a recipe is missing")
    if options.table and (options.recipe or options.out):
        parser.error("--table: lists the keys of a project; pass no recipe and no --out with it")

    def run() -> int:
        if options.table:
            print(key_map.page(options.table), end="")
        else:
            _migrate(options.recipe, options.out)
        return EXIT_DONE

    return entry_point.exit_code(run)


def _migrate(path: str, out: str | None) -> None:
    read = recipe.load(path)
    project = recipe.project_of(read)
    if not project:
        raise ConfigError(
            f"{path}: is not a recipe of ArcticTraining, TRL, Axolotl or LLaMA-Factory; expected keys such as model and data"
        )
    if project != "arctictraining":
        if out is not None:
            raise ConfigError(
                f"--out: {path} is a config of {key_map.PROJECTS[project]}, whose keys are only listed; leave out --out"
            )
        print(_listing(read, project))
        return
    target = _target(out, path)
    made = arctictraining.convert(read, target.stem, Path(path).name)
    command = f"python -m arctic_hydra --config-dir {shlex.quote(str(target.parent.parent))} experiment={target.stem}"
    text = made.to_yaml(command)
    if out is None:
        print(text)
        print(f"# with this in {target}:\n# {command}")
    else:
        try:
            with redaction.umask_of_user():  # experiments are shared
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written ({error.strerror}); name another file") from error
        print(f"written to {target}; run it with\n{command}")
    _warn(made)


def _target(out: str | None, path: str) -> Path:
    """Return the path of the experiment, which Hydra finds in a folder named experiment only."""
    target = Path(out or f"experiment/{recipe.experiment_name(path)}.yaml")
    if target.parent.name != "experiment" or target.suffix != ".yaml":
        raise ConfigError(
            f"--out: got {out}, expected a .yaml file in a folder named experiment, such as experiment/mine.yaml"
        )
    if not NAME.fullmatch(target.stem):
        valid = recipe.experiment_name(target.name)
        raise ConfigError(f"--out: got {out}, whose name no run can have; expected one such as experiment/{valid}.yaml")
    if out is not None and target.exists():
        raise ConfigError(f"--out: {out} exists; remove it, or name another file")
    return target


def _warn(made: Experiment) -> None:
    for entry in made.lost:
        print(printable(f"not carried over: {entry}", keep=""), file=sys.stderr)
    for entry in made.changed:
        print(printable(f"different here: {entry}", keep=""), file=sys.stderr)


def _listing(read: dict[str, object], project: str) -> str:
    """Return the keys of a config with arctic_hydra's terms for each."""
    lines = [f"keys of this config of {key_map.PROJECTS[project]} in arctic_hydra's terms:"]
    width = 2 + max(map(len, read))
    tables = dict.fromkeys((*recipe.tables_of(project), *key_map.PROJECTS))
    for key in read:
        mapped = next(iter(key_map.find(key, tuple(tables))), None)
        note = mapped.note.replace("`", "") if mapped else "unknown"
        said = f"{mapped.place}{f' ({note})' if note else ''}" if mapped and mapped.exists else f"- ({note})"
        lines += textwrap.wrap(
            f"  {key:<{width}}{said}", 79, subsequent_indent=" " * (width + 2), break_on_hyphens=False
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
