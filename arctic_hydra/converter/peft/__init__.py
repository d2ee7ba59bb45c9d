"""Parameter-efficient fine-tuning: one module per kind of option of the config group `peft`."""

from arctic_hydra.converter.peft import any as any
from arctic_hydra.converter.peft import lora as lora
from arctic_hydra.converter.peft import none as none
from arctic_hydra.converter.peft import qlora as qlora
