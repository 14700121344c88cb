"""Write what the schema says of the settings into ``pyproject.toml`` and the page of settings."""

from pathlib import Path

from fedmitr_app.config.describe import app_config, page

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "[tool.flwr.app.config]"


def made() -> dict[Path, str]:
    """Return both files as they should be."""
    project = ROOT / "pyproject.toml"
    before, _, _ = project.read_text(encoding="utf-8").partition(BEGIN)
    return {project: before + app_config(), ROOT / "docs" / "reference" / "settings.md": page()}


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
