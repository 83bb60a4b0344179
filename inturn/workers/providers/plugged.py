"""The builders that other packages bring, by the entry points that they have: see ``docs/providers.md``."""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import PurePath
from traceback import extract_tb

from inturn.provider_settings import plug_ins
from inturn.workers.provider import Builder, ProviderError
from inturn.workers.providers.scrubbing import one_line


class Builders(Mapping[str, Builder]):
    """What can be made, by type: ours, and what is plugged in, which is imported when it is first asked for.

    Nobody's package takes the name of one of ours.
    """

    def __init__(self, ours: Mapping[str, Builder]) -> None:
        self._ours = ours
        self._theirs: dict[str, Builder | str] = {}

    def __getitem__(self, type_: str) -> Builder:
        """The builder of a type.

        Raises:
            KeyError: there is no such type.
            ProviderError: its package cannot be used (permanent).
        """
        if type_ in self._ours:
            return self._ours[type_]
        if type_ not in self._theirs:
            self._theirs[type_] = _load(next(iter(_named(type_))))
        loaded = self._theirs[type_]
        if isinstance(loaded, str):
            raise ProviderError("permanent", "provider_not_loaded", loaded)
        return loaded

    def __iter__(self) -> Iterator[str]:
        yield from self._ours
        yield from sorted({plug_in.name for plug_in in plug_ins()} - self._ours.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))


def _named(type_: str) -> Iterator[EntryPoint]:
    found = plug_ins().select(name=type_)
    if not found:
        raise KeyError(type_)
    return iter(found)


def _load(plug_in: EntryPoint) -> Builder | str:
    """The builder, or why there is none. It is not tried again: an import that fails takes its time, every time."""
    whose = f"{plug_in.dist.name} {plug_in.dist.version}" if plug_in.dist else "an unknown package"
    what = f"the provider type {plug_in.name!r} comes with {whose}, and {plug_in.value} in it"
    remedy = "Correct or reinstall it, and restart the worker"
    try:
        builder = plug_in.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (somebody else's code: it may fail, but alone)
        why = f"{type(error).__name__}{_detail(error)}"
        return f"{what} cannot be imported ({why}). {remedy}"
    if not callable(builder):
        return f"{what} is a {type(builder).__name__}, where a Builder should be. {remedy}"
    return builder  # type: ignore[no-any-return]


def _detail(error: BaseException) -> str:
    """What is missing, or where it went wrong."""
    if isinstance(error, ImportError | AttributeError | SyntaxError):
        return f": {one_line(str(error))[:120]}"
    frame = extract_tb(error.__traceback__)[-1]
    return f" in {PurePath(frame.filename).name}, line {frame.lineno}"
