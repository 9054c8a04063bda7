"""Names of models: which there can be, and the form under which one is unique."""

import re

from tunesmith.errors import InvalidModelName

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_NAME_PART = re.compile(r'"((?:[^"\x00-\x1f]|""){1,63})"|([^".]+)')


LONGEST_NAME = 63


def with_suffix(name: str, suffix: str) -> str:
    """The name with a suffix, its last part cut where both together would be too long."""
    before, quote, last = _last_part(name)
    while True:
        made = f"{before}{quote}{last}{suffix}{quote}"
        try:
            model_key(made)
            return made
        except InvalidModelName:
            if not last:
                raise
            last = last[:-2] if quote and last.endswith('""') else last[:-1]


def _last_part(name: str) -> tuple[str, str, str]:
    parts = list(_NAME_PART.finditer(name))
    quoted = parts[-1].group(1)
    last = quoted if quoted is not None else parts[-1].group(2)
    return name[: parts[-1].start()], '"' if quoted is not None else "", last


def model_key(name: str) -> str:
    """The form under which a name is unique: unquoted parts folded to lower case, quoted ones as
    they are.

    Snowflake identifiers (finetune-create): optionally database.schema.name.
    """
    if name.encode("utf-8", "replace").decode() != name:
        raise InvalidModelName(name=name)
    parts: list[str] = []
    rest = name
    while True:
        match = _NAME_PART.match(rest)
        if match is None:
            raise InvalidModelName(name=name)
        quoted, plain = match.groups()
        if plain is not None and not _PLAIN_NAME.fullmatch(plain):
            raise InvalidModelName(name=name)
        parts.append(f'"{quoted}"' if quoted is not None else plain.lower())
        rest = rest[match.end() :]
        if not rest:
            break
        if rest[0] != "." or len(parts) == 3:
            raise InvalidModelName(name=name)
        rest = rest[1:]
    return ".".join(parts)
