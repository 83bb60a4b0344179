"""What stands in the guides' blocks of code."""

import re
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "how-to"


def blocks(page: Path, language: str) -> list[str]:
    """A page's blocks of code in this language, also those within lists."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
