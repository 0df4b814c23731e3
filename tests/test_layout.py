"""The layout: what lies where, and who may import whom."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vox.cli import COMMANDS

CHECKOUT = Path(__file__).resolve().parent.parent
STAGES = ("precompute", "train", "evaluate")
PACKAGES = ("vox", *STAGES)

TOP_LEVEL = {
    ".ci",
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
VAGUE_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "misc"}


def module_paths(package: str) -> list[Path]:
    """List a package's Python files; fail if there are none, so that no check is vacuous."""
    paths = sorted((CHECKOUT / package).rglob("*.py"))
    assert paths, f"no modules in {package}"
    return paths


def imported_modules(path: Path) -> set[str]:
    """Name every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    """Run code in a fresh interpreter and name the modules that it leaves loaded."""
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
        "group = vox.cli.cli\n"
        "for name in vox.cli.COMMANDS:\n"
        "    command = group.get_command(click.Context(group), name)\n"
        "    assert isinstance(command, click.Command) and command.name == name, name"
    )
    assert {command.module for command in COMMANDS.values()} <= loaded
    assert not loaded & {"torch", "torchaudio", "transformers", "h5py"}


def test_nothing_that_is_read_is_executed() -> None:
    """Checkpoints, configs and caches come from elsewhere: torch.load must say that it takes data only."""
    for package in PACKAGES:
        for path in (CHECKOUT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name, where = ast.unparse(node.func), f"{path.name}:{node.lineno}"
                assert name not in EXECUTING, f"{where}: {name}"
                if name == "torch.load":
                    assert "weights_only=True" in map(ast.unparse, node.keywords), where
