"""Reading peft's types from its source gives what importing peft gives."""

from __future__ import annotations

import dataclasses

from arctic_hydra.converter.peft import catalog


def test_types_and_fields_are_those_of_the_imported_package():
    import peft

    found = catalog.types()
    configs = {kind.name: config for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    assert found.keys() == configs.keys()
    for name, config in configs.items():
        assert found[name] == {field.name for field in dataclasses.fields(config)}, name
