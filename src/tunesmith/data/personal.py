"""Personal data and secrets in texts: e-mail, phone, IBAN and card numbers by their checksums, keys
of services.

A pattern that DuckDB's engine (RE2) and Python's read alike, and where numbers need it a check of
what was found.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Detector:
    kind: str
    pattern: str
    is_true: Callable[[str], bool] = lambda found: True

    def find(self, text: str) -> list[str]:
        return [m.group() for m in re.finditer(self.pattern, text) if self.is_true(m.group())]


def is_iban(text: str) -> bool:
    """ISO 13616: the first four characters to the end, letters as 10 to 35, the number modulo 97 is
    1."""
    compact = re.sub(r"\s", "", text).upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_card(text: str) -> bool:
    """ISO/IEC 7812: Luhn's sum of the digits is a multiple of ten."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_phone(text: str) -> bool:
    digits = sum(c.isdigit() for c in text)
    return 9 <= digits <= 15 and not is_card(text)


DETECTORS = (
    Detector("e-mail address", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
    Detector("IBAN", r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{2,4}){3,8}\b", is_iban),
    Detector("card number", r"\b(?:[0-9][ -]?){12,18}[0-9]\b", is_card),
    Detector(
        "phone number",
        r"(?:\+|\b00)[1-9][0-9]{0,3}[ ./()-]{0,2}(?:[0-9][ ./()-]{0,2}){6,12}[0-9]\b"
        r"|\(?\b0[0-9]{2,4}\)?[ ./-]{1,3}(?:[0-9][ ./-]?){5,9}[0-9]\b",
        _is_phone,
    ),
    Detector(
        "key",
        r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35})"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    ),
)
