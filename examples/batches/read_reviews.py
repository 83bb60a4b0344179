"""What the reviews were sorted into: a reader of result files as one writes it for OpenAI's Batch API, without inturn.

inturn batch run examples/batches/reviews.jsonl -o labels.jsonl
python examples/batches/read_reviews.py labels.jsonl labels.errors.jsonl
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABELS = ("positive", "mixed", "negative")


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an output or error file. A batch without failed lines has no error file."""
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def label_of(completion: dict[str, Any]) -> str:
    """A model was asked for one word. Some say more; echo, which is no model, always does."""
    said = completion["choices"][0]["message"]["content"].strip(" .\n").lower()
    return said if said in LABELS else "unclear"


def reason_of(failed: dict[str, Any]) -> str:
    """Where the provider refused, its own words stand in the response; else the error says why there is none."""
    error = failed["error"] or failed["response"]["body"]["error"]
    return f"{error['code']}: {error['message']}"


def main(output: Path, errors: Path) -> None:
    labels, tokens, total = Counter[str](), 0, 0
    for entry in entries(output):
        completion = entry["response"]["body"]
        labels[label_of(completion)] += 1
        tokens += completion["usage"]["total_tokens"]
        total += 1
    print(f"{total} reviews, {tokens:,} tokens")
    for label in (*LABELS, "unclear"):
        print(f"  {labels[label]:3} {label}")
    for entry in entries(errors):
        print(f"  {entry['custom_id']} has no label: {reason_of(entry)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
