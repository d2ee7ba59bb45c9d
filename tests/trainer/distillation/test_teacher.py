"""The teacher: which ones are refused before training, and how large it is."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from arctic_hydra import memory
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from arctic_hydra.trainer.chunked import AS_IS
from arctic_hydra.trainer.distillation.teacher import FromHidden, Teacher, check_positions, check_tokens
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from tests.composing import built
from tests.trainer.distillation.test_distill import HELD, teacher_model
from tests.trainer.loop import batch_of


def test_other_tokens_are_refused(tmp_path):
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    with pytest.raises(
        ConfigError, match=r"vocabulary has 4,160 rows, and the student's 4,096; expected a teacher with"
    ):
        check_tokens(str(tmp_path), 4160, 4096, tokenizer)  # without the files of a tokenizer
    tokenizer.save_pretrained(tmp_path)
    for rows in (4096, 4160):  # padding of the embedding
        check_tokens(str(tmp_path), rows, 4128, tokenizer)
    with pytest.raises(ConfigError, match=r"vocabulary has 4,000 rows, and the student's 4,096"):
        check_tokens(str(tmp_path), 4000, 4096, tokenizer)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (next(name for name, number in vocabulary.items() if number == wanted) for wanted in (300, 301))
    vocabulary[first], vocabulary[second] = 301, 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"tokenizer differs from the student's \(4,096 and 4,096 tokens; first at id 300"
    ):
        check_tokens(str(tmp_path), 4096, 4096, tokenizer)


def test_a_teacher_with_fewer_positions_than_the_rows_is_refused():
    config = transformers.LlamaConfig(max_position_embeddings=512)
    for longest in (None, 512):
        check_positions("x", config, longest)
    with pytest.raises(
        ConfigError, match=r"got x, whose config has max_position_embeddings=512, but data.max_length=513"
    ):
        check_positions("x", config, 513)


def test_the_memory_estimate_counts_the_teacher_by_its_own_size(tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=4096, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, head_dim=64
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]}))
    size = "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=128".split()
    found = memory.estimate(built("trainer=distill", f"trainer.teacher_path={tmp_path}", *size))
    plain = memory.estimate(built("trainer=sft", *size))
    factory = RandomModelFactory(name_or_path=str(tmp_path), dtype="fp32")
    with torch.device("meta"):
        teacher = factory.create_meta_model(factory.create_config())
    assert found.trace.other - plain.trace.other == 4 * sum(value.numel() for value in teacher.parameters())
    assert found.trace.head >= plain.trace.head
    cached = memory.estimate(
        built("trainer=distill", f"trainer.teacher_path={tmp_path}", "trainer.teacher=cached", *size)
    )
    assert cached.trace.other == plain.trace.other
    assert cached.trace.scoring > found.trace.other - plain.trace.other


def test_logits_have_the_precision_of_the_teachers_forward_wherever_they_are_computed():
    """Predictions are stored outside of the student's forward pass, and otherwise computed within it."""
    model, batch = teacher_model(), batch_of(HELD)
    autocast, device = torch.autocast("cpu", torch.bfloat16), torch.device("cpu")
    exact = Teacher(LossComputer(model, tap_head(model, device)), 1.0).targets(batch).logps(slice(None), 128)
    vars(model)["forward"] = autocast(model.forward)
    targets = Teacher(LossComputer(model, tap_head(model, device)), 1.0).targets(batch)
    outside = targets.logps(slice(None), 128)
    with autocast:
        inside = targets.logps(slice(None), 128)
    torch.testing.assert_close(outside, inside, rtol=0, atol=0)
    assert outside.dtype == torch.float32 and not torch.allclose(outside, exact, rtol=1e-5)


def test_the_weight_of_a_head_that_is_the_students_is_left_as_it_is():
    student, teacher = torch.ones(5, 3), torch.ones(5, 3)
    for weight in (student, teacher):
        with FromHidden(torch.ones(2, 3), weight, None, AS_IS, 1.0).ready(student):
            pass
