"""Names of secrets: of config keys, of parameters in URLs, and of environment variables."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ANYWHERE = re.compile(
    r"passw(?:or)?ds?|pass(?:phrase|code)s?|secrets?|credentials?|(?:api|access|private|auth)(?:keys?|tokens?)"
    r"|authheaders?|connectionstrings?|webhooks?"
)
"""Words that name a secret wherever they are, as in `password_2` and `clientSecretValue`."""
_LAST = frozenset(
    "token key auth authorization bearer cookie cookies cred creds dsn jwt oauth passkey pwd sessionid".split()
)
"""Words that name a secret if they are the last: `hub_token`, but not `token_count`."""
_IN_VARIABLES = frozenset("token pat".split())
"""Words that name a secret anywhere in the name of an environment variable, which is written in capitals: `HF_TOKEN_READ`."""
_OWNED = frozenset("tokens keys pass pat".split())
"""Last words that usually mean something ordinary, as in `max_tokens`, and name a secret only after one of `_OWNERS`."""
_OWNERS = frozenset(
    """access admin api auth aws azure bearer db encryption ftp gh github gitlab hf hub master private proxy refresh root session
    signing smtp ssh user wandb""".split()
)
_SERVERS = frozenset(
    "imap ldap mail mariadb mongo mongodb mysql pg postgres postgresql rabbitmq redis sql sudo".split()
)
"""Words before `pass` as well, of `mysql_pass` and `pgpass`; `redis_keys` and the like are not secrets."""
_ORDINARY = frozenset(
    """add added additional answer assistant attention audio axis backward begin boa boi bos bov by cache call chosen class
    cls column completion config content cross data dataloader dataset decoder dict document encoder end eoa eoi eos eot eov
    extra feature field fim first foreign forward frame group image in index input instruction join keep kv label last
    latent map mapping mask max message messages metric middle min modality module multi new next num one order output pad
    parent partition per preference prefix prev previous primary project prompt public python q qk query question rejected response role
    run second sep single sort source speaker special speech start stop sub subconfig suffix supervised system target text think tool turn
    unique unk value video vision word""".split()
)
"""Words before `token` and `key` of names that are ordinary: `pad_token`, `content_key`."""
_ORDINARY_KEYS = frozenset("att experiment id prng rng row score state user".split())
"""Words before `key` alone: `id_token` and `user_token` are secrets, but `id_key` and `user_key` name a column."""
_ABOUT = frozenset("file path dir folder name length size type count policy enabled required".split())
"""Last words of names that only describe a secret: `password_file`."""


@lru_cache(maxsize=10_000)
def is_secret_name(name: str) -> bool:
    """Whether a key names a secret. Case and separators are ignored: `apikey`, `API_KEY`, `apiKey` and `api-key` are one."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _ABOUT:
        return False
    if name.lower() == "pass":  # but neither `eval/pass` nor `pass@1`
        return True
    if _ANYWHERE.search("".join(words)):
        return True
    if name.isupper() and any(word in _IN_VARIABLES or word.endswith("pass") for word in words):
        return True
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _LAST:
        return before not in _ORDINARY and not (last == "key" and before in _ORDINARY_KEYS)
    if last in _OWNED:
        return before in _OWNERS or (last == "pass" and before in _SERVERS)
    if before == "token" and last in _OWNERS | {"read", "write"}:  # HF_TOKEN_READ
        return len(words) == 2 or words[-3] not in _ORDINARY
    return (
        (last.endswith("token") and last[:-5] not in _ORDINARY)
        or (last.endswith("key") and last[:-3] in _OWNERS - _ORDINARY_KEYS)
        or (last.endswith("pass") and last[:-4] in _OWNERS | _SERVERS)
    )


def is_secret_parameter(name: str) -> bool:
    """Whether a query parameter of a URL holds a secret; signatures give access as well."""
    return is_secret_name(name) or re.search(r"(?:^|[^a-z])(?:sig|signature)$", name, re.IGNORECASE) is not None
