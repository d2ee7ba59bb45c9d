"""Adds the `conf` packages of installed extensions to the search path of arctic_hydra, but not of other Hydra programs."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ExtensionSearchPath(SearchPathPlugin):
    """Appends `pkg://<package>.conf`, so that an extension adds options, but cannot shadow ours by accident."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the options of each extension if the composing program is arctic_hydra."""
        main = next((item.path for item in search_path.get_path() if item.provider == "main"), "") or ""
        from arctic_hydra.cli.composition.search_path import conf_dir
        from arctic_hydra.files.extensions import BROKEN_EXTENSIONS, extensions

        if main.removeprefix("file://") != conf_dir():
            return
        for point in extensions():
            package = point.module.partition(".")[0]
            if package in BROKEN_EXTENSIONS and package not in sys.modules:
                continue  # it cannot be imported, and neither can its `conf`
            root = find_spec(package)
            is_package = root is not None and root.submodule_search_locations is not None
            if is_package and find_spec(f"{package}.conf") is not None:
                search_path.append(provider=point.name, path=f"pkg://{package}.conf")
