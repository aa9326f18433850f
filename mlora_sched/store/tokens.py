"""The tokens that users have over TCP. Of a secret only its hash is kept; whether a token holds, its record says."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Engine, Row, insert, select, update

from mlora_sched.errors import NotFound, Refused
from mlora_sched.spec.access import TokenView
from mlora_sched.store import schema
from mlora_sched.store.db import reading, writing


def hash_of(secret: str) -> str:
    """What is kept of a secret. One of 256 random bits needs neither salt nor a slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Tokens:
    """The part of the store that knows tokens. `JobStore` adds the rest."""

    _engine: Engine

    def add_token(self, token: TokenView, secret: str) -> None:
        """Keep a new token."""
        values = {
            "id": token.id,
            "owner": token.user,
            "note": token.note,
            "hash": hash_of(secret),
            "admin": int(token.admin),
            "created": token.created,
            "expires": token.expires,
            "revoked": token.revoked,
        }
        with writing(self._engine) as connection:
            connection.execute(insert(schema.tokens).values(values))

    def tokens(self) -> tuple[TokenView, ...]:
        """All tokens, those that hold no more, too; oldest first."""
        query = select(schema.tokens).order_by(schema.tokens.c.created, schema.tokens.c.id)
        with reading(self._engine) as connection:
            return tuple(_view(row) for row in connection.execute(query))

    def token_of(self, secret_hash: str) -> TokenView | None:
        """The token whose secret has this hash, be it one that holds no more."""
        query = select(schema.tokens).where(schema.tokens.c.hash == secret_hash)
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _view(row)

    def revoke_token(self, token_id: str, now: float) -> TokenView:
        """Let a token hold no more.

        Raises:
            NotFound: there is no such token.
            Refused: it was revoked before.
        """
        table = schema.tokens
        query = select(table).where(table.c.id == token_id)
        with writing(self._engine) as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise NotFound(f"no token {token_id}; `mlora-sched admin token ls` lists them")
            if row.revoked is not None:
                raise Refused(f"token {token_id} of {row.owner} was revoked before; there is nothing to do")
            connection.execute(update(table).where(table.c.id == token_id).values(revoked=now))
            return _view(connection.execute(query).one())


def _view(row: Row[Any]) -> TokenView:
    return TokenView(
        id=row.id,
        user=row.owner,
        admin=bool(row.admin),
        note=row.note,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )
