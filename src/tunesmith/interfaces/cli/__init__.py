"""The `tunesmith` command. Each command parses, makes one call to the service, and renders.

Data goes to stdout, talk to stderr; `--json` gives machines a stable form. Exit codes: 0 done, 1
failed, 2 usage, 3 not found, 5 the job failed or was cancelled, 130 interrupted. Nothing heavy is
imported before a command runs.
"""

import errno
import io
import json
import os
import sys
import warnings

from tunesmith import imports
from tunesmith.errors import TunesmithError
from tunesmith.interfaces.cli import bases, jobs, models
from tunesmith.interfaces.cli.answers import classify, complete
from tunesmith.interfaces.cli.doctor import doctor
from tunesmith.interfaces.cli.rows import audit, lr_find, quote, tune
from tunesmith.interfaces.cli.shared import app, tell
from tunesmith.interfaces.cli.start import demo, init, start, worker

__all__ = ["app", "bases", "jobs", "main", "models"]

app.callback(invoke_without_command=True)(start)
for command in (init, audit, quote, lr_find, tune, complete, classify, worker, doctor, demo):
    app.command()(command)
del command


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    imports.is_own_process = True
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal that cannot show a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = tell
    try:
        try:
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where an error of it is one of ours
    except TunesmithError as e:
        if "--json" in sys.argv:
            print(json.dumps({"error": e.to_json()}, default=str))
        print(f"tunesmith: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `tunesmith job list | head`
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print("tunesmith: standard output is full; what was asked for is done", file=sys.stderr)
        sys.exit(1)
