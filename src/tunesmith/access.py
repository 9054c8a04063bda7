"""Who may do what: one function. In embedded mode the operating system's user is the administrator
of his home folder."""

import getpass

from tunesmith.errors import Forbidden


def principal() -> str:
    """The user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry, as in some containers
        return "unknown"


def can(who: str, privilege: str, on: str) -> bool:
    """Whether `who` holds `privilege` on the object `on`. Embedded, whoever can open the home
    folder holds all."""
    return bool(who and privilege and on)


def require(who: str, privilege: str, on: str) -> None:
    if not can(who, privilege, on):
        raise Forbidden(principal=who, privilege=privilege, object=on)
