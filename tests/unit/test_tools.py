"""What becomes a tool, what a model is told of it, and what is refused where it is defined."""

import importlib
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import Annotated, Any, Literal
from unittest.mock import patch

import pytest
from pydantic import AfterValidator, BaseModel, Field

from inturn.models.errors import InvalidInputError
from inturn.tools import TOOLS, BadArgumentsError, Tool, ToolContext, ToolError, tool

CONTEXT = ToolContext("user-123", "1.1", "a-key", "echo/echo")


class Line(BaseModel):
    article: str
    count: int = 1


def check_even(number: int) -> int:
    if number % 2:
        raise ValueError("sk-secret is odd")
    return number


def check_known(city: str) -> str:
    if city != "Ulm":
        raise ToolError("only Ulm is known")
    return city


@pytest.fixture(autouse=True)
def no_tools() -> Iterator[None]:
    with patch.dict(TOOLS, clear=True):
        yield


def made(function: Callable[..., Any], **options: Any) -> Tool:
    tool(**options)(function)
    (made,) = TOOLS.values()
    return made


def refusal(function: Any, **options: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        tool(**options)(function)
    assert not TOOLS
    return str(caught.value)


def refused(tool: Tool, arguments: str) -> str:
    with pytest.raises(BadArgumentsError) as caught:
        tool.call(arguments, CONTEXT)
    return str(caught.value)


# What a model is told


def test_a_function_stays_what_it_is_and_is_known_by_its_name() -> None:
    def get_weather(city: str) -> str:
        """Tell the weather."""
        return f"fine in {city}"

    assert tool(get_weather) is get_weather
    assert tool(name="weather-2", description="Told.\n", deadline=timedelta(seconds=3))(get_weather) is get_weather
    plain, named = TOOLS["get_weather"], TOOLS["weather-2"]
    assert (plain.function, plain.description, plain.deadline) == (get_weather, "Tell the weather.", None)
    assert (named.function, named.description, named.deadline) == (get_weather, "Told.", timedelta(seconds=3))


def test_the_schema_says_types_defaults_and_what_the_docstring_says() -> None:
    def order(
        lines: list[Line],
        speed: Literal["slow", "fast"] = "slow",
        *,
        day: date | None = None,
        note: Annotated[str, Field(description="Mine", max_length=9)] = "",
    ) -> None:
        """Order something.

        At once.

        Args:
            lines: What to order,
                one by one.
            speed (str): How fast.

                It costs more.
            note: Not this.

        Returns:
            Nothing.
        """

    known = made(order)
    assert known.description == "Order something.\n\nAt once."
    assert known.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["lines"],
        "properties": {
            "lines": {
                "type": "array",
                "items": {"$ref": "#/$defs/Line"},
                "description": "What to order, one by one.",
            },
            "speed": {
                "type": "string",
                "enum": ["slow", "fast"],
                "default": "slow",
                "description": "How fast. It costs more.",
            },
            "day": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
            "note": {"type": "string", "default": "", "maxLength": 9, "description": "Mine"},
        },
        "$defs": {
            "Line": {
                "title": "Line",
                "type": "object",
                "required": ["article"],
                "properties": {"article": {"type": "string"}, "count": {"type": "integer", "default": 1}},
            }
        },
    }


def test_a_tool_without_a_docstring_is_described_by_its_name() -> None:
    def get_weather() -> None: ...

    assert made(get_weather).description == "get weather"


def test_a_parameter_may_be_called_as_no_field_of_pydantic_may() -> None:
    def odd(_id: int, json: str, model_config: bool = True, copy: object = Connection) -> object:
        return [_id, json, model_config, copy]

    known = made(odd)
    assert list(known.parameters["properties"]) == ["_id", "json", "model_config", "copy"]
    assert known.call('{"_id": 7, "json": "x"}', CONTEXT) == [7, "x", True, Connection]


def test_annotations_that_are_written_as_texts_are_read() -> None:
    def order(lines: "list[Line]", context: "ToolContext") -> object:
        return lines, context.key

    known = made(order)
    assert list(known.parameters["properties"]) == ["lines"]
    assert known.call('{"lines": [{"article": "ink"}]}', CONTEXT) == ([Line(article="ink")], "a-key")


# Calling


def test_arguments_arrive_as_their_types_and_defaults_as_they_are() -> None:
    def order(line: Line, day: date, many: list[int] = [], context: ToolContext = CONTEXT) -> object:  # noqa: B006
        many.append(1)
        return line, day, many, context.turn_id

    known, arguments = made(order), '{"line": {"article": "ink", "count": "3"}, "day": "2026-11-29"}'
    expected = (Line(article="ink", count=3), date(2026, 11, 29), [1], "1.1")
    assert known.call(arguments, CONTEXT) == expected
    assert known.call(arguments, CONTEXT) == expected


@pytest.mark.parametrize("nothing", ["", "  ", "{}"])
def test_a_tool_without_parameters_needs_no_arguments(nothing: str) -> None:
    def now() -> str:
        return "noon"

    known = made(now)
    assert known.parameters == {"type": "object", "additionalProperties": False, "properties": {}}
    assert known.call(nothing, CONTEXT) == "noon"


def test_an_async_function_is_awaited() -> None:
    async def now(context: ToolContext) -> str:
        return context.key

    assert made(now).call("{}", CONTEXT) == "a-key"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "city: Field required"),
        ("nope", "Invalid JSON: "),
        ('{"city": "Ulm"', "Invalid JSON: "),
        ('["Ulm"]', "Input should be an object"),
        ('{"city": 7}', "city: Input should be a valid string"),
        ('{"city": "Ulm", "days": 0}', "days: Input should be greater than or equal to 1"),
        ('{"city": "Ulm", "context": {}}', "context: Extra inputs are not permitted"),
        ('{"city": "Ulm", "argument_0": "Bonn"}', "argument_0: Extra inputs are not permitted"),
        ('{"city": "\ud800"}', "Input should be a valid string"),
        ("{" + ", ".join(f'"extra{n}": 1' for n in range(7)) + "}", "; and 3 more"),
    ],
)
def test_arguments_that_do_not_fit_are_told_and_nothing_is_run(arguments: str, complaint: str) -> None:
    def get_weather(city: str, context: ToolContext, days: Annotated[int, Field(ge=1)] = 1) -> None:
        raise AssertionError("it was run")

    assert complaint in refused(made(get_weather), arguments)


def test_what_a_validator_says_is_told_only_if_it_is_said_on_purpose() -> None:
    def get_weather(
        city: Annotated[str, AfterValidator(check_known)] = "Ulm",
        days: Annotated[int, AfterValidator(check_even)] = 2,
    ) -> None: ...

    known = made(get_weather)
    assert refused(known, '{"days": 3}').endswith("days: refused (ValueError)")
    with pytest.raises(ToolError, match="only Ulm is known"):
        known.call('{"city": "Bonn"}', CONTEXT)


# What is refused where it is defined


def test_a_parameter_that_no_model_can_give_is_refused() -> None:
    def starred(*cities: str) -> None: ...
    def doubly_starred(**cities: str) -> None: ...
    def by_position(city: str, /) -> None: ...
    def bare(city) -> None: ...
    def optional(context: ToolContext | None) -> None: ...
    def local(city: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def connected(to: Connection) -> None: ...
    def told(back: Callable[[], None]) -> None: ...

    because = {
        starred: "its parameter 'cities' is *cities. A model gives every argument by its name",
        doubly_starred: "its parameter 'cities' is **cities. A model gives every argument by its name",
        by_position: "its parameter 'city' is positional-only. A model gives every argument by its name",
        bare: "its parameter 'city' has no annotation. The model is told types by them",
        optional: "its parameter 'context' is more than a ToolContext. Annotate it with that alone",
        local: "an annotation cannot be read (name 'Nowhere' is not defined). Define it before, at the module's level",
        connected: "its arguments cannot be read from JSON (Unable to generate pydantic-core schema for "
        "<class 'sqlite3.Connection'>). Take types that JSON has",
        told: "its arguments cannot be read from JSON (Cannot generate a JsonSchema for core_schema.CallableSchema). "
        "Take types that JSON has",
    }
    for function, reason in because.items():
        assert refusal(function) == f"{function.__name__!r} cannot be a tool: {reason}"


@pytest.mark.parametrize("name", ["", "get weather", "wetter.heute", "größe", "x" * 65, "x\n", 7])
def test_a_name_that_no_provider_takes_is_refused(name: Any) -> None:
    def get_weather() -> None: ...

    assert "cannot be a tool's name: take 1 to 64 letters, digits, _ and -" in refusal(get_weather, name=name)


def test_what_is_no_function_is_refused() -> None:
    for thing in ("get_weather", str, Line(article="ink").model_dump):
        assert "@tool stands over a function" in refusal(thing)
    with pytest.raises(InvalidInputError, match="its options are named"):
        tool("get_weather")  # type: ignore[call-overload]


@pytest.mark.parametrize("deadline", [timedelta(0), timedelta(seconds=-1), 3])
def test_a_deadline_is_a_time_above_zero(deadline: Any) -> None:
    def get_weather() -> None: ...

    assert "it is a timedelta above zero" in refusal(get_weather, deadline=deadline)


def test_two_functions_of_one_name_are_refused_and_the_first_one_stays() -> None:
    def get_weather() -> str:
        return "first"

    def other() -> str:
        return "second"

    first = made(get_weather)
    with pytest.raises(InvalidInputError) as caught:
        tool(name="get_weather")(other)
    assert str(caught.value).startswith("there is a tool 'get_weather' already, ")
    assert {"get_weather": first} == TOOLS


def test_two_functions_of_one_factory_are_two() -> None:
    def factory() -> Callable[[], None]:
        def get_weather() -> None: ...

        return tool(get_weather)

    factory()
    with pytest.raises(InvalidInputError, match="there is a tool 'get_weather' already"):
        factory()


def test_a_module_may_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reloaded_tools.py").write_text("from inturn.tools import tool\n@tool\ndef now() -> str: return 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_tools")
    try:
        importlib.reload(module)
        assert TOOLS["now"].function is module.now
    finally:
        del sys.modules["reloaded_tools"]
