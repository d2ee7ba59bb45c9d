"""Dropout, which preference losses do not allow: the scores of a model and of its reference would differ by chance."""

from __future__ import annotations

from torch import nn


def disable_dropout(model: nn.Module) -> list[str]:
    """Set every dropout rate of the model's modules to 0; return the names of those that were not.

    Rates are the `p` of torch's dropout layers, and attributes with `dropout` in their name, with which attention layers
    call functions.
    """
    found = []
    for path, module in model.named_modules():
        rates = {"p"} if isinstance(module, nn.modules.dropout._DropoutNd) else set[str]()
        rates |= {name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)}
        for name in sorted(rates):
            if getattr(module, name) > 0:
                setattr(module, name, 0.0)
                found.append(f"{path}.{name}" if path else name)
    return found
