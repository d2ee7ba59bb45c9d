"""Where configs are found: this package and `--config-dir`."""

from __future__ import annotations

from arctic_hydra.__main__ import main


def test_a_whole_config_and_the_launcher_of_an_experiment_are_used(tmp_path, capsys):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "whole.yaml").write_text("defaults: [config, _self_]\nseed: 5\n")
    (tmp_path / "mine" / "experiment" / "onslurm.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/launcher: slurm]\nhydra: {launcher: {dry_run: true}}\n"
    )
    assert main(["--config-dir", "mine", "--config-name", "whole", "--cfg", "job"]) == 0
    assert "\nseed: 5\n" in capsys.readouterr().out
    assert main(["--config-name", "whole"]) == 2
    assert "--config-name: got 'whole', but neither arctic_hydra nor --config-dir has" in capsys.readouterr().err
    assert main(["--config-dir", "mine", "experiment=onslurm"]) == 0
    assert "#SBATCH --nodes=1" in capsys.readouterr().out and not (tmp_path / "outputs").exists()
    assert main(["--config-dir", "mine", "experiment=onslurm", "task=check"]) == 0
    assert "the configuration is valid" in capsys.readouterr().out
    assert main(["--config-dir", "mine", "experiment=onslurm", "task=check", "hydra.launcher.dry_run=false"]) == 2
    assert "task: got check, which runs on this machine" in capsys.readouterr().err
