"""One database, embedded (SQLite, WAL) or a server (PostgreSQL), and its transactions."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Executable,
    Row,
    Table,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from controlplane.store.failures import StorageHealth, typed

BUSY_TIMEOUT_MS: Final = 10_000
# Rows per INSERT batch; measured best for both databases.
BATCH_ROWS: Final = 1000
# SQLite takes at most 32,766 parameters in a statement.
BATCH_IDS: Final = 10_000
# user_version is a signed 32-bit number.
MAX_USER_VERSION: Final = 1 << 31
_WRITES: Final = "flotilla_writes"


Item = TypeVar("Item")
Result = TypeVar("Result")
AnyRow = Row[*tuple[Any, ...]]


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Transaction:
    """Connection between a begin and its commit."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._after_commit: list[Callable[[], None]] = []

    @property
    def dialect(self) -> str:
        return self._connection.dialect.name

    async def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[*tuple[Any, ...]]:
        return await self._connection.execute(statement, parameters)

    async def execute_batches(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Execute the statement for each row, in batches; without rows do nothing."""
        for batch in batches(rows, BATCH_ROWS):
            await self.execute(statement, batch)

    async def first(self, statement: Executable) -> AnyRow | None:
        return (await self.execute(statement)).first()

    async def all(self, statement: Executable) -> Sequence[AnyRow]:
        return (await self.execute(statement)).all()

    async def changed(self, statement: Executable) -> int:
        """Execute an UPDATE or DELETE and return the number of rows that it changed."""
        return (await self.execute(statement)).rowcount

    async def insert_new(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, except those whose primary key exists."""
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        statement = insert(table).on_conflict_do_nothing()
        await self.execute_batches(statement, rows)

    async def run_sync(self, work: Callable[[Connection], Result]) -> Result:
        """Run synchronous code, such as a migration, on this transaction's connection."""
        return await self._connection.run_sync(work)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call ``action`` after the commit; never after a rollback."""
        self._after_commit.append(action)

    def committed(self) -> None:
        for action in self._after_commit:
            action()


class Database:
    """Transactions over one engine. Writers of the embedded database take turns."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._path = Path(engine.url.database or "") if self.embedded else None
        self.health = StorageHealth(self._path)
        self._turn = asyncio.Lock()

    @property
    def embedded(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Open a consistent snapshot; changes made in it are rolled back.

        Raises DatabaseUnavailableError.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._typed_failures(connecting=True):
                connection = await stack.enter_async_context(self.engine.connect())
                if not self.embedded:
                    # PostgreSQL's default gives every statement a snapshot of its own.
                    await connection.execution_options(isolation_level="REPEATABLE READ")
            with self._typed_failures():
                yield Transaction(connection)
        self.health.read()

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """Commit when the block ends, roll back if it raises. Do not wait for the network in it.

        Raises StorageFullError and DatabaseUnavailableError.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self.embedded:
                await stack.enter_async_context(self._turn)
            with self._typed_failures(connecting=True):
                connection = await stack.enter_async_context(self.engine.connect())
                await connection.execution_options(**{_WRITES: True})
            transaction = Transaction(connection)
            # The commit is within: on a full disk it is often the first to fail.
            with self._typed_failures():
                async with connection.begin():
                    yield transaction
        self.health.written()
        # After the connection is released: signals wake tasks that read what was committed.
        transaction.committed()

    async def check_writable(self) -> None:
        """Commit a small change; raises StorageFullError and DatabaseUnavailableError."""
        async with self.write() as tx:
            if self.embedded:
                # Rewrites the first page, which goes through the write-ahead log like any change.
                version = await tx.first(text("PRAGMA user_version"))
                following = (int(version[0]) + 1) % MAX_USER_VERSION if version else 1
                await tx.execute(text(f"PRAGMA user_version = {following}"))
            else:
                # Writes a row of the catalog and a commit record, and leaves nothing behind.
                await tx.execute(text("CREATE TEMPORARY TABLE write_probe (a int) ON COMMIT DROP"))

    @contextlib.contextmanager
    def _typed_failures(self, *, connecting: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failure = typed(error, self._path, connecting=connecting)
            if failure is None:
                raise
            self.health.failed(failure)
            if failure is error:
                raise
            raise failure from error

    async def close(self) -> None:
        await self.engine.dispose()


def open_database(url: str | URL) -> Database:
    """Open ``sqlite+aiosqlite:///path`` or ``postgresql+asyncpg://...``; connects on first use."""
    url = make_url(url)
    if url.get_backend_name() != "sqlite":
        # A pooled connection may have died with a restart of PostgreSQL; the ping replaces it.
        return Database(create_async_engine(url, pool_pre_ping=True))
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def embedded_url(path: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(path))


def _prepare_sqlite(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    del entry
    # The driver begins late and never IMMEDIATE, so its own BEGIN is off and _begin_sqlite does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # SQLite cannot upgrade a reader to a writer without risking SQLITE_BUSY, so writers begin
    # IMMEDIATE.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
