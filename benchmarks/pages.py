"""Tables as Markdown, and the places in a page of docs/ where a benchmark puts its own."""

import re
from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; each row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, name: str, table: str) -> str:
    """The page with what stands between <!-- name --> and <!-- end of name --> replaced.

    Raises `ValueError` where the page has no such place.
    """
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    page, places = pattern.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)
    if places != 1:
        raise ValueError(f"the page has {places} places between <!-- {name} --> and its end")
    return page
