"""The repository as a whole: pins, seams, sizes, and a core that needs no Flower."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from fedmitr_app.config.presets import PRESETS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmitr_app"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KNOW_FLOWER = ("client_app.py", "server_app.py", "strategies")
# A run, and the command that foretells one, work with the strategies and not with Flower.
WITH_STRATEGIES = ("run.py", "commands/check.py")
CORE = (
    *("methods", "inversion", "distillation", "teacher", "merging", "models", "training"),
    "uploads",
)


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", text.split("+")[0]))


def test_the_pins_satisfy_the_ranges():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            pins[name.strip().lower().replace("_", "-")] = version(pinned)
    ranges = [
        *PROJECT["project"]["dependencies"],
        *(each for extra in PROJECT["project"]["optional-dependencies"].values() for each in extra),
    ]
    for requirement in ranges:
        name = re.match(r"[A-Za-z0-9-]+", requirement).group()
        pinned = pins.get(name)
        assert pinned, f"constraints.txt doesn't pin {name}"
        for operator, bound in re.findall(r"(>=|<)([0-9.]+)", requirement):
            length = max(len(pinned), len(version(bound)))
            have, limit = (v + (0,) * (length - len(v)) for v in (pinned, version(bound)))
            held = have >= limit if operator == ">=" else have < limit
            assert held, f"constraints.txt pins {name} outside {requirement}"


def test_only_the_edge_knows_flower():
    for path in sources(PACKAGE):
        if path.relative_to(PACKAGE).parts[0] in KNOW_FLOWER:
            continue
        roots = {name.split(".")[0] for name in imported(path)}
        assert "flwr" not in roots, path
        assert "flwr_datasets" not in roots or path.parent.name == "partitions", path
        if str(path.relative_to(PACKAGE)) in WITH_STRATEGIES:
            continue
        edge = [f"fedmitr_app.{name.removesuffix('.py')}" for name in KNOW_FLOWER]
        assert not any(name.startswith(tuple(edge)) for name in imported(path)), path


def test_the_core_works_where_flower_is_not_installed():
    # Nor what deals and reads data: the control, which does neither, starts a second sooner.
    blocked = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flwr', 'ray', 'flwr_datasets', 'datasets'):\n"
        "            raise ModuleNotFoundError(f'blocked: {name}')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"import {', '.join(f'fedmitr_app.{room}' for room in CORE)}\n"
        "assert 'flwr' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_is_pickled():
    for path in sources(PACKAGE):
        assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle"}, path


def test_the_documentation_names_every_preset():
    readme = (ROOT / "docs" / "how-to" / "choose-settings.md").read_text(encoding="utf-8")
    for name in PRESETS:
        assert f"`{name}`" in readme, name


def test_the_bundle_holds_the_package_and_the_licence():
    app = PROJECT["tool"]["flwr"]["app"]
    assert app["fab-include"] == ["fedmitr_app/**/*.py", "LICENSE"]
    for part, target in app["components"].items():
        module, _, name = target.partition(":")
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file() and name == "app", part


def test_the_tests_that_the_documentation_names_exist():
    page = (ROOT / "docs" / "explanation" / "reliability.md").read_text(encoding="utf-8")
    file, named = "", 0
    for path, name in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", page):
        if path and not path.startswith("fedmitr_app/"):
            file = path
            assert (ROOT / "tests" / file).exists(), file
        if name:
            named += 1
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
    assert named > 20
