"""Opening the ledger's database: migrations from every released state, and what is refused."""

import json
import sqlite3
from pathlib import PurePosixPath

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store import migrations
from samcorrect.lib.store.engine import LEDGER_NAME, network_file_system, open_engine
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.migrations.versions import r0001_first
from samcorrect.lib.store.schema import REVISION, Base


@pytest.fixture
def first_state(tmp_path):
    """A state folder as the first samcorrect left it: no revision, two images, a scored label, a promoted model."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / LEDGER_NAME}")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        r0001_first.upgrade()
        for image_id in ("anna/left", "b"):
            values = {"id": image_id, "path": f"/old/{image_id}.png", "info": "{}"}
            connection.execute(sa.text("INSERT INTO image VALUES (:id, :path, 'ok', null, 0.5, 0, 1.0, :info)"), values)
        info = json.dumps({"runtime": "torch-bf16", "present_indices": [1]})
        columns = "(id, image_id, tag, round, maker, model_digest, prompts, path, content_sha256, created_at, info)"
        row = "(7, 'b', 'original', 0, 'sam:lite_medsam', 'd', '{}', 'labels/b/1.nii.gz', 'c', 2.0, :info)"
        connection.execute(sa.text(f"INSERT INTO label_version {columns} VALUES {row}"), {"info": info})
        columns = "(label_version_id, structure_index, score, features, reasons, created_at)"
        connection.execute(sa.text(f"INSERT INTO quality {columns} VALUES (7, 0, 0.5, '{{}}', '[]', 2.0)"))
        columns = "(digest, path, status, round, metrics, created_at)"
        connection.execute(sa.text(f"INSERT INTO model {columns} VALUES ('m', 'models/m', 'promoted', 1, '{{}}', 2.0)"))
    engine.dispose()
    return tmp_path


def test_a_new_ledger_has_the_tables_that_the_code_declares(tmp_path):
    engine = open_engine(tmp_path, None)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_newest_script_is_the_revision_that_the_code_expects():
    assert ScriptDirectory(str(migrations.__path__[0])).get_current_head() == REVISION


def test_a_ledger_of_the_first_release_is_taken_over_with_all_it_holds(first_state):
    ledger = Ledger(first_state)
    assert {row.id: row.case_id for row in ledger.images()} == {"anna/left": "anna", "b": "b"}
    label = ledger.label_version(7)
    assert (label.runtime, label.info, label.maker) == ("torch-bf16", {"present_indices": [1]}, "sam:lite_medsam")
    with ledger.session() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []
    # The log begins with what was there, so that it leads to what the ledger holds.
    assert [(row.event, row.image_id, row.label_version_id) for row in ledger.audit_rows()] == [
        ("taken over", "b", 7),
        ("taken over", None, None),
    ]
    verdict = ledger.verify_audit()
    assert (verdict.is_whole, verdict.n_rows) == (True, 2)
    ledger.close()
    Ledger(first_state).close()  # the second time there is nothing to do


def test_a_ledger_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path):
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / LEDGER_NAME) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=rf"revision '9999', of a newer samcorrect, .*knows 0001, .*{REVISION}"):
        Ledger(tmp_path)
    with sqlite3.connect(tmp_path / LEDGER_NAME) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_a_failed_migration_leaves_the_ledger_as_it_was(first_state):
    with sqlite3.connect(first_state / LEDGER_NAME) as connection:
        connection.execute("CREATE INDEX ix_label_tag ON image (id)")  # in the way of the second script
        before = list(connection.iterdump())
    with pytest.raises(StoreError, match="ix_label_tag already exists"):
        Ledger(first_state)
    with sqlite3.connect(first_state / LEDGER_NAME) as connection:
        assert list(connection.iterdump()) == before


MOUNTS = [("/", "ext4"), ("/data", "nfs4"), ("/data/local", "xfs"), ("/home/anna", "fuse.sshfs"), ("/win", "CIFS")]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/state", None),
        ("/data", "nfs4"),
        ("/data/ward/state", "nfs4"),
        ("/data/local/state", None),
        ("/database", None),
        ("/home/anna/x", "fuse.sshfs"),
        ("/win/x", "CIFS"),
    ],
)
def test_the_deepest_mount_point_says_whether_a_folder_is_on_the_network(folder, kind):
    assert network_file_system(PurePosixPath(folder), MOUNTS) == kind


def test_a_ledger_url_that_cannot_be_read_or_reached_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match=r"--ledger-url is postgresql://USER@HOST:PORT/NAME; got 'no url'"):
        Ledger(tmp_path, "no url")
    pytest.importorskip("psycopg", reason="pip install 'samcorrect[postgres]'")
    with pytest.raises(StoreError, match=r"cannot open the ledger postgresql.*127\.0\.0\.1.*Check --ledger-url"):
        Ledger(tmp_path, "postgresql://nobody@127.0.0.1:9/nothing")
