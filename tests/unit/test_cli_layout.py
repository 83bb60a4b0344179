"""Tables in a terminal: what is cut, what is left out, what never is."""

from datetime import datetime, timedelta

from inturn.cli.layout import fitted, short_date

COLUMNS = ["ID", "MODEL", "HELD", "USED", "LABELS"]
GIVES_WAY = ["LABELS", "MODEL"]
ROWS = [
    ["user-123-conversation", "echo/echo", "no", "11-22 11:20", "team=red, region=eu"],
    ["b", "x/y", "no", "-", "-"],
]


def test_what_fits_is_shown_whole_and_what_says_nothing_is_left_out() -> None:
    assert fitted(COLUMNS, ROWS, 80, GIVES_WAY) == [
        "ID                     MODEL      USED         LABELS",
        "user-123-conversation  echo/echo  11-22 11:20  team=red, region=eu",
        "b                      x/y        -            -",
    ]


def test_labels_give_way_first_then_the_model() -> None:
    assert fitted(COLUMNS, ROWS, 60, GIVES_WAY)[1] == "user-123-conversation  echo/echo  11-22 11:20  team=red, re…"
    assert fitted(COLUMNS, ROWS, 50, GIVES_WAY)[1] == "user-123-conversation  echo/echo  11-22 11:20"
    assert fitted(COLUMNS, ROWS, 40, GIVES_WAY)[1] == "user-123-conversation  11-22 11:20"


def test_an_id_that_is_too_long_sticks_out_of_its_own_row_alone() -> None:
    rows = [["x" * 40, "echo/echo", "yes", "11-22 11:20", "-"], *ROWS]
    lines = fitted(COLUMNS, rows, 40, GIVES_WAY)
    assert lines[1] == f"{'x' * 40}  yes   11-22 11:20"
    assert [len(line) for line in lines[2:]] == [40, 30]


def test_wide_characters_are_counted_as_such() -> None:
    assert fitted(["A", "B"], [["日本", "x"], ["abcd", "y"]], 80, []) == ["A     B", "日本  x", "abcd  y"]


def test_a_date_is_as_long_as_it_needs_to_be() -> None:
    now = datetime.now().astimezone()
    assert short_date(now) == f"{now:%m-%d %H:%M}"
    assert short_date(now - timedelta(days=400)) == f"{now - timedelta(days=400):%Y-%m-%d}"
