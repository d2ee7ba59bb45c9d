"""Load a tokenizer, with its chat template and a pad token."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.errors import ModelError
from arctic_hydra.hub import hub_reachable, looks_like_path
from arctic_hydra.human_numbers import shorten
from arctic_hydra.redaction import umask_of_user

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MAX_TOKEN_CHARACTERS = 10_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def local_problem(name: str, key: str) -> str | None:
    """Return what is wrong with a local tokenizer directory, or None (also for a hub id)."""
    if not looks_like_path(name):
        return None
    path = Path(name).expanduser()
    if not path.exists():
        return (
            f"{key}: got {name!r}, expected a directory with a tokenizer, but there is no such path ({path.absolute()})"
        )
    if not path.is_dir():
        return f"{key}: got {name!r}, which is a file; expected the directory that holds tokenizer.json"
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        return (
            f"{key}: got {name!r}, a directory without tokenizer files; expected one of {', '.join(TOKENIZER_FILES)} "
            f"in it; set tokenizer.name_or_path to a directory that has them"
        )
    return None


def is_template_text(value: str) -> bool:
    """Whether `value` is a Jinja template itself rather than the path of one."""
    return "{%" in value or "{{" in value


def template_problem(value: str | None) -> str | None:
    """Return what is wrong with a `chat_template` value, or None."""
    if value is None or is_template_text(value):
        return None
    if Path(value).expanduser().is_file():
        try:
            _read_template(value)
        except (OSError, UnicodeDecodeError) as error:
            return f"chat_template: {value} cannot be read ({error}); expected a Jinja template in UTF-8"
        return None
    return (
        f"chat_template: got {value!r}, expected a Jinja template or the path of a file with one; there is no such file"
    )


def _read_template(path: str) -> str:
    return Path(path).expanduser().read_text("utf-8")


def environment_problems(name: str | None, chat_template: str | None) -> Iterator[str]:
    """Yield the files that these settings need and this machine lacks."""
    for problem in (local_problem(name, "name_or_path") if name else None, template_problem(chat_template)):
        if problem:
            yield problem


def load_tokenizer(name: str, chat_template: str | None, **options: Any) -> PreTrainedTokenizerBase:
    """Return a fast tokenizer with a pad token from a local directory or a hub id.

    Never uses the network for a name that looks like a path. Raises ModelError if the tokenizer cannot be loaded.
    """
    for problem in (local_problem(name, "tokenizer.name_or_path"), template_problem(chat_template)):
        if problem:
            raise ModelError(problem)
    from transformers import AutoTokenizer

    local = looks_like_path(name)
    # Offline, the hub's client would retry for a minute before it uses its cache.
    cache_only = local or not hub_reachable()
    try:
        with umask_of_user():
            tokenizer = AutoTokenizer.from_pretrained(
                str(Path(name).expanduser()) if local else name, local_files_only=cache_only, **options
            )
    except Exception as error:  # transformers raises many types for a failed load
        raise ModelError(_load_failure(name, local, error)) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"tokenizer.name_or_path: got {name!r}, which loads as {type(tokenizer).__name__} without a fast backend; "
            f"expected one with a tokenizer.json; convert it with `AutoTokenizer.from_pretrained(..., use_fast=True)`"
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ModelError(
            f"tokenizer.name_or_path: the tokenizer in {name!r} has model_max_length={shorten(tokenizer.model_max_length)}, expected "
            "a number; correct its tokenizer_config.json"
        )
    _check_works(tokenizer, name)
    if chat_template is not None:
        literal = is_template_text(chat_template)
        tokenizer.chat_template = chat_template if literal else _read_template(chat_template)
    _ensure_pad_token(tokenizer, name)
    return tokenizer


def _check_works(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError for tokens that would take hours to look for, and for a tokenizer that cannot encode a short text."""
    held = [*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values())]
    if long := next((token for token in held if len(token) > MAX_TOKEN_CHARACTERS), None):
        raise ModelError(
            f"tokenizer.name_or_path: the tokenizer in {name!r} has the token {shorten(long)} of {len(long):,} characters, expected at "
            f"most {MAX_TOKEN_CHARACTERS:,}; correct its tokenizer_config.json"
        )
    try:
        tokenizer.encode("A short text: 1+1=2.\n")
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception:
        return  # its vocabulary may be closed, such as one of amino acids
    except BaseException as error:  # a panic of the library in Rust
        raise ModelError(
            f"tokenizer.name_or_path: the tokenizer in {name!r} fails on a short text ({type(error).__name__}: {error}); correct its "
            "tokenizer.json"
        ) from error


def _load_failure(name: str, local: bool, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    if local:
        return f"tokenizer.name_or_path: the tokenizer in {name!r} cannot be loaded ({reason}); check its files"
    return (
        f"tokenizer.name_or_path: {name!r} is not a local path and cannot be loaded from the Hugging Face hub or its "
        f"cache ({reason}); expected a hub id that is reachable or cached, or a local directory (write ./{name} to "
        f"mean one); offline, download it first and set model.name_or_path=<directory>, whose tokenizer is the default"
    )


def _ensure_pad_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"tokenizer.name_or_path: {name!r} has neither a pad token nor an eos token; expected one of them; add "
            f'"pad_token" to its tokenizer_config.json'
        )
    # Safe: supervised tokens come from explicit masks, never from a comparison with the pad id.
    tokenizer.pad_token = tokenizer.eos_token
    log.info("tokenizer %s has no pad token: padding uses the eos token %r", name, tokenizer.eos_token)
