"""Opening the ledger's database: SQLite in the state folder, or PostgreSQL by URL; brought up to today's tables."""

from pathlib import Path, PurePath

import psutil
from alembic.command import stamp, upgrade
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from samcorrect.lib.errors import DependencyError, StoreError
from samcorrect.lib.store.schema import REVISION

LEDGER_NAME = "ledger.sqlite"
BUSY_TIMEOUT_S = 30
# In the driver's ordinary transactions only the first write takes SQLite's lock.
BEGIN_WRITING = text("BEGIN IMMEDIATE")
# PostgreSQL's writers wait for one another on this number as SQLite's do on the file.
WRITER_LOCK = text("SELECT pg_advisory_xact_lock(20230800883)")
# SQLite's WAL shares memory between processes, which these do not give (sqlite.org/wal.html, point 2).
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "smbfuse", "afpfs", "webdav", "davfs", "ncpfs"}
    | {"9p", "afs", "beegfs", "ceph", "cvmfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "orangefs", "panfs"}
    | {f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph", "rclone", "s3fs", "davfs2", "gcsfuse", "nfs")}
)
FIRST_REVISION = "0001"


def open_engine(state_dir: Path, url: str | None) -> Engine:
    """Connect and bring the tables up to date.

    Args:
        state_dir: Holds the SQLite file where `url` is None.
        url: Of a PostgreSQL database.

    Raises:
        StoreError: The database cannot be opened, is of a newer samcorrect, or would lie on a network file system.
        DependencyError: The driver of `url` is not installed.
    """
    engine = _postgres(url) if url else _sqlite(state_dir / LEDGER_NAME)
    try:
        with engine.begin() as connection:
            is_new = _revision(connection) != REVISION
        if is_new:
            # The server and its task processes start together: only one at a time makes the tables.
            with engine.begin() as connection:
                take_write_lock(connection)
                _migrate(connection)
    except DatabaseError as error:
        place = make_url(url).render_as_string() if url else f"in {state_dir}"
        hint = "Check --ledger-url" if url else "Give a folder that can be written with --state"
        reason = " ".join(str(error.orig or error).split()).rstrip(".?")
        raise StoreError(f"cannot open the ledger {place}: {reason}. {hint}") from error
    return engine


def take_write_lock(connection: Connection) -> None:
    """Let this transaction be the only one that writes."""
    connection.execute(BEGIN_WRITING if connection.dialect.name == "sqlite" else WRITER_LOCK)


def network_file_system(folder: PurePath, mounts: list[tuple[str, str]]) -> str | None:
    """The type of the network file system that `folder` lies on, or None.

    Args:
        folder: Absolute.
        mounts: (mount point, file system type).
    """
    holding = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    _, kind = max(holding, key=lambda mount: len(PurePath(mount[0]).parts), default=("", ""))
    return kind if kind.lower() in NETWORK_FILE_SYSTEMS else None


def _sqlite(path: Path) -> Engine:
    mounts = [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    if kind := network_file_system(path.parent.resolve(), mounts):
        raise StoreError(
            f"{path.parent} lies on a network file system ({kind}), where SQLite cannot be shared by processes: give a "
            "folder on a disk of this machine with --state, or a PostgreSQL database with --ledger-url"
        )
    # Not an f-string: a "?" in the path would start the URL's options.
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection, _record) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def _postgres(url: str) -> Engine:
    try:
        return create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise StoreError(f"--ledger-url is postgresql://USER@HOST:PORT/NAME; got {url!r:.80}") from error
    except ImportError as error:
        raise DependencyError("a ledger in PostgreSQL needs psycopg: pip install 'samcorrect[postgres]'") from error


def _revision(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.scalar(text("SELECT version_num FROM alembic_version"))
    return FIRST_REVISION if "label_version" in tables else None


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "samcorrect.lib.store:migrations")
    config.attributes["connection"] = connection
    revision = _revision(connection)
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if revision is not None and revision not in known:
        raise StoreError(
            f"the ledger has revision {revision!r:.40}, of a newer samcorrect, which has to be installed; "
            f"this one knows {', '.join(sorted(known))}"
        )
    if revision == FIRST_REVISION:
        stamp(config, FIRST_REVISION)
    upgrade(config, "head")
