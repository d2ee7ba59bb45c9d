"""Masking of secrets in text: by their names, by their forms, and by values that are known to be secret."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from urllib.parse import quote

from arctic_hydra.redaction.secret_names import is_secret_name, is_secret_parameter
from arctic_hydra.redaction.yaml_blocks import end_of_block, is_in_flow_mapping

MASK = "***"
SHORTEST_VALUE = 6
"""Known values are masked anywhere in a text, so shorter ones such as `1` or `true` must not be among them."""
_LONGEST_WORD = 24
"""Longer values, such as tokens, are not words; reading the vocabulary takes 50 ms."""
_LONGEST_PLAIN_TEXT = 2_000
"""Longest text of several lines in a mapping in braces; where no brace closes it sooner, the value ends with its line."""
LONG_VALUE = 12
"""Shorter known values, such as the password of a database for tests, may be ordinary words in the names of folders."""
_NOT_SECRET = frozenset(("", "true", "false", "null", "none"))

_CREDENTIALS = re.compile(
    r"""://(?:[^/\s?#"'<>:@\[]{0,200}:(?!\d{2,5}[/?#]|\$\{?[A-Z]\w*\}?@)[^\s"'<>]{1,1000} | [^/\s?#"'<>:@]{20,1000})@""",
    re.VERBOSE,
)
"""`user:password@`, whose password may contain `/`, `?`, `#` and `@`, but neither `host:port/` nor `user:$PASSWORD@`; a user
alone, such as `git@`, is public unless it has the length of a token."""
_LOGIN = re.compile(r"(?<![\w/.+-])[\w.+-]{1,100}:[^\s:@/\"',]{1,1000}@(?=[A-Za-z0-9])")
_PARAMETER = re.compile(r"([?&;])([^=&\s?#;]{1,100})=([^&\s\"'<>#;]+)")
_FORMS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
    (?:hf|api_org)_(?:[A-Za-z0-9]{24,} | (?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{16,})              # Hugging Face
    | sk-(?:[a-z]{1,20}\d*-){0,3}(?:[A-Za-z0-9_]{24,} | (?=[a-z_]*[A-Z0-9])[A-Za-z0-9_]{16,})[A-Za-z0-9_-]*  # OpenAI, Anthropic
    | gh[opsru]_[A-Za-z0-9]{16,} | github_pat_[A-Za-z0-9_]{20,} | glpat-[A-Za-z0-9_-]{16,}
    | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[A-Za-z0-9_-]{30,}                # AWS, Google
    | dckr_[po]at_[\w-]{20,} | xai-[A-Za-z0-9]{40,}                    # Docker, xAI
    | xox[a-z]-[A-Za-z0-9-]{10,} | hooks\.slack\.com/[a-z]{1,20}/[\w/-]{16,}  # Slack
    | (?:npm|gsk|r8)_[A-Za-z0-9]{24,} | pypi-AgE[\w-]{16,} | nvapi-[\w-]{24,}  # npm, Groq, Replicate, PyPI, NVIDIA
    | SG\.[\w-]{16,}\.[\w-]{16,} | ya29\.[\w-]{16,}                           # SendGrid, Google
    | eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?  # JSON Web Token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_AUTHORIZATION = re.compile(
    r"""\b((?i:Bearer)\s+(?!tokens?\b|auth) | (?i:Basic)\s+(?=[A-Za-z0-9+/]*(?:\d|=|[a-z][A-Z]))
    | (?i:Authorization:\s*token\s+ | x-[\w-]{0,50}(?:key|token):\s*)) ([A-Za-z0-9._~+/-]{6,}=*)""",
    re.VERBOSE,
)
_CURL = re.compile(
    r"""(\bcurl\b(?:[^\n|;]|\\\n){0,200}?\s(?:-[uU]|--user|--proxy-user)[\s=]?["']?[\w.@+-]{1,100}:)(?![$<*{`])[^\s"']+"""
)
"""`curl -u name:password`; other commands take `user:group` or `host:path` after this flag."""
_VALUE = r"""("[^"]*"|'[^']*'|[^\s"',;&)\]}]+)"""
_ASSIGNMENT = re.compile(rf"(?<![\w.$%])([A-Za-z_][\w.-]{{0,200}})(=){_VALUE}")
_FLAG = re.compile(rf"""(?<=--)([A-Za-z][\w-]{{0,200}})( )(?=["']|[a-z.-]*[A-Z\d_+/=])(?!-){_VALUE}""")
"""`--token X`, but not the prose `--token is`."""
_ITEM = re.compile(r"""(?<![\w.])(['"]?)([A-Za-z_][\w.-]{0,200})\1\s{0,9}:\s*""")
_QUOTED_ITEM = re.compile(r"""(?<!\w)(['"])([A-Za-z_][\w.-]{0,200})\1\s{0,9}:\s*""")
_SCALAR = re.compile(r""""([^"]*)"|'([^']*)'|([^\s,:\[\]{}()"']++)(?!\s*[:(])""")
"""A value in Hydra's grammar, but no key and no function such as `choice`."""
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")
_IN_CODE = re.compile(r"(?:\$(?!\d\w)|[<*`]|(?:~|\.\.?|/[a-z][a-z\d]*)/).*|self\.[\w.]+|[A-Za-z_][\w.]*\(")
"""Values in programs and shell commands that refer to others: `$TOKEN`, `<token>`, `~/.token`, `self.token`, `read_token(`."""

_learned: set[str] = set()


def mask(text: str) -> str:
    """Return `text` with `***` for every secret in it."""
    return mask_known(text, known_values())


def mask_known(text: str, known: re.Pattern[str] | None) -> str:
    """Do the same with the pattern of `known_values()`, which takes longer to create than to apply."""
    if known is not None:
        text = known.sub(MASK, text)
    text = _LOGIN.sub(f"{MASK}@", without_credentials(_FORMS.sub(MASK, text)))
    text = _CURL.sub(rf"\1{MASK}", _AUTHORIZATION.sub(rf"\1{MASK}", text))
    text = _FLAG.sub(_assignment, _ASSIGNMENT.sub(_assignment, text))
    return _replaced(text, _secret_items(text, _QUOTED_ITEM))


def mask_settings(text: str, *, is_diff: bool = False) -> str:
    """Mask the secrets in YAML or JSON, whose keys have no quotes or values no `=`, or in a diff of such files.

    A value of several lines becomes one `***`.
    """
    return mask(_replaced(text, secret_settings(text, is_diff=is_diff)))


def secret_settings(text: str, *, is_diff: bool = False) -> Iterator[tuple[int, int]]:
    """Yield start and end of each value below a secret key in YAML or JSON, or in a diff of such files."""

    def end_of_setting(match: re.Match[str]) -> int:
        block = end_of_block(text, match.start(), text.index(":", match.end(2)), is_diff=is_diff)
        has_no_value = 0 < block < match.end()
        if has_no_value:
            return block
        ends_at_line = block > 0 or not is_in_flow_mapping(text, match.start())
        return max(block, _end_of_value(text, match.end(), ends_at_line=ends_at_line))

    return _secret_items(text, _ITEM, end_of_setting)


def mask_certain(text: str) -> str:
    """Mask only what cannot be anything else: known forms of tokens, and long values that are known to be secret."""
    if (known := known_values()) is not None:
        text = known.sub(lambda match: MASK if len(match[0]) >= LONG_VALUE else match[0], text)
    return _FORMS.sub(MASK, text)


def contains_secret(text: str) -> bool:
    """Whether `text`, which cannot be masked, contains a secret; short known values may be part of it by chance."""
    return mask_certain(text) != text or mask_known(text, None) != text


def without_credentials(text: str, mark: str = f"{MASK}@") -> str:
    """Return `text` with the `user:password@` of every URL replaced by `mark`, and its secret parameters masked."""
    text = _CREDENTIALS.sub(f"://{mark}", text)
    return _PARAMETER.sub(lambda m: f"{m[1]}{m[2]}={MASK}" if is_secret_parameter(m[2]) else m[0], text)


def redact_override(text: str) -> str:
    """Return a command-line override with its secrets masked, including those in nested values."""
    key, equals, value = text.partition("=")
    if not equals:
        return mask(text)
    if _names_a_secret(key) and value.lower() not in _NOT_SECRET:
        return f"{mask(key)}{equals}{MASK}"
    return mask(f"{key}{equals}{_replaced(value, _secret_items(value, _ITEM))}")


def learn_overrides(overrides: Iterable[str]) -> None:
    """Mask the secrets of these command-line overrides in every text from now on."""
    for text in overrides:
        key, _, value = text.partition("=")
        whole = [value] if _names_a_secret(key) else [value[start:end] for start, end in _secret_items(value, _ITEM)]
        for part in (_INTERPOLATION.sub("", item) for item in whole):
            learn([part.strip("\"' "), *(word for words in _SCALAR.findall(part) for word in words)])


def learn(values: Iterable[str]) -> None:
    """Mask these values in every text from now on, except short ones and words of this package."""
    _learned.update(value for value in values if _is_telling(value))


def known_values() -> re.Pattern[str] | None:
    """Return a pattern of the values that are known to be secret: learned ones, and those of environment variables whose
    names say so."""
    of_environment = {
        value
        for name, value in os.environ.items()
        if is_secret_name(name) and name != "PWD" and _is_telling(value) and not os.path.exists(value)
    }
    return _pattern(frozenset(of_environment | _learned))


@lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for value in values for form in _written_forms(value)}
    return re.compile("|".join(map(_literal, sorted(forms, key=len, reverse=True)))) if forms else None


def _written_forms(value: str) -> tuple[str, ...]:
    """Return a value as URLs, JSON, messages (`repr`) and pages write it."""
    quoted = (repr(value)[1:-1], repr(f"'{value}")[2:-1], html.escape(value))
    return value, quote(value, safe="", errors="replace"), json.dumps(value)[1:-1], *quoted


def _literal(form: str) -> str:
    """Return the pattern of a known value; one of digits, such as 123456, may occur within a number by chance."""
    return rf"(?<![\w.]){form}(?![\w.])" if form.isdecimal() else re.escape(form)


def _is_telling(value: str) -> bool:
    if len(value) < SHORTEST_VALUE or MASK in value:
        return False
    return len(value) > _LONGEST_WORD or not value.isidentifier() or value.lower() not in _vocabulary()


@cache
def _vocabulary() -> frozenset[str]:
    """Return all words of this package's source, such as keys, names of modules and `default`: masking one anywhere would
    make configs and messages unreadable, and does not hide a password that can be guessed."""
    files = Path(__file__).parents[1].rglob("*.py")
    return frozenset(word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8").lower()))


def _names_a_secret(key: str) -> bool:
    return any(is_secret_name(part) for part in re.split(r"[./@]", key))


def _assignment(match: re.Match[str]) -> str:
    name = match[1].rpartition(".")[2]
    # An argument of a function, or one of several passes, more often than a secret.
    is_ordinary = name == "key" or (name == "pass" and match[2] == "=")
    if is_ordinary or not is_secret_name(name):
        return match[0]
    value = match[3].strip('"')  # the shell replaces `$TOKEN` within these quotes
    is_code = name.lower().endswith(value.lower()) or _IN_CODE.fullmatch(value)
    return match[0] if is_code or value.lower() in _NOT_SECRET else f"{match[1]}{match[2]}{MASK}"


def _replaced(text: str, parts: Iterable[tuple[int, int]]) -> str:
    pieces, last = [], 0
    for start, end in parts:
        pieces += [text[last:start], MASK]
        last = end
    return "".join([*pieces, text[last:]])


def _secret_items(
    text: str, item: re.Pattern[str], end_of: Callable[[re.Match[str]], int] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield start and end of the value of each `name: value` with a secret name, such as those of `{token: x, n: 1}`."""
    end = 0
    for match in item.finditer(text):
        if match.start() >= end and is_secret_name(match[2]):
            end = _end_of_value(text, match.end()) if end_of is None else end_of(match)
            if text[match.end() : end].strip().lower() not in _NOT_SECRET:
                yield match.end(), end


def _end_of_value(text: str, start: int, *, ends_at_line: bool = True) -> int:
    """Return where the value at `start` ends; a plain text in a mapping in braces may continue on further lines."""
    depth, quoted = 0, ""
    limit = len(text) if ends_at_line else min(len(text), start + _LONGEST_PLAIN_TEXT)
    for place in range(start, limit):
        letter = text[place]
        if letter in "\"'" and place > start and depth == 0 and not quoted:
            return place  # the value is part of a quoted text
        if quoted:
            quoted = "" if letter == quoted and text[place - 1] != "\\" else quoted
        elif letter in "\"'":
            quoted = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            if depth == 0:
                return place
            depth -= 1
        elif depth == 0 and (letter == "," or (letter == "\n" and ends_at_line)):
            return place
    return limit if ends_at_line else _end_of_value(text, start)
