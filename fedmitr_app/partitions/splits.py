"""Which part of a dataset is for training and which is held out: by name, alike in all sources."""

import re
from pathlib import Path

# The names that datasets give to their held-out split, the best one first. Where there are
# several, the others are left out: what validates in one source must not train in another.
TEST_SPLITS = ("test", "validation", "valid", "val")


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Return the training folder and the held-out one inside ``root``, else ``root`` alone."""
    held_out = [root / name for name in TEST_SPLITS if (root / name).is_dir()]
    if (root / "train").is_dir() and held_out:
        return root / "train", held_out[0]
    return root, None


def split_files(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return training and held-out files by how their names start; no such name is training."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.name), []).append(file)
    held_out = [by_split[name] for name in TEST_SPLITS if name in by_split]
    return by_split.get("train", []), held_out[0] if held_out else []


def _split_of(name: str) -> str:
    # 'test-00000-of-00001.parquet', 'validation.parquet'; but 'valley.parquet' is no split.
    word = re.match("[a-z]*", name.lower()).group()
    if word.startswith("test"):
        return "test"
    return word if word in TEST_SPLITS else "train"
