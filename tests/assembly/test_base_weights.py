"""Where the base weights of an adapter are found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from arctic_hydra.assembly import base_weights
from tests.composing import built


def test_the_base_of_an_adapter_is_where_transformers_finds_the_weights(tmp_path: Path) -> None:
    assert base_weights.adapter_base(built()) == (None, None), "the embedded model is stored nowhere"
    assert base_weights.adapter_base(built("model=hf", "model.name_or_path=org/x", "model.revision=r1")) == (
        "org/x",
        "r1",
    )
    local = base_weights.adapter_base(built("model=hf", f"model.name_or_path={tmp_path}", "model.revision=r1"))
    assert local == (str(tmp_path), None), "a directory has no revisions"


def test_an_adapter_of_another_base_is_a_warning(tmp_path, caplog):
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/first"}')
    for name, told in (("lab/first", 0), ("lab/second", 1)):
        run = SimpleNamespace(init_from=None, model=SimpleNamespace(weights_source=(name, None)))
        base_weights.warn_of_another_base(run, tmp_path)
        assert len(caplog.records) == told
    assert "trained over lab/first, and is loaded over lab/second" in caplog.text
