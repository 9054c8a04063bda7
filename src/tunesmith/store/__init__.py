"""JobStore: the only code that writes SQL about jobs and models. SQLite by default, PostgreSQL by
URL.

Its schema is that of the newest revision in migrations/; an older store is brought up to it in one
transaction when it is opened, and a newer one is refused. SQLite runs with the rollback journal and
synchronous=FULL: releases 3.7.0 to 3.51.2 can lose a commit in WAL mode when two connections
checkpoint at once. Every change by a worker names its attempt (the fencing number) in the WHERE;
zero rows changed means that another worker has taken over (LeaseLost). Leases are told by the boot
clock, which no clock step moves.
"""

from tunesmith.store.homes import Homes
from tunesmith.store.jobs import Jobs
from tunesmith.store.leases import LEASE_S, Leases
from tunesmith.store.models import Models
from tunesmith.store.opened import BootClock, DatabaseClock
from tunesmith.store.tables import Tables

__all__ = ["LEASE_S", "BootClock", "DatabaseClock", "JobStore"]


class JobStore(Jobs, Leases, Models, Homes, Tables):
    """`home` is the identity of the home that asks (durable.open_home): it claims its own jobs and
    no others."""
