"""Compares a reloaded export with the trained model.

Shapes: R rows of output, V vocabulary, or 1 for scores.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from arctic_hydra.data.encode.limits import RenderLimitError, render_limits
from arctic_hydra.determinism import kept_random_state
from arctic_hydra.human_numbers import quantity
from arctic_hydra.redaction.masking import mask_certain
from arctic_hydra.trainer.verification.expectation import TEXT, Expectation, has_tied_head
from arctic_hydra.trainer.verification.reloading import Loaded, load, reason_against
from arctic_hydra.trainer.verification.verdict import Verdict

logger = logging.getLogger("arctic_hydra.trainer")

LEAST_TOLERANCE = 1e-4
"""Tolerance in float32, in which kernels differ by the order of their sums."""
ROUNDINGS = 8
"""Tolerance in other data types, in units of their precision: 6% in bfloat16, 0.8% in float16."""
PROMPT = 8
"""Tokens of the sample after which a stop token is forced."""
LONGEST_ERROR = 300
"""Characters of a library's error in a verdict."""
CHAT = (
    {"role": "user", "content": "How many cows are there now?"},
    {"role": "assistant", "content": "There are 17."},
    {"role": "user", "content": "Thank you."},
)


def verify(folder: Path, expected: Expectation) -> Verdict:
    """Load the export in `folder` and compare it with `expected`; never raises, and draws no random numbers."""
    verdict, start = Verdict(), time.monotonic()
    checks = {
        "its model cannot be loaded and run": _compare_model,
        "its generation config cannot be read": _compare_special_tokens,
        "its tokenizer cannot be loaded and used": _compare_tokenizer,
    }
    with kept_random_state(), torch.no_grad():
        for problem, check in checks.items():
            try:
                check(folder, expected, verdict)
            except MemoryError:
                verdict.unchecked.append(f"{check.__name__.removeprefix('_compare_')} (not enough memory)")
            except Exception as error:
                logger.debug("verifying %s failed", folder, exc_info=True)
                verdict.differs.append(f"{problem} ({_described(error)})")
    verdict.seconds = time.monotonic() - start
    return verdict


def _compare_model(folder: Path, expected: Expectation, verdict: Verdict) -> None:
    if reason := reason_against(folder, expected):
        verdict.unchecked.append(f"logits and generation ({reason})" if expected.generates else f"scores ({reason})")
        return
    loaded = load(folder, expected)
    if loaded.missing:
        more = f" and {len(loaded.missing) - 1} more" if len(loaded.missing) > 1 else ""
        verdict.differs.append(f"its files lack {loaded.missing[0]}{more}, which {loaded.library} draws at random")
    _compare_outputs(loaded, expected, verdict)
    _compare_head(loaded, expected, verdict)
    if not expected.generates or not (folder / "generation_config.json").exists():
        return
    try:
        _compare_generation(folder, loaded, expected, verdict)
    except Exception as error:
        if loaded.library != "load_export":
            raise
        verdict.unchecked.append(f"generation (the registered model does not support it: {_described(error)})")


# ---- outputs -----------------------------------------------------------------------------------------------------


def _compare_outputs(loaded: Loaded, expected: Expectation, verdict: Verdict) -> None:
    what = "logits" if expected.generates else "scores"
    device = next(loaded.model.parameters()).device
    found = [loaded.model(input_ids=torch.tensor([row], device=device)).logits for row in expected.rows]
    outputs_RV = torch.cat([logits.reshape(-1, logits.shape[-1]).float().cpu() for logits in found])
    wanted_RV = expected.outputs_RV
    if outputs_RV.shape != wanted_RV.shape:
        verdict.differs.append(
            f"{what} have {outputs_RV.shape[-1]} columns, but those of the trained model {wanted_RV.shape[-1]}"
        )
        return
    error, tolerance = distance(outputs_RV, wanted_RV), tolerance_of(expected.dtype)
    if error <= tolerance:
        verdict.equal.append(f"{what} {'identical' if error == 0 else f'equal to {_short(error)}'}")
    else:
        verdict.differs.append(
            f"its {what} differ from those of the trained model by {_short(error)} of their size, expected at most "
            f"{_short(tolerance)} from rounding in {str(expected.dtype).removeprefix('torch.')}"
        )
    if expected.without_adapter_RV is not None:
        rounded = loaded.library != "peft" and expected.dtype != torch.float32 and error <= tolerance
        _compare_adapter(outputs_RV, expected, verdict, may_be_rounded=rounded)


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest distance that rounding in `dtype` may cause."""
    return max(LEAST_TOLERANCE, ROUNDINGS * float(torch.finfo(dtype).eps))


def distance(found_RV: torch.Tensor, wanted_RV: torch.Tensor) -> float:
    """Return the root mean square of the difference, relative to that of what is wanted; infinity where it is not finite.

    The mean of each row of logits does not count, because probabilities do not depend on it.
    """
    found_RV, wanted_RV = _centered(found_RV), _centered(wanted_RV)
    ratio = (found_RV - wanted_RV).norm() / wanted_RV.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float(ratio) if bool(ratio.isfinite()) else float("inf")


def _centered(outputs_RV: torch.Tensor) -> torch.Tensor:
    return outputs_RV if outputs_RV.shape[1] == 1 else outputs_RV - outputs_RV.mean(1, keepdim=True)


def _compare_adapter(
    outputs_RV: torch.Tensor, expected: Expectation, verdict: Verdict, *, may_be_rounded: bool
) -> None:
    """Compare how strongly the adapter acts: a small one changes the logits by less than rounding does.

    The strength is the factor by which the change of the logits in the export fits that in training best. Rounding errors,
    which point in another direction at each token, hardly affect it. With `may_be_rounded` less strength is not a difference:
    merged in bfloat16, changes below half a unit in the last place of a weight are lost.
    """
    assert expected.without_adapter_RV is not None
    before_RV = _centered(expected.without_adapter_RV)
    trained_RV, exported_RV = _centered(expected.outputs_RV) - before_RV, _centered(outputs_RV) - before_RV
    size = trained_RV.square().sum()
    if not size > 0:
        verdict.unchecked.append("adapter scale (it changes no logits yet)")
        return
    strength = float((exported_RV * trained_RV).sum() / size)
    rest = float((exported_RV - strength * trained_RV).square().sum() / size)
    uncertainty = (rest / len(outputs_RV)) ** 0.5
    if uncertainty > 0.1:
        verdict.unchecked.append("adapter scale (it changes the logits too little)")
    elif may_be_rounded and strength < 1 - 0.1 - 4 * uncertainty:
        verdict.unchecked.append(
            f"adapter scale (it acts {strength:.2g} times as strongly as in training: merging it in "
            f"{str(expected.dtype).removeprefix('torch.')} rounds small changes away; checkpoint.hf.merge=false keeps them)"
        )
    elif abs(strength - 1) > 0.1 + 4 * uncertainty:
        verdict.differs.append(
            f"its adapter acts {strength:.3g} times as strongly as in training, so its scale (lora_alpha / r) is wrong"
        )
    else:
        verdict.equal.append("adapter scale")


def _compare_head(loaded: Loaded, expected: Expectation, verdict: Verdict) -> None:
    found = has_tied_head(loaded.model)
    if loaded.library == "peft" or expected.tied is None or found is None:
        return
    if found == expected.tied:
        verdict.equal += ["tied head"] if found else []
    elif expected.tied:
        verdict.differs.append("embedding and head are one tied matrix in training, but two in the export")
    else:
        verdict.differs.append("embedding and head are two matrices in training, but one tied matrix in the export")


# ---- stop tokens and generation ----------------------------------------------------------------------------------


def _generation_config(folder: Path, **values: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder, local_files_only=True, **values)


def _compare_special_tokens(folder: Path, expected: Expectation, verdict: Verdict) -> None:
    """Compare the stop tokens and the padding token in the export's configs with those of training."""
    if not expected.generates:
        _compare_padding_of_scores(folder, expected, verdict)
        return
    if not (folder / "generation_config.json").exists():
        verdict.unchecked.append("stop tokens (it has no generation_config.json)")
        return
    config, tokenizer = _generation_config(folder), expected.tokenizer
    stops = _as_list(config.eos_token_id)
    absent = [token for token in expected.stop_tokens if token not in stops]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ordinary = [token for token in stops if token not in special.union(expected.stop_tokens, tokenizer.all_special_ids)]
    where = f"generation_config.eos_token_id is {config.eos_token_id}"
    verdict.differs += [f"{where}, without {_name(token, tokenizer)}, which ends answers" for token in absent]
    verdict.differs += [f"{where}, with {_name(token, tokenizer)}, which is ordinary text" for token in ordinary]
    if not (absent or ordinary) and stops:
        verdict.equal.append(quantity(len(stops), "stop token"))
    _compare_padding(config.pad_token_id, "generation_config", expected, verdict)


def _compare_padding_of_scores(folder: Path, expected: Expectation, verdict: Verdict) -> None:
    """Compare the padding token of a classifier's config, from which it finds the end of each row."""
    from transformers import AutoConfig

    if (folder / "config.json").exists():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=expected.trusts_remote_code)
        _compare_padding(config.get_text_config().pad_token_id, "config", expected, verdict)


def _compare_padding(found: int | None, where: str, expected: Expectation, verdict: Verdict) -> None:
    tokenizer = expected.tokenizer
    wanted = tokenizer.pad_token_id
    if wanted is None:
        verdict.unchecked.append("padding token (the tokenizer has none)")
    elif found == wanted:
        verdict.equal.append("padding")
    else:
        got = "not set" if found is None else _name(found, tokenizer)
        verdict.differs.append(f"{where}.pad_token_id is {got}, but training padded with {_name(wanted, tokenizer)}")


def _compare_generation(folder: Path, loaded: Loaded, expected: Expectation, verdict: Verdict) -> None:
    """Generate with each stop token forced as the second token, which has to be the last."""
    from transformers import LogitsProcessorList

    device = next(loaded.model.parameters()).device
    prompt = torch.tensor([expected.rows[0][:PROMPT]], device=device)
    # peft takes this config from the base model; users of an adapter have to pass that of the export.
    config = _generation_config(folder, max_new_tokens=4, do_sample=False, num_beams=1)
    runs_on = []
    for token in expected.stop_tokens:
        write = LogitsProcessorList([_forced(token, prompt.shape[1] + 1, other=_another(expected))])
        mask = torch.ones_like(prompt)
        written = loaded.model.generate(
            input_ids=prompt, attention_mask=mask, generation_config=config, logits_processor=write, synced_gpus=False
        )
        if written.shape[1] != prompt.shape[1] + 2:
            runs_on.append(token)
    names = ", ".join(_name(token, expected.tokenizer) for token in runs_on)
    if names:
        verdict.differs.append(f"generation does not end where {names} is forced")
    elif expected.stop_tokens:
        verdict.equal.append("generation")


def _another(expected: Expectation) -> int:
    """Return a token of ordinary text, which no config can name as a stop token with good reason."""
    return int(expected.tokenizer(TEXT, add_special_tokens=False)["input_ids"][0])


def _forced(token: int, place: int, *, other: int) -> Any:
    """Return a logits processor that writes `token` at the position `place` of a row, and `other` at all others."""

    def process(ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        chosen = token if ids_BT.shape[1] == place else other
        return torch.full_like(scores_BV, -1e4).index_fill(1, torch.tensor([chosen], device=scores_BV.device), 0.0)

    return process


# ---- tokenizer ---------------------------------------------------------------------------------------------------


def _compare_tokenizer(folder: Path, expected: Expectation, verdict: Verdict) -> None:
    """Compare template, special tokens and ids of a text and a conversation with those of the training tokenizer."""
    from transformers import AutoTokenizer

    own = expected.tokenizer
    other = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=expected.trusts_remote_code)
    problems = [*_tokenizer_problems(other, own)]
    if own.chat_template:
        if mask_certain(str(own.chat_template)) != str(own.chat_template):
            verdict.unchecked.append("template (secrets in it are masked in the export)")
        elif other.chat_template != own.chat_template:
            problems.append("its chat template is not the one of training (chat_template.jinja)")
        else:
            problems += _conversation_problems(other, own, verdict)
    verdict.differs += problems
    if not problems:
        verdict.equal.append("tokenizer")


def _tokenizer_problems(other: Any, own: Any) -> Iterator[str]:
    text = f"{TEXT} {' '.join(str(token) for token in own.added_tokens_decoder.values())}"
    if other(text)["input_ids"] != own(text)["input_ids"]:
        yield "its tokenizer gives other ids than that of training"
    for kind in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if (found := getattr(other, kind)) != (wanted := getattr(own, kind)):
            yield f"its tokenizer has {kind} {found}, but that of training {wanted}"


def _conversation_problems(other: Any, own: Any, verdict: Verdict) -> list[str]:
    """Compare the ids of a conversation, if the template of training can render one."""
    try:
        with render_limits():
            wanted, found = _ids(own), _ids(other)
    except RenderLimitError as error:
        verdict.unchecked.append(f"conversation ({error})")
        return []
    except Exception:  # a template may require a system message, or tools
        verdict.unchecked.append("conversation (the template refuses a plain one)")
        return []
    if wanted != found:
        return ["its tokenizer gives other ids for a conversation than that of training"]
    verdict.equal.append("template")
    return []


def _ids(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_ERROR]}"


def _name(token: int, tokenizer: Any) -> str:
    return f"{token} {tokenizer.convert_ids_to_tokens(token)!r}"


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _short(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+") if value < 0.01 else f"{value:.2g}"
