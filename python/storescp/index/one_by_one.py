"""Batches of which the database refuses a message: halved until it is found, so that the others go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from storescp.index.database import Message
from storescp.index.patience import FIRST_PAUSE_SECONDS, Patience
from storescp.index.refusals import MessageRefusedError

log = structlog.get_logger("storescp.index")
# Of a message whose refusal another worker may have caused.
_REFUSALS_UNTIL_SET_ASIDE = 3
# With its partition; lines of a file are of partition 0.
Placed = tuple[int, Message]
Apply = Callable[[Sequence[Placed]], Awaitable[MessageRefusedError | None]]


async def apply_each(messages: Sequence[Placed], apply: Apply, patience: Patience) -> None:
    """Applies every message in its order; those that the database refuses are applied as unreadable."""
    refusals: Counter[tuple[int, int]] = Counter()
    todo = [list(messages)]
    while todo and not patience.stopping.is_set():
        part = todo.pop()
        refused = await apply(part)
        if refused is None:
            continue
        if len(part) > 1:
            middle = len(part) // 2
            todo += [part[middle:], part[:middle]]
            continue
        [(partition, message)] = part
        refusals[partition, message.offset] += 1
        may_pass = refused.may_pass and refusals[partition, message.offset] < _REFUSALS_UNTIL_SET_ASIDE
        if may_pass or message.refusal is not None:
            await patience.pause(FIRST_PAUSE_SECONDS)
        else:
            log.error("index.message_refused", partition=partition, offset=message.offset, reason=str(refused))
            message = replace(message, refusal=str(refused))
        todo.append([(partition, message)])
