"""Tools: functions that a model may have called, and that workers run. ``docs/tools.md`` says how they are used.

A function becomes a tool by its signature and its docstring, when it is defined: what cannot be told to a model is
refused there, and not in the middle of a conversation.
"""

import asyncio
import inspect
import re
import textwrap
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import takewhile
from typing import Annotated, Any, TypeVar, get_args, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from inturn.models.content import TOOL_NAME
from inturn.models.errors import InvalidInputError

_SECTION = re.compile(r"^(Args|Arguments|Returns|Yields|Raises):[ \t]*$", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+)(?:[ ]\([^)]*\))?:[ ]*(.*(?:\n[ \t]+.*|\n(?=\n*[ \t]))*)", re.MULTILINE)
_BY_POSITION: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "is *{}",
    inspect.Parameter.VAR_KEYWORD: "is **{}",
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only",
}
_MOST_COMPLAINTS = 5
_WATCH_SECONDS = 0.25

F = TypeVar("F", bound=Callable[..., Any])


class ToolError(Exception):
    """Raise it in a tool to tell the model why there is no result: its message is shown to the model.

    Of any other exception the model is told the type only, since a message may hold what is none of its business.
    """


class BadArgumentsError(ToolError):
    """What the model wrote as arguments is no JSON, or does not fit the schema."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool is told of the call. A parameter that is annotated with it gets it, and is not shown to the model.

    Attributes:
        key: an idempotency key: the same when the very same call is run again because its worker died.
        model: the one that asked, as ``provider/model``.
        given_up: set when nobody waits for the result any more.
    """

    session_id: str
    turn_id: str
    key: str
    model: str
    given_up: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def is_cancelled(self) -> bool:
        """Whether the result will be dropped: the turn was taken back, or the call's deadline has passed."""
        return self.given_up.is_set()


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """A function that a model may have called.

    Attributes:
        parameters: a JSON schema of one object, whose properties are the arguments.
        deadline: of one call; None: what the worker's settings say.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    deadline: timedelta | None
    function: Callable[..., Any]
    reader: type[BaseModel]
    contexts: tuple[str, ...]

    def call(self, arguments: str, context: ToolContext) -> object:
        """Run the function, here and now, on the arguments that a model wrote.

        Raises:
            BadArgumentsError: they do not fit; nothing was run. And whatever the function raises.
        """
        values = self._read(arguments)
        result = self.function(**values, **dict.fromkeys(self.contexts, context))
        return asyncio.run(_finished(result, context)) if inspect.isawaitable(result) else result

    def _read(self, arguments: str) -> dict[str, Any]:
        try:
            # A model that has nothing to say of a tool without parameters may leave them out altogether.
            read = self.reader.model_validate_json(arguments if arguments.strip() else "{}")
        except ValidationError as error:
            raise BadArgumentsError(_complaint(error)) from None
        return {str(info.alias): getattr(read, name) for name, info in self.reader.model_fields.items()}


TOOLS: dict[str, Tool] = {}
"""Every tool that was defined in this process, by name."""


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, deadline: timedelta | None = None
) -> Callable[[F], F]: ...


def tool(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    deadline: timedelta | None = None,
) -> Any:
    """Let models have this function called. The function itself stays as it is.

    Its parameters are annotated, and can be given by name. What an annotation says is checked before the function is
    called; ``Annotated[..., Field(description=...)]`` or the docstring's ``Args:`` explain a parameter to the model.

    Args:
        name: default: the function's.
        description: what the model decides by. Default: the docstring, up to its ``Args:``.
        deadline: for one call in total. Default: ``tool_deadline_seconds`` of the worker's settings.

    Raises:
        InvalidInputError: it cannot be a tool: the message says why, and what to do.
    """
    if function is None:
        return lambda decorated: _registered(decorated, name, description, deadline)
    return _registered(function, name, description, deadline)


def _registered(function: F, name: str | None, description: str | None, deadline: timedelta | None) -> F:
    if not inspect.isfunction(function):
        raise InvalidInputError(
            f"{function!r:.100} cannot be a tool: @tool stands over a function; its options are named, as in "
            '@tool(name="get_weather")'
        )
    made = _made(function, function.__name__ if name is None else name, description, deadline)
    known = TOOLS.get(made.name)
    if known is not None and not _is_reloaded(known.function, function):
        raise InvalidInputError(
            f"there is a tool {made.name!r} already, {_place(known.function)}; {_place(function)} is another one. Give "
            "one of them another name: @tool(name=...)"
        )
    TOOLS[made.name] = made
    return function


def _made(function: Callable[..., Any], name: str, description: str | None, deadline: timedelta | None) -> Tool:
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name!r:.100} cannot be a tool's name: take 1 to 64 letters, digits, _ and -: @tool(name=...)"
        )
    if deadline is not None and (not isinstance(deadline, timedelta) or deadline <= timedelta(0)):
        raise InvalidInputError(f"the deadline of tool {name!r} is {deadline!r:.50}: it is a timedelta above zero")
    said, explained = _told(function.__doc__)
    shown, contexts = _parameters(function, name)
    reader, schema = _reader(name, shown, explained)
    said = said if description is None else inspect.cleandoc(description)
    return Tool(name, said or name.replace("_", " "), schema, deadline, function, reader, contexts)


def _parameters(function: Callable[..., Any], name: str) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """Annotation and default of each parameter that the model is shown, and the names of those that get the context."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise _refused(
            name, f"an annotation cannot be read ({error}). Define it before, at the module's level"
        ) from None
    shown: dict[str, tuple[Any, Any]] = {}
    contexts = []
    for parameter in inspect.signature(function).parameters.values():
        if (how := _BY_POSITION.get(parameter.kind)) is not None:
            how = how.format(parameter.name)
            raise _refused(name, f"its parameter {parameter.name!r} {how}. A model gives every argument by its name")
        if parameter.name not in hints:
            raise _refused(name, f"its parameter {parameter.name!r} has no annotation. The model is told types by them")
        if hints[parameter.name] is ToolContext:
            contexts.append(parameter.name)
            continue
        if ToolContext in get_args(hints[parameter.name]):
            raise _refused(
                name, f"its parameter {parameter.name!r} is more than a ToolContext. Annotate it with that alone"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        shown[parameter.name] = (hints[parameter.name], default)
    return shown, tuple(contexts)


def _reader(
    name: str, shown: dict[str, tuple[Any, Any]], explained: dict[str, str]
) -> tuple[type[BaseModel], dict[str, Any]]:
    """What checks arguments, and the JSON schema of them."""
    fields: dict[str, Any] = {}
    for number, (parameter, (annotation, default)) in enumerate(shown.items()):
        # Numbered: a parameter may be called as no field may, such as _id or json.
        named = Field(alias=parameter, validation_alias=parameter, serialization_alias=parameter)
        fields[f"argument_{number}"] = (Annotated[annotation, named], default)
    try:
        reader = create_model("Arguments", __config__=ConfigDict(extra="forbid", hide_input_in_errors=True), **fields)
        schema = reader.model_json_schema(schema_generator=_Schema)
    except (PydanticUserError, PydanticUndefinedAnnotation, TypeError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise _refused(name, f"its arguments cannot be read from JSON ({why:.200}). Take types that JSON has") from None
    del schema["title"]
    for parameter, told in schema["properties"].items():
        if parameter in explained:
            told.setdefault("description", explained[parameter])
    return reader, schema


class _Schema(GenerateJsonSchema):
    """Without titles, which repeat names, and without a word on defaults that JSON does not have."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def emit_warning(self, kind: Any, detail: str) -> None:
        pass


def _told(docstring: str | None) -> tuple[str, dict[str, str]]:
    """A docstring in Google's style: what stands before its sections, and what it says of each parameter."""
    said, *sections = _SECTION.split(inspect.cleandoc(docstring or ""))
    explained: dict[str, str] = {}
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title.startswith("Arg"):
            indented = takewhile(lambda line: not line.strip() or line[0] == " ", body.splitlines())
            entries = _ENTRY.findall(textwrap.dedent("\n".join(indented)))
            explained |= {parameter: " ".join(text.split()) for parameter, text in entries}
    return said.strip(), explained


def _complaint(error: ValidationError) -> str:
    """For the model that wrote the arguments. What a validator of the tool's author said is told by its type only."""
    told = []
    for detail in error.errors(include_url=False, include_input=False)[:_MOST_COMPLAINTS]:
        raised = detail.get("ctx", {}).get("error")
        what = f"refused ({type(raised).__name__})" if isinstance(raised, Exception) else detail["msg"]
        where = ".".join(str(part) for part in detail["loc"])
        told.append(f"{where:.100}: {what:.200}" if where else f"{what:.200}")
    if (more := error.error_count() - len(told)) > 0:
        told.append(f"and {more} more")
    return f"the arguments do not fit the tool's schema, and nothing was run: {'; '.join(told)}"


async def _finished(result: Awaitable[object], context: ToolContext) -> object:
    """What an async function returns. It is cancelled soon after nobody waits any more: its thread is free again."""
    task = asyncio.ensure_future(result)
    while not task.done():
        await asyncio.wait([task], timeout=_WATCH_SECONDS)
        if context.is_cancelled():
            task.cancel()
    return await task


def _is_reloaded(known: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether both are one definition, whose module was loaded twice. A factory's functions are never one."""
    return _place(known) == _place(function) and "<locals>" not in function.__qualname__


def _place(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{function.__qualname__} in {code.co_filename}, line {code.co_firstlineno}"


def _refused(name: str, because: str) -> InvalidInputError:
    return InvalidInputError(f"{name!r} cannot be a tool: {because}")
