"""Hydra's flags."""

from __future__ import annotations

from arctic_hydra.cli import hydra_parser


def test_flags_are_hydras_and_cannot_be_abbreviated():
    flags = {flag for action in hydra_parser.actions() for flag in action.option_strings}
    assert {"--help", "--multirun", "-m", "--config-name", "--cfg", "--shell-completion"} <= flags
    made = hydra_parser.parser()
    assert hydra_parser.actions(made)[0] is hydra_parser.actions(made)[0]
    assert made.parse_known_args(["--config", "a.yaml"])[1] == ["--config"]
