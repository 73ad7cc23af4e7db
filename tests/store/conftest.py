"""A real PostgreSQL server for the tests of the ledger, and a ledger of a few images."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.studies import ImageFile

# Where Debian puts the server's programs; elsewhere they are on PATH.
DEBIAN_FOLDER = Path("/usr/lib/postgresql")
SERVER_USER = "postgres"


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    """A function that makes an empty database in a server of this test session and returns its URL."""
    pytest.importorskip("psycopg", reason="no psycopg; pip install 'samcorrect[postgres]'")
    versions = sorted(DEBIAN_FOLDER.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folder = versions[-1] if versions else Path(shutil.which("initdb") or "/").parent
    if not (folder / "initdb").is_file():
        pytest.skip("no PostgreSQL server here; apt-get install postgresql")
    # The server refuses to be run by root.
    identity = {"user": SERVER_USER, "group": SERVER_USER} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="samcorrect-postgres.") as name:
        if identity:
            shutil.chown(name, SERVER_USER, SERVER_USER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run = {"check": True, "cwd": name, "stdout": subprocess.DEVNULL, **identity}
        initdb = [folder / "initdb", "-D", f"{name}/data", "-U", "samcorrect", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, **run)
        options = f"-h 127.0.0.1 -p {port} -k {name} -c fsync=off"
        control = [folder / "pg_ctl", "-D", f"{name}/data", "-w"]
        subprocess.run([*control, "-o", options, "-l", f"{name}/log", "start"], **run)

        def make() -> str:
            database = f"d{uuid.uuid4().hex}"
            subprocess.run(
                [folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "samcorrect", database], check=True
            )
            return f"postgresql://samcorrect@127.0.0.1:{port}/{database}"

        yield make
        subprocess.run([*control, "-m", "immediate", "stop"], **run)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest) -> str | None:
    """Each kind of database that a ledger can be kept in, empty."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("new_postgres_database")()


@pytest.fixture
def ledger(tmp_path: Path, ledger_url: str | None) -> Iterator[Ledger]:
    """A ledger of three images without a label."""
    ledger = Ledger(tmp_path / "state", ledger_url)
    ledger.sync_images([ImageFile(name, f"{name}.png", name) for name in ("a", "b", "c")])
    yield ledger
    ledger.close()
