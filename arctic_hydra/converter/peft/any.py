"""Any adapter type of peft, by name and config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arctic_hydra.component import component
from arctic_hydra.converter.peft import catalog
from arctic_hydra.converter.peft.base import UNSUPPORTED, PeftFactory
from arctic_hydra.errors import did_you_mean


@component(group="peft", name="any")
class AnyPeft(PeftFactory):
    """Any adapter of the installed peft: `peft=any peft.peft_type=IA3 peft.config={target_modules: [k_proj]}`."""

    peft_type: str
    """peft's name for the type: LOHA, LOKR, IA3, OFT, BOFT, VERA, LN_TUNING, FOURIERFT, HRA, ..."""

    def validate(self) -> None:
        super().validate()
        self.peft_type = self.peft_type.upper()
        if self.peft_type in UNSUPPORTED:
            raise ValueError(f"peft_type: got {self.peft_type}, which is not supported: {UNSUPPORTED[self.peft_type]}")

    def check_environment(self) -> Iterator[str]:
        """Yield a problem for a type or config key that the installed peft does not have."""
        known = sorted(catalog.types().keys() - UNSUPPORTED.keys())
        if self.peft_type not in known:
            yield f"peft_type: got {self.peft_type}, expected one of {', '.join(known)}{did_you_mean(self.peft_type, known)}"
            return
        yield from super().check_environment()

    @property
    def type_name(self) -> str:
        """peft's name for the type."""
        return self.peft_type

    def values(self) -> dict[str, Any]:
        """Return the values of peft's config."""
        return dict(self.config)
