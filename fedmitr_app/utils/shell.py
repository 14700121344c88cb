"""Words for a shell; what other programs and the system's files say, if they say anything."""

import subprocess
from pathlib import Path


def output_of(command: list[str], folder: Path | None = None) -> str | None:
    """Return what a command prints, or None when it fails, hangs or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def text_of(path: Path) -> str:
    """Return a file's text, or nothing if it can't be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def quoted(text: str) -> str:
    """Return text as one word of a shell: in double quotes where that is enough."""
    special = set('"$`\\!')
    return f'"{text}"' if not special & set(text) else "'" + text.replace("'", "'\\''") + "'"
