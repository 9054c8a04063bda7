"""Who asks, and who may do what: one function."""

import getpass
from dataclasses import dataclass

from tunesmith.errors import Forbidden


@dataclass(frozen=True)
class Principal:
    """Who asks: an argument of the service, never looked up behind a verb."""

    user: str
    role: str = ""
    """Of the roles that the user holds, the one he asks in; empty in embedded mode."""

    @classmethod
    def of_process(cls) -> "Principal":
        """The operating system's user: in embedded mode the administrator of his home folder."""
        try:
            return cls(getpass.getuser())
        except (KeyError, OSError):  # a user id without an entry, as in some containers
            return cls("unknown")


def can(who: Principal, privilege: str, on: str) -> bool:
    """Whether `who` holds `privilege` on the object `on`. Embedded, whoever can open the home
    folder holds all."""
    return bool(who.user and privilege and on)


def require(who: Principal, privilege: str, on: str) -> None:
    if not can(who, privilege, on):
        raise Forbidden(principal=who.user, privilege=privilege, object=on)
