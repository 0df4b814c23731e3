"""The layout: where files are, and which modules may import which."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vox.cli import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[2]
STAGES = ("precompute", "train", "evaluate")
PACKAGES = ("vox", *STAGES)

TOP_LEVEL = {
    ".ci",
    ".github",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "configs",
    "data",
    "docs",
    "evaluate",
    "precompute",
    "pyproject.toml",
    "requirements.txt",
    "tests",
    "train",
    "vox",
}
# Reading with these may execute what was read, unless an argument forbids it.
EXECUTING = {
    *("eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "numpy.load", "np.load", "joblib.load"),
}
# Rooms and their floors, by package: the page that people read is what is checked.
ARCHITECTURE = CHECKOUT / "docs" / "architecture.md"
VAGUE_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "misc"}


def module_paths(package: str) -> list[Path]:
    """List a package's Python files; fail if there are none, so that every check does something."""
    paths = sorted((CHECKOUT / package).rglob("*.py"))
    assert paths, f"no modules in {package}"
    return paths


def imported_modules(path: Path) -> set[str]:
    """Name every module that a file imports, wherever in the file."""
    return imported_by(ast.parse(path.read_text(encoding="utf-8")), path)


def imported_by(tree: ast.AST, path: Path) -> set[str]:
    """Name every module that a syntax tree imports; fail for a relative import."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_library_never_imports_a_stage_or_the_tests() -> None:
    for path in module_paths("vox"):
        roots = {name.partition(".")[0] for name in imported_modules(path)}
        assert not roots & {*STAGES, "tests"}, path


def test_stages_never_import_each_other() -> None:
    for stage in STAGES:
        for path in module_paths(stage):
            roots = {name.partition(".")[0] for name in imported_modules(path)}
            assert not roots & ({*STAGES, "tests"} - {stage}), path


def test_only_the_command_line_knows_the_command_line() -> None:
    may = {CHECKOUT / "vox/cli.py", CHECKOUT / "vox/__main__.py", *(CHECKOUT / "vox/commands").iterdir()}
    for package in PACKAGES:
        for path in set(module_paths(package)) - may:
            names = imported_modules(path)
            assert not any(name.startswith(("vox.cli", "vox.commands")) for name in names), path


def read_floors() -> dict[str, int]:
    """Read each room's floor from docs/architecture.md, as `vox.disk`."""
    floors: dict[str, int] = {}
    package = ""
    for line in ARCHITECTURE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"## `(\w+)/`", line):
            package = match[1]
        elif match := re.fullmatch(r"\| (\d+) \| (.+) \|", line):
            rooms = re.findall(r"`(\w+)`", match[2])
            assert rooms and not floors.keys() & {f"{package}.{room}" for room in rooms}, line
            floors |= {f"{package}.{room}": int(match[1]) for room in rooms}
    return floors


def room_of(module: str) -> str:
    """Return the room of a module: the first two parts of its name."""
    return ".".join(module.split(".")[:2])


def test_every_room_has_a_floor_and_imports_from_lower_floors_only() -> None:
    floors = read_floors()
    found = set()
    for package in PACKAGES:
        for path in module_paths(package):
            module = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
            if module == f"{package}.__init__":
                continue
            room = room_of(module)
            found.add(room)
            assert room in floors, f"{room} has no floor in {ARCHITECTURE.name}"
            for name in imported_modules(path):
                other = room_of(name)
                if name.partition(".")[0] == package and other in floors and other != room:
                    assert floors[other] < floors[room], f"{module} imports {name}, not on a lower floor"
    assert found == floors.keys()


def find_arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which of these modules each imports, for type checkers too; of a package, its own names."""
    arrows: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                arrows[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                arrows[name] |= {part if part in sources else str(node.module) for part in parts}
    return {name: (others & sources.keys()) - {name} for name, others in arrows.items()}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither as they run nor for type checkers; inside a room too, where there are no floors."""
    sources = {}
    for package in PACKAGES:
        for path in module_paths(package):
            name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
            sources[name] = path.read_text(encoding="utf-8")
    arrows = find_arrows(sources)
    assert arrows["vox.wavlm.model"] >= {"vox.wavlm.measure", "vox.wavlm.stem"}
    list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, which names them

    held_open = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vox.wavlm.model import WavLM\n"
    sources["vox.wavlm.measure"] += held_open
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(find_arrows(sources)).prepare()


def test_the_floors_are_checked(tmp_path: Path) -> None:
    """An import of a higher room is found anywhere in the file, for type checkers too."""
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vox.cli\n"
        "def f():\n    from vox.commands import demo\n"
    )
    assert {"vox.cli", "vox.commands", "vox.commands.demo"} <= imported_modules(path)
    floors = read_floors()
    assert floors["vox.commands"] > floors["vox.checkpoint"] > floors["vox.disk"] > floors["vox.errors"]


def test_where_things_are_is_where_they_are() -> None:
    """The table in docs/contributing.md: each file defines the symbol beside it."""
    page = (CHECKOUT / "docs" / "contributing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| `([\w/]+\.py)` \| (`.+`) \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for path, names in rows:
        tree = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
        defined: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {
                    part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
                }
        missing = set(re.findall(r"`(\w+)`", names)) - defined
        assert not missing, f"{path} does not define {missing}"


def test_the_pages_of_the_docs_are_all_in_their_index_and_links_lead_somewhere() -> None:
    index = (CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    for page in pages:
        if page.parent.name == "docs" and page.name != "README.md":
            assert f"]({page.name})" in index, page
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_paths_in_the_docs_exist() -> None:
    """Files of the code named in the README and the docs exist; the lab book may name old ones."""
    for page in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]:
        if page.name in ("log.md", "changes.md"):
            continue
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:vox|train|precompute|evaluate|tests|configs|docs)/[\w/.]+)`", text):
            assert (CHECKOUT / path).exists(), f"{page.name}: {path}"


def test_no_module_has_a_name_that_says_nothing() -> None:
    for package in PACKAGES:
        for path in module_paths(package):
            parts = set(path.relative_to(CHECKOUT).with_suffix("").parts)
            assert not parts & VAGUE_NAMES, path


def test_the_top_level_is_the_fixed_set() -> None:
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("needs a git checkout: what git ignores is not part of the layout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert {line.partition("/")[0] for line in listed.splitlines()} == TOP_LEVEL


def loaded_modules(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the names of the loaded modules."""
    program = f"import sys\n{code}\nprint(*sys.modules, file=sys.__stderr__)"
    result = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_modules("from vox.cli import main\nassert main(['--help']) == 0")
    assert "vox.cli" in loaded
    assert not loaded & {"torch", "torchaudio", "transformers", "h5py", "numpy", "yaml", "pydantic", "jiwer"}
    assert not loaded & {command.module for command in COMMANDS.values()}


def test_no_command_imports_torch_before_it_runs() -> None:
    loaded = loaded_modules(
        "import click, vox.cli, vox.config, vox.errors, vox.units\n"
        # and what commands check before they import it
        "import precompute.run, train.inputs, vox.checkpoint.series\n"
        "group = vox.cli.cli\n"
        "for name in vox.cli.COMMANDS:\n"
        "    command = group.get_command(click.Context(group), name)\n"
        "    assert isinstance(command, click.Command) and command.name == name, name"
    )
    assert {command.module for command in COMMANDS.values()} <= loaded
    assert not loaded & {"torch", "torchaudio", "transformers", "h5py"}


def test_what_a_command_can_check_at_once_is_checked_before_torch_is_imported() -> None:
    loaded = loaded_modules(
        "import vox, vox.cli, vox.errors\n"
        "for checkpoint, decoder in (('nowhere', 'ctc'), (None, 'beam')):\n"
        "    try:\n"
        "        vox.load(checkpoint, decoder=decoder)\n"
        "    except vox.errors.VoxError as error:\n"
        "        assert (checkpoint or 'unknown decoder') in str(error), error\n"
        "    else:\n"
        "        raise AssertionError\n"
        "sys.stderr = open('/dev/null', 'w')\n"
        "words = ['evaluate', '--split', 's', '--decoder', 'ctc', '--checkpoint', 'nowhere']\n"
        "assert vox.cli.main(words) == 2\n"
        "words = ['adapt', '--text', 't', '--checkpoint', 'tests/old_formats/checkpoint-0.1', '--out']\n"
        "assert vox.cli.main([*words, 'evaluate']) == 2"  # a folder that is there already
    )
    assert "vox.checkpoint.series" in loaded and "torch" not in loaded


def test_nothing_that_is_read_is_executed() -> None:
    """Checkpoints, configs and caches may come from others: torch.load must be restricted to data."""
    for package in PACKAGES:
        for path in (CHECKOUT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name, where = ast.unparse(node.func), f"{path.name}:{node.lineno}"
                assert name not in EXECUTING, f"{where}: {name}"
                if name == "torch.load":
                    assert "weights_only=True" in map(ast.unparse, node.keywords), where
