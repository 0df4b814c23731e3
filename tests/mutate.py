"""Does any test notice? Small mistakes are made in a copy of the code, one at a time, and tests are run.

    python -m tests.mutate train/judge/validate.py --tests tests/train/test_validate.py --count 20

Without --tests, a module's tests are those that import it. torch and its like are imported once: every
mutant is a fork of this process, in which Vox is imported from the copy. The score is a sample: look at
each survivor, and decide between a test, a simpler form of the code, and why it does not matter.
"""

import argparse
import ast
import contextlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("vox", "train", "precompute", "evaluate", "tests")
# Imported once for what they import, torch above all; a mutant imports them again, without it.
WARM_UP = (
    "hypothesis",
    "transformers.models.wavlm.modeling_wavlm",
    "train.run",
    "precompute.run",
    "evaluate.run",
)

OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}  # fmt: skip
BARE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)  # conditions without an operator of their own
UNORDERED = ("min", "max", "zip", "isinstance")  # arguments whose exchange says nothing


@dataclass(frozen=True)
class Mutation:
    """One mistake: the text that a node of the source gets instead of its own."""

    path: str
    start: int  # bytes in the file
    end: int
    line: int
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        """Return the file's source with the mistake in it."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def __str__(self) -> str:
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.path}:{self.line}: {old} -> {new}"


def find_mutations(path: str, source: bytes) -> list[Mutation]:
    """List the mistakes that can be made in a module, in the order of its lines."""
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    found = []
    for node, replacement in _walk(ast.parse(source)):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source[start:end].decode()
        found.append(Mutation(path, start, end, node.lineno, old, replacement))
    return sorted(found, key=lambda mutation: (mutation.start, mutation.end, mutation.new))


def _walk(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield each node that can be replaced, with its replacement; not in annotations and decorators."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.expr | ast.stmt):
            for replacement in _replace(node):
                yield node, replacement
        if isinstance(node, ast.If | ast.IfExp) and isinstance(node.test, BARE):
            yield node.test, f"(not {ast.unparse(node.test)})"
        skipped = {"annotation", "returns", "decorator_list"}
        if isinstance(node, ast.JoinedStr):  # its parts have no places of their own before Python 3.12
            continue
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            pending += [child for child in children if isinstance(child, ast.AST) and name not in skipped]


def _replace(node: ast.expr | ast.stmt) -> Iterator[str]:
    """Yield what may stand in a node's place by mistake."""
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in OPPOSITES:
            yield f"({ast.unparse(ast.Compare(left, [OPPOSITES[type(operator)]()], [right]))})"  # type: ignore
        case ast.BoolOp(operator, values):
            yield f"({ast.unparse(ast.BoolOp(OPPOSITES[type(operator)](), values))})"  # type: ignore
        case ast.BinOp(left, operator, right) if type(operator) in OPPOSITES:
            yield f"({ast.unparse(ast.BinOp(left, OPPOSITES[type(operator)](), right))})"  # type: ignore
        case ast.UnaryOp(ast.Not(), operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value)):
            yield str(value + 1)
        case ast.Constant(float(value)):
            yield str(10 * value + 1)
        case ast.Expr(ast.Call(function)) if not ast.unparse(function).startswith("log."):
            yield "pass"
        case ast.AugAssign():
            yield "pass"
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "return None"
        case ast.Call(function, [first, second, *others], keywords) if ast.unparse(function) not in UNORDERED:
            if ast.dump(first) != ast.dump(second):
                yield ast.unparse(ast.Call(function, [second, first, *others], keywords))
        case _:
            return


def find_tests(module_path: str) -> list[str]:
    """Find the test files that import a module, by its path in the checkout."""
    name = module_path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        nodes = ast.walk(ast.parse(path.read_bytes()))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        if name in imported:
            found.append(str(path.relative_to(CHECKOUT)))
    return found


def copy_checkout(target: Path) -> None:
    """Copy the checkout as it stands, but for what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (CHECKOUT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, target / name)


def write(path: Path, source: bytes) -> None:
    """Write a module with a time that no version of it had: Python tells stale bytecode by whole seconds."""
    changed_at = path.stat().st_mtime + 2
    path.write_bytes(source)
    os.utime(path, (changed_at, changed_at))


def run_tests(copy: Path, tests: Sequence[str], patience_seconds: float) -> str:
    """Run tests on the copy in a fork of this process; return `survived`, `caught` or `caught: no end`."""
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what tests started ends with them
        os._exit(_run_here(copy, tests))
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "caught" if os.waitstatus_to_exitcode(status) else "survived"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "caught: no end"


def _run_here(copy: Path, tests: Sequence[str]) -> int:
    import pytest

    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(CHECKOUT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]  # this very file is of one of them
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy), *tests]))
    except BaseException:  # a mutant may raise anything
        return 1


def judge_module(
    copy: Path,
    module: str,
    tests: Sequence[str],
    mutations: Sequence[Mutation],
    patience_seconds: float | None,
) -> int:
    """Make mistakes in a module of the copy, one at a time; print the verdicts, return how many were caught.

    Exits where the tests fail without a mistake. Patience is by default what a run without one took, times
    five, and a minute: on a busy machine a mutant that only was slow would pass for caught.
    """
    started = time.monotonic()
    if run_tests(copy, tests, patience_seconds or 3600.0) != "survived":
        sys.exit(f"these tests fail without a mutation:\n{(copy / 'output.txt').read_text()[-4000:]}")
    patience_seconds = patience_seconds or 60 + 5 * (time.monotonic() - started)
    original, num_caught = (copy / module).read_bytes(), 0
    for mutation in mutations:
        write(copy / module, mutation.apply(original))
        started = time.monotonic()
        verdict = run_tests(copy, tests, patience_seconds)
        print(f"{verdict:>14} {time.monotonic() - started:6.1f} s  {mutation}", flush=True)
        num_caught += verdict != "survived"
    write(copy / module, original)
    return num_caught


def main() -> None:
    """Mutate the modules that were named, and print which mistakes no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("modules", nargs="+", help="such as train/judge/validate.py")
    parser.add_argument("--tests", nargs="+", help="test files or ids; default: those that import the module")
    parser.add_argument("--count", type=int, default=10, help="mutations of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, help="seconds, then a mutant counts as caught")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a pool of threads does not survive a fork
    for name in WARM_UP:
        importlib.import_module(name)
    num_caught = num_made = 0
    with tempfile.TemporaryDirectory(prefix="vox-mutate-") as folder:
        copy_checkout(Path(folder))
        for module in arguments.modules:
            tests = arguments.tests or find_tests(module)
            if not tests:
                sys.exit(f"no test file imports {module}: name some with --tests")
            mutations = find_mutations(module, (CHECKOUT / module).read_bytes())
            random.Random(arguments.seed).shuffle(mutations)
            chosen = mutations[: arguments.count]
            print(f"{module}: {len(chosen)} of {len(mutations)} mutations, {' '.join(tests)}", flush=True)
            num_caught += judge_module(Path(folder), module, tests, chosen, arguments.patience)
            num_made += len(chosen)
    print(f"{num_caught} of {num_made} caught")


if __name__ == "__main__":
    main()
