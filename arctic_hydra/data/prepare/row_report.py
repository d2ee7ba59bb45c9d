"""Report of what became of a source's rows, and the warnings and the error that follow from it."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from arctic_hydra.data.prepare.truncation import truncating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LOSS_WARNING_SHARE = 0.05
"""Share of a source's rows or tokens above which their loss is a warning."""
ADVICE = {
    "overlong": "raise data.max_length or pass data.overlong={truncating}",
    "no_difference": "check that chosen and rejected are not the same answer, also after truncation by data.max_length",
    "no_supervised_token": "check that answers are not empty and not truncated by data.max_length",
    "malformed": "pass data.malformed=error to see the first such row",
}
"""What to do about dropped rows, by reason."""
_BECAUSE = {
    "overlong": "they are longer than data.max_length",
    "no_supervised_token": "they have no supervised token",
    "malformed": "they are malformed (data.malformed=drop)",
    "no_difference": "both answers are the same",
}


@dataclass
class RowReport:
    """What became of the rows of one source, or of a part of them; its fields are stored in cache entries."""

    rows: int = 0
    kept: int = 0
    """Number of examples; with `overlong=split`, a row may become several."""
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    """Rows that were truncated at the start or the end."""
    split: int = 0
    """Rows that were split."""
    tokens: int = 0
    tokens_lost: int = 0
    """Tokens of overlong rows that were dropped or truncated."""
    supervised_tokens: int = 0
    max_token_id: int = -1
    stops: Counter[int] = field(default_factory=Counter)
    """Ids of the tokens that supervised turns end in."""
    length_bins: Counter[int] = field(default_factory=Counter)
    """Rows by `length_bin` of their tokens (for a pair, of its longer side), before truncation."""
    thoughts_left_out: int = 0
    """Supervised turns whose reasoning the chat template does not render."""
    blank_answers: int = 0
    """Rows whose answers are all empty or only whitespace; they are kept, and train the model to end its answer at once."""
    without_template: int = 0
    """Rows that are plain texts, with or without a prompt, which no chat template renders."""

    def add(self, other: RowReport) -> None:
        """Add the counts of another part."""
        self.dropped.update(other.dropped)
        self.stops.update(other.stops)
        self.length_bins.update(other.length_bins)
        for name in (
            "rows",
            "kept",
            "truncated",
            "split",
            "tokens",
            "tokens_lost",
            "supervised_tokens",
            "thoughts_left_out",
            "blank_answers",
            "without_template",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_token_id = max(self.max_token_id, other.max_token_id)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> RowReport:
        """Return the report with these values, as `to_dict()` returns them."""
        by_number = {
            name: Counter({int(number): count for number, count in plain[name].items()})
            for name in ("stops", "length_bins")
        }
        return cls(**{**plain, "dropped": Counter(plain["dropped"]), **by_number})

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        by_number = {
            name: {str(number): count for number, count in sorted(getattr(self, name).items())}
            for name in ("stops", "length_bins")
        }
        return {**asdict(self), "dropped": dict(sorted(self.dropped.items())), **by_number}


def warn(key: str, report: RowReport, tokenizer: PreTrainedTokenizerBase, *, divisible: bool = True) -> None:
    """Log a warning for everything in the report of a source that is rarely intended; answers are not `divisible`."""
    warn_about_losses(key, report, divisible)
    warn_about_stop_token(key, report, tokenizer)
    warn_about_dropped_reasoning(key, report.thoughts_left_out)
    warn_about_blank_answers(key, report.blank_answers)


def warn_about_stop_token(key: str, report: RowReport, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn if answers end in another token than the one at which generation stops."""
    if not report.stops:
        return
    ((stop, _),) = report.stops.most_common(1)
    if stop != tokenizer.eos_token_id:
        log.warning(
            "%s: answers are trained to end in %r, but tokenizer.eos_token is %r: generation that stops only at the eos token "
            "will not stop after answers; expected the same token; set the template's stop token as the tokenizer's eos_token",
            key,
            tokenizer.decode([stop]),
            tokenizer.eos_token,
        )


def warn_about_dropped_reasoning(key: str, left_out: int) -> None:
    """Warn if the chat template drops reasoning of the rows, which is intended for earlier turns only."""
    if left_out:
        log.warning(
            "%s: the reasoning (reasoning_content, reasoning or thinking) of %d supervised turns is dropped by the chat "
            "template, so it is not trained on; pass tokenizer.chat_template=<file> with a template that renders it, or "
            "remove it from the rows",
            key,
            left_out,
        )


def warn_about_blank_answers(key: str, blank: int) -> None:
    """Warn if rows have no answer but whitespace, which is rarely intended."""
    if blank:
        log.warning(
            "%s: %d rows have only blank answers (empty or whitespace), which are trained on as they are: the model learns to "
            "end its answer at once; remove these rows unless that is intended",
            key,
            blank,
        )


def warn_about_losses(key: str, report: RowReport, divisible: bool = True) -> None:
    """Warn if many rows are dropped for one reason, or if many tokens are cut off or dropped with them."""
    lost = report.tokens_lost / max(1, report.tokens + report.tokens_lost)
    share = f", {lost:.0%} of its tokens"
    for reason, count in sorted(report.dropped.items()):
        of_tokens = lost if reason == "overlong" else 0.0
        if max(count / report.rows, of_tokens) > LOSS_WARNING_SHARE:
            log.warning(
                "%s: %d of %d rows (%.0f%%%s) were dropped because %s; %s",
                key, count, report.rows, 100 * count / report.rows, share if of_tokens else "",
                _BECAUSE.get(reason, reason), ADVICE.get(reason, "check these rows").format(truncating=truncating(divisible)),
            )  # fmt: skip
    if not report.dropped["overlong"] and lost > LOSS_WARNING_SHARE:
        why = (
            f"were cut off, from {report.truncated} of {report.rows} rows, because rows are longer than data.max_length"
        )
        if not report.truncated:
            why = "were left out, in parts of split rows without supervised tokens"
        other = " or pass data.overlong=split" if divisible and report.truncated else ""
        log.warning("%s: %.0f%% of its tokens %s; raise data.max_length%s", key, 100 * lost, why, other)


def no_examples_message(key: str, report: RowReport, divisible: bool = True) -> str:
    """Return the error message for a source without examples, with its counts and what to do; pairs are not `divisible`."""
    reasons = sorted(report.dropped)
    counts = [report.rows, report.kept, *(report.dropped[reason] for reason in reasons)]
    lines = [" | ".join(["source", "rows", "kept", *reasons]), " | ".join([key, *map(str, counts)])]
    hints = [ADVICE[reason].format(truncating=truncating(divisible)) for reason in reasons if reason in ADVICE]
    hints = hints or ["check the source's path and split"]
    table = "\n  ".join(lines)
    return f"{key}: no examples left after filtering; expected at least one\n  {table}\n{'; '.join(hints)}"
