"""How a synchronous method becomes one to be awaited: with its signature and its words, whatever they are.

Nothing of a signature is written twice. What a method of the synchronous SDK learns, its counterpart knows as well; so do
type checkers, by the ``ParamSpec``.
"""

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from inturn.aio.staff import Staff

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")


class Face(Protocol):
    """A handle for asyncio: a synchronous one, and who does the calls."""

    @property
    def _staff(self) -> Staff: ...
    @property
    def _handle(self) -> Any: ...


def like(method: Callable[Concatenate[Any, P], Any]) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Give a method the signature and the documentation of a synchronous one; its own documentation goes ahead."""

    def dress(ours: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        ours.__doc__ = ours.__doc__ or method.__doc__
        ours.__name__, ours.__qualname__ = method.__name__, method.__qualname__
        ours.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
        return ours

    return dress


@overload
def wrapped(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]: ...
@overload
def wrapped(
    method: Callable[Concatenate[Any, P], R], face: Callable[[Staff, R], F]
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, F]]: ...
def wrapped(method: Callable[..., Any], face: Callable[[Staff, Any], Any] | None = None) -> Callable[..., Any]:
    """The method, called in a thread; ``face`` makes an asyncio handle of the one that it returns."""

    @like(method)
    async def call(self: Face, *args: Any, **kwargs: Any) -> Any:
        found = await self._staff.call(method, self._handle, *args, **kwargs)
        return found if face is None else face(self._staff, found)

    return call


@overload
def paged(
    method: Callable[Concatenate[Any, P], Iterator[R]],
) -> Callable[Concatenate[Any, P], AsyncGenerator[R, None]]: ...
@overload
def paged(
    method: Callable[Concatenate[Any, P], Iterator[R]], face: Callable[[Staff, R], F]
) -> Callable[Concatenate[Any, P], AsyncGenerator[F, None]]: ...
def paged(
    method: Callable[..., Iterator[Any]], face: Callable[[Staff, Any], Any] | None = None
) -> Callable[..., AsyncGenerator[Any, None]]:
    """What the method lists, for ``async for``, page by page. It begins, and refuses, where the first is asked for."""

    @like(method)
    def listed(self: Face, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        staff = self._staff
        faced = (lambda found: found) if face is None else partial(face, staff)
        return staff.pages(lambda: method(self._handle, *args, **kwargs), faced)

    return listed
