"""Which errors of a database are caused by a message, and which pass by themselves or are mended elsewhere."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

# Classes of SQLSTATE that the values of a row can cause: cardinality, data, integrity, check option, program limits,
# and what a trigger raises. Everything else (connection, resources, permissions, a table that is missing, a bug) would
# be the same for any other message, and is waited for.
_OF_VALUES = ("21", "22", "23", "44", "54", "P0")


class MessageRefusedError(Exception):
    """The database refuses one or more messages of a batch, and nothing of the batch is applied.

    The text names the kind of error and no values. `may_pass`: another worker may have caused it, at the same time.
    """

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


# What a driver raises of itself, and SQLAlchemy passes on: an integer that is too large, a lone surrogate.
DriverError = StatementError | ValueError | OverflowError


def refusal_by(error: DriverError) -> MessageRefusedError | None:
    """The refusal of a message, or nothing where waiting is right."""
    orig = error.orig if isinstance(error, StatementError) else error
    state = getattr(orig, "sqlstate", None)
    if state is not None:
        is_refusal = state.startswith(_OF_VALUES)
    elif isinstance(error, DBAPIError):
        is_refusal = isinstance(error, DataError | IntegrityError)
    else:
        is_refusal = isinstance(orig, ValueError | OverflowError)
    if not is_refusal:
        return None
    kind = f"database: {type(orig).__name__}{f' ({state})' if state else ''}"
    return MessageRefusedError(kind, may_pass=isinstance(error, IntegrityError))
