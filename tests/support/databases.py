"""A fresh PostgreSQL database per test, on the server that FLOTILLA_TEST_POSTGRES names."""

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine


@contextlib.asynccontextmanager
async def fresh_postgres(require: Callable[..., None]) -> AsyncIterator[str]:
    """Its URL; the database is dropped in the end."""
    server = os.environ.get("FLOTILLA_TEST_POSTGRES")
    require("postgres", missing=None if server else "FLOTILLA_TEST_POSTGRES names no server")
    assert server is not None
    name = f"flotilla_test_{secrets.token_hex(4)}"
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        url = make_url(server).set(database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name}"))
        await admin.dispose()
