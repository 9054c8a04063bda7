"""Tunesmith, the service: the few verbs that every door calls. Embedded, a user's queries run on
his own connection."""

from tunesmith.service.answers import Answers
from tunesmith.service.core import Source, database_error
from tunesmith.service.jobs import POLL_S, Jobs
from tunesmith.service.tables import Tables

__all__ = ["POLL_S", "Source", "Tunesmith", "database_error"]


class Tunesmith(Jobs, Answers, Tables):
    """Tune models on the rows of a query, and ask them.

    `database` is a DuckDB file or an open connection: where training queries run. `home` keeps jobs
    and models.
    """
