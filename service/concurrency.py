"""Work that is done together or not at all, and work that is called off."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure cancels the others and is raised as itself, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # in the order in which they failed
    return [task.result() for task in tasks]


class Stopped(Exception):  # noqa: N818 - no error, a wish
    """Told to stop, by a signal or by whoever started the work."""


async def cancelled_by(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises `Stopped`, with the work called off, if the event comes first."""
    task, stop = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])  # what it holds, such as files and requests, is given back before anything goes on
        raise Stopped
    return await task
