"""A PostgreSQL server of one's own on loopback, from the installed package; as an unprivileged user
where this process is root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def programs() -> Path | None:
    """The folder of initdb and postgres, the newest that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(p) for p in [shutil.which("initdb")] if p
    ]
    return found[-1].parent if found else None


@contextmanager
def server() -> Iterator[str]:
    """Its URL without a database; it ends with the block, and so does its folder."""
    with TemporaryDirectory(
        prefix="tunesmith-postgresql-"
    ) as folder:  # where no other user's folder bars the way
        yield from _server(Path(folder))


def _server(folder: Path) -> Iterator[str]:
    bin_folder = programs()
    if bin_folder is None:
        raise SystemExit("no PostgreSQL server: install the package postgresql")
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # initdb refuses to run as root
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    subprocess.run(
        [bin_folder / "initdb", "-D", folder / "data", "-A", "trust", "-U", "tunesmith"],
        check=True,
        capture_output=True,
        cwd="/",
        **user,
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        bin_folder / "postgres",
        "-D",
        folder / "data",
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-k",
        folder,
        "-F",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user
    )
    try:
        for _ in range(200):
            if (
                subprocess.run(
                    [bin_folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port)],
                    capture_output=True,
                ).returncode
                == 0
            ):
                break
            time.sleep(0.05)
        yield f"postgresql+psycopg://tunesmith@127.0.0.1:{port}"
    finally:
        process.send_signal(2)  # fast shutdown: connections that are still pooled are cut
        process.wait(20)
