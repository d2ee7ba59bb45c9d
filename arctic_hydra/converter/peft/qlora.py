"""QLoRA: LoRA over weights quantized to four or eight bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from arctic_hydra.component import component
from arctic_hydra.converter.peft.lora import LoraFactory

if TYPE_CHECKING:
    import torch


class Quantization(Enum):
    """How bitsandbytes quantizes the frozen weights."""

    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"


@component(group="peft", name="qlora")
class QLoraFactory(LoraFactory):
    """QLoRA (Dettmers et al. 2023): LoRA over a frozen model quantized to NF4 by bitsandbytes; needs ZeRO 0 to 2."""

    quantization: Quantization = Quantization.nf4
    """nf4, fp4 or int8: data type of the frozen weights; products are computed in model.dtype."""

    def check_environment(self) -> Iterator[str]:
        """Yield a problem if bitsandbytes is missing."""
        if importlib.util.find_spec("bitsandbytes") is None:
            yield "quantization: peft=qlora needs bitsandbytes, which is not installed; pip install bitsandbytes, or pass peft=lora"
        yield from super().check_environment()

    def bytes_per_weight(self, weight: torch.Tensor) -> float:
        """Return the bytes per weight, including its share of the scales.

        In four bits there is an 8-bit scale per 64 weights and an fp32 scale per 256 of these (double quantization), in
        eight bits one fp32 scale per row.
        """
        if self.quantization is Quantization.int8:
            return float(1 + 4 / weight.shape[1])
        return 0.5 + 1 / 64 + 4 / (64 * 256)

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """Return transformers' config for loading the model quantized, with products in `dtype`."""
        from transformers import BitsAndBytesConfig

        if self.quantization is Quantization.int8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantization.value,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
