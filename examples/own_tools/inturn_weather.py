"""Tools of one's own: what the weather is like, and an umbrella against it.

What is worth copying: types and descriptions that leave the model little room for mistakes, a ``ToolError`` in words that
it can act on, and a key that makes ordering twice order once.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from inturn.tools import ToolContext, ToolError, tool

DEGREES = {"Ulm": 4.5, "Lisbon": 17.0}
ORDERS: dict[str, str] = {}


@tool
def get_weather(
    city: Annotated[str, Field(description="In English, without the country", min_length=1)],
    unit: Literal["celsius", "fahrenheit"] = "celsius",
) -> dict[str, str | float]:
    """Tell how warm it is in a city now."""
    if city not in DEGREES:
        # The model reads this. Of any other exception it is told the type only.
        raise ToolError(f"no weather is known for {city}: there are {', '.join(DEGREES)}")
    degrees = DEGREES[city]
    return {"city": city, "degrees": degrees if unit == "celsius" else degrees * 9 / 5 + 32, "unit": unit}


@tool(deadline=timedelta(seconds=5))
async def order_umbrella(color: Literal["red", "black"], context: ToolContext) -> str:
    """Order an umbrella for the user.

    Args:
        color: As the user said. Ask, if they did not.
    """
    # If the worker dies now, the call is run again, with this key: a shop has to be told it.
    number = ORDERS.setdefault(context.key, f"{len(ORDERS) + 1:04}")
    return f"order {number}: one {color} umbrella"
