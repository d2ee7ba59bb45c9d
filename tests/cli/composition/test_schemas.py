"""The schemas in Hydra's config store: complete, valid, and made when they are used."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from arctic_hydra import config
from arctic_hydra.cli.composition import compose, schemas
from arctic_hydra.component import check_schema, registered

OWN = {key: cls for key, cls in registered().items() if cls.__module__.startswith("arctic_hydra.")}


@pytest.mark.parametrize("key", [*OWN, None], ids=str)
def test_a_schema_can_be_made_of_each_component(key):
    """Registering one of ours does not check that, as it does for those of extensions."""
    check_schema(OWN[key] if key else config.Run)


def test_the_store_holds_the_schema_of_each_component():
    schemas.store_schemas()
    store = ConfigStore.instance()
    for group, option in OWN:
        assert store.list(f"schema/{group}").count(f"{option}.yaml") == 1
    entry = store.load("schema/optimizer/adamw.yaml")
    assert entry.provider == "arctic_hydra" and entry.node == OmegaConf.structured(OWN["optimizer", "adamw"])
    entry.node.lr = 5.0
    assert store.load("schema/optimizer/adamw.yaml").node.lr != 5.0
    assert deepcopy(store._load("schema/optimizer/adamw.yaml")).node == store.load("schema/optimizer/adamw.yaml").node
    with pytest.raises(AttributeError, match="nodes"):
        store._load("schema/optimizer/adamw.yaml").nodes  # noqa: B018


def test_a_composition_makes_the_schemas_that_it_uses():
    schemas._structured.cache_clear()
    compose.compose_config(["optimizer=muon", "deepspeed.gradient_clipping=0"], "config")
    made = schemas._structured.cache_info().currsize
    assert 10 < made < len(OWN) / 2
    compose.compose_config(["optimizer=muon", "seed=3"], "config")
    assert schemas._structured.cache_info().currsize == made
    compose.compose_config(["optimizer=adamw"], "config")
    assert schemas._structured.cache_info().currsize == made + 1
