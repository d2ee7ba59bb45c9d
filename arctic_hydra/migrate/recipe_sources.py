"""The data sources of a recipe of ArcticTraining as named entries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arctic_hydra.errors import ConfigError
from arctic_hydra.migrate.experiment import Experiment
from arctic_hydra.migrate.recipe import fields_of

KNOWN = {
    "HuggingFaceH4/ultrachat_200k": "ultrachat",
    "HuggingFaceH4/ultrafeedback_binarized": "ultrafeedback",
    "nvidia/AceMath-Instruct-Training-Data": "acemath",
    "Open-Orca/OpenOrca": "openorca",
    "Open-Orca/SlimOrca": "slimorca",
    "meta-math/MetaMathQA": "metamath",
    "ise-uiuc/Magicoder-OSS-Instruct-75K": "magicoder",
    "lmsys/lmsys-chat-1m": "lmsys_chat",
    "THUDM/LongAlign-10k": "longalign",
    "Yukang/LongAlpaca-12k": "longalpaca",
}
"""Data sets with an option of their own, by hub id."""
_BUILDERS = ("json", "csv", "parquet", "arrow", "text")
"""Names of file formats, which `datasets` reads from `data_files`, and sources here."""
_OWN_TYPES = ("huggingface", "huggingface_instruct", "huggingface_causal", "HuggingFaceH4/ultrafeedback_binarized")
_COPIED = ("sample_ratio", "sample_count", "sample_seed", "process", "split_mapping", "role_mapping", "content_key")
_SHORT_FORM = re.compile(r"(?P<path>[^/.~][^:]*):(?!//)(?P<split>.+)")
"""A hub id and a split."""


def convert_sources(made: Experiment, group: str, given: Any) -> None:
    """Add the sources of `data.sources` or `data.eval_sources`, a name or a list of names and of fields with values."""
    for entry in given if isinstance(given, list) else [given]:
        if isinstance(entry, str):
            entry = {"name_or_path": entry}
        if not isinstance(entry, Mapping):
            raise ConfigError(f"data.{group}: got {entry!r}, expected names of data sets, or fields with values")
        _convert(made, group, {key: value for key, value in entry.items() if value not in (None, "")})


def _convert(made: Experiment, group: str, entry: dict[str, Any]) -> None:
    kind = str(entry.pop("type", "huggingface"))
    path = str(entry.pop("name_or_path", kind if kind in KNOWN else ""))
    if not path:
        made.lost.append(
            f"data.{group}: a source of the type {kind}, which is not among those here; port it (docs/extending/data.md)"
        )
        return
    if kind not in _OWN_TYPES:
        made.lost.append(
            f"data.{group}: the type {kind} of {path} is a custom class; the rows are read as they are; port it (docs/extending/data.md)"
        )
    if short := _SHORT_FORM.fullmatch(path):
        path, entry["split"] = short["path"], short["split"]
    kwargs = fields_of(f"data.{group}.kwargs", entry.pop("kwargs", {}))
    option, values = _place(made, group, path, entry, kwargs)
    name = _name(made, group, path)
    key = f"data.{group}.{name}"
    folder = f"data/{group}" if option in KNOWN.values() else "source"
    made.added[f"{folder}@{key}"] = option
    if "split" in entry:
        values["split"] = entry.pop("split")
    values |= {field: entry.pop(field) for field in _COPIED if field in entry}
    if "column" in entry:
        column = entry.pop("column")
        if (first := made.values.setdefault("data.column", column)) != column:
            made.lost.append(
                f"data.{group}.column: {column} of {path}; data.column is {first} for all sources; rename the column"
            )
    made.values |= {f"{key}.{field}": value for field, value in values.items()}
    made.lost += [f"data.{group}.{field}: there is no such field in a source ({path})" for field in entry]


def _place(
    made: Experiment, group: str, path: str, entry: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the option that reads a data set, and the values that name it."""
    files = kwargs.get("data_files")
    if path in _BUILDERS and files:
        del kwargs["data_files"]
        if not isinstance(files, Mapping):
            return path, {"path": files}
        split, bracket, bounds = str(entry.pop("split", "eval" if group == "eval_sources" else "train")).partition("[")
        chosen = {"path": files[split]} if files.get(split) else {}
        if not chosen:
            made.lost.append(
                f"data.{group}: data_files of {path} has no split {split}, only {', '.join(map(str, files))}; set the path of its entry"
            )
        return path, chosen | ({"split": bracket + bounds} if bracket else {})
    values: dict[str, Any] = {"kwargs": kwargs} if kwargs else {}
    if path in KNOWN and "role_mapping" not in entry:
        return KNOWN[path], values
    return "hf", {"path": path, **values}


def _name(made: Experiment, group: str, path: str) -> str:
    """Return a name for a source that no other one of its group has."""
    name = KNOWN.get(path) or re.sub(r"\W+", "_", path.rstrip("/").rpartition("/")[2]).strip("_").lower() or "data"
    number = 2
    taken = {place.rpartition(".")[2] for place in made.added if f"@data.{group}." in place}
    found = name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found
