"""The start of a rank: errors reach the callbacks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from arctic_hydra.assembly.startup import report_exceptions
from arctic_hydra.callback.base import Callback
from arctic_hydra.trainer.sft import SFTTrainer


def test_an_error_in_on_exception_does_not_hide_the_one_before(tmp_path, caplog):
    class Clumsy(Callback):
        def on_exception(self, trainer, facts):
            assert facts["run_dir"] == tmp_path
            raise ZeroDivisionError("clumsy")

    run = SimpleNamespace(trainer=SFTTrainer(), callback={"clumsy": Clumsy()})
    with pytest.raises(OSError, match="the disk is gone"), report_exceptions(run, tmp_path):  # type: ignore[arg-type]
        raise OSError("the disk is gone")
    assert "a callback failed in on_exception" in caplog.text and "clumsy" in caplog.text
