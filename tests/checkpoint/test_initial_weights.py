"""Weights that a run starts from: found on disk, and rejected if they do not fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.checkpoint import initial_weights
from arctic_hydra.errors import CheckpointError


def make_model(libraries: Any, width: int = 2, tied: bool = False) -> Any:
    torch = libraries.torch
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width))
    if tied:
        model[1].weight = model[0].weight
    return model


def test_exports_and_checkpoints_are_recognized_by_their_files(libraries, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("model.safetensors", initial_weights.ADAPTER):
        (tmp_path / name[:5]).mkdir()
        save_file({"x": libraries.torch.ones(2)}, tmp_path / name[:5] / name)
    whole, adapter = tmp_path / "model", tmp_path / "adapt"
    assert initial_weights.find_weights(whole) == initial_weights.Weights(whole, None)
    assert [initial_weights.is_full_model_export(path) for path in (whole, adapter)] == [True, False]
    assert initial_weights.read_weights(initial_weights.find_weights(whole))["x"].tolist() == [1, 1]
    (whole / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model/model.safetensors cannot be read"):
        initial_weights.read_weights(initial_weights.find_weights(whole))
    with pytest.raises(CheckpointError, match="nothing cannot be used: there is no such directory"):
        initial_weights.find_weights(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../../x.safetensors"}}', '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named_and_leads_nowhere_else(text, tmp_path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: .*; export the model again"):
        initial_weights.read_weights(initial_weights.find_weights(tmp_path))


def test_the_files_of_a_snapshot_may_be_links(libraries, tmp_path) -> None:
    """As in the hub's cache, also where a model has several files."""
    from safetensors.torch import save_file

    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": libraries.torch.ones(2)}, tmp_path / "blobs" / "0")
    (tmp_path / "blobs" / "1").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    for blob, name in (("0", "model-1.safetensors"), ("1", "model.safetensors.index.json")):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{blob}")
    found = initial_weights.find_weights(tmp_path / "snapshot")
    assert initial_weights.read_weights(found)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_set(tied, libraries, tmp_path) -> None:
    source, target = (make_model(libraries, tied=tied) for _ in range(2))
    stored = dict(source.state_dict())
    if tied:
        del stored["1.weight"]  # a checkpoint holds tied weights once
    initial_weights.load_into(target, stored, initial_weights.Weights(tmp_path, 3))
    assert all(value.equal(target.state_dict()[name]) for name, value in source.state_dict().items())


def test_weights_of_another_model_are_rejected_with_the_differences(libraries, tmp_path) -> None:
    model = make_model(libraries)
    stored = {**make_model(libraries, width=3).state_dict(), "2.weight": libraries.torch.ones(1)}
    del stored["1.bias"]
    expected = (
        r"do not fit this model: the model has no 2.weight; it lacks 1.bias; "
        r"the shapes differ of 0.weight \(\(3, 3\), model \(2, 2\)\), .*Use the model config"
    )
    with pytest.raises(CheckpointError, match=expected):
        initial_weights.load_into(model, stored, initial_weights.Weights(tmp_path, 3))


def test_frozen_weights_must_be_those_of_the_training(libraries, tmp_path) -> None:
    from arctic_hydra.checkpoint.full_weights import checksum

    model = make_model(libraries)
    trained = {name: value for name, value in model.state_dict().items() if name.startswith("1.")}
    digest = checksum(model, ["0.weight", "0.bias"])
    initial_weights.load_into(model, trained, initial_weights.Weights(tmp_path, 3, digest))
    model[0].bias.data += 1
    with pytest.raises(CheckpointError, match=rf"checksum {digest}, here "):
        initial_weights.load_into(model, trained, initial_weights.Weights(tmp_path, 3, digest))
    initial_weights.load_into(model, trained, initial_weights.Weights(tmp_path, 3, initial_weights.UNCHECKED))


def _adapted(libraries: Any, **settings: Any) -> Any:
    import peft

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **settings}
    return peft.get_peft_model(
        libraries.Llama(libraries.LlamaConfig(vocab_size=16, **sizes)), peft.LoraConfig(**config)
    )


def test_an_exported_adapter_must_have_the_settings_and_names_of_the_run(libraries, tmp_path) -> None:
    _adapted(libraries).save_pretrained(tmp_path)
    start = initial_weights.find_weights(tmp_path)
    stored, own = initial_weights.read_weights(start), _adapted(libraries)
    initial_weights.load_into(own, stored, start)
    with pytest.raises(CheckpointError, match=r"holds an adapter, but this run has none; .* \(LORA, r=2\)$"):
        initial_weights.load_into(libraries.Llama(own.get_base_model().config), stored, start)
    [name] = [name for name in stored if "lora_A" in name]
    assert own.state_dict()[name.replace("lora_A", "lora_A.default")].equal(stored[name])
    for settings, expected in (
        ({"lora_alpha": 8}, "the adapter was trained with lora_alpha=4, this run has 8"),
        ({"use_rslora": True}, "the adapter was trained with use_rslora=False, this run has True"),
        (
            {"target_modules": ["q_proj", "v_proj"]},
            r"it lacks \S+v_proj.lora_A.default.weight, \S+v_proj.lora_B.default",
        ),
    ):
        with pytest.raises(CheckpointError, match=expected):
            initial_weights.load_into(_adapted(libraries, **settings), stored, start)
    names = {name: value for name, value in own.state_dict().items() if "lora" in name}
    trained = initial_weights.Weights(
        tmp_path / "x", 3, initial_weights.UNCHECKED, adapter=initial_weights.adapter_settings(own)
    )
    initial_weights.load_into(own, names, trained)
    for settings, expected in (
        ({"lora_alpha": 8}, "trained with lora_alpha=4"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            initial_weights.load_into(_adapted(libraries, **settings), names, trained)
    (tmp_path / initial_weights.ADAPTER_CONFIG).write_text("[1]")
    with pytest.raises(CheckpointError, match="adapter_config.json cannot be read: it is not a JSON object"):
        initial_weights.load_into(own, stored, start)
