"""PostgreSQL databases that go from test to test: nobody finds anything of the test before."""

import pytest
from sqlalchemy import make_url

from ops.servers import PostgresServer
from tests.integration.stores import Store
from tests.spares import Spares


@pytest.fixture(scope="module")
def ours(postgres: PostgresServer) -> Spares:
    """Nobody else takes any of these meanwhile."""
    return Spares(postgres)


def test_rows_are_gone_and_numbers_begin_anew(ours: Spares):
    url = ours.take()
    store = Store(url)
    first = store.session("s")
    store.answer("s", "hello")
    store.send("s", "waits")
    ours.give_back(url)  # whoever is connected is thrown out
    assert ours.take() == url
    store.close()
    again = Store(url)
    assert again.session("s") == first
    again.close()
    ours.give_back(url)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE RULE swallow AS ON INSERT TO messages DO INSTEAD NOTHING",
        "ALTER TABLE turns ADD CONSTRAINT no CHECK (number <> 3)",
        "ALTER TABLE turns DISABLE TRIGGER ALL",
        "ALTER TABLE turns ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON turns TO PUBLIC",
        "DROP INDEX ix_turns_queued",
        "CREATE TABLE more (id int)",
        "CREATE FUNCTION now_and_then() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA shifted",
        "ALTER DATABASE {name} SET search_path = shifted, public",
        "UPDATE alembic_version SET version_num = '0001'",
        "ANALYZE",
        "INSERT INTO ticks (name, slot, fired_at) SELECT 'much', n, now() FROM generate_series(1, 50000) AS n",
    ],
)
def test_what_a_test_has_changed_goes_to_nobody_else(ours: Spares, postgres: PostgresServer, change: str):
    url = ours.take()
    with postgres.connect(make_url(url).database) as db:
        db.execute(change.format(name=make_url(url).database).encode())
    ours.give_back(url)
    other = ours.take()
    assert other != url
    ours.give_back(other)
