"""Text that others wrote, made harmless where it is shown."""

LONGEST = 500
"""Characters of a stranger's text that are kept (choice)."""
_FORMULA = ("=", "+", "-", "@")


def harmless(text: object, longest: int = LONGEST) -> str:
    """Return a stranger's text as one line that does nothing but be read.

    White space becomes single blanks. What has no shape of its own (control characters, which
    rule terminals; marks of direction or without width, which hide or turn round what stands
    beside them; halves of surrogates, which no file takes) becomes "?". What is beyond
    ``longest`` characters is cut, and an ellipsis says so.
    """
    whole = str(text)
    start = whole[: 8 * longest]  # so that no text takes long
    line = "".join(one if one.isprintable() else "?" for one in " ".join(start.split()))
    if len(line) <= longest and start == whole:
        return line
    return line[: longest - 1] + "…"


def no_formula(cell: str) -> str:
    """Return text for a cell of a CSV that no spreadsheet takes for a formula (OWASP)."""
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell
