"""The manners of CONTRIBUTING that a machine can check."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "llmc"

LOOSE = ("errors", "registry", "results", "targets", "threads", "late", "distribution", "public")
FACES = ("__init__", "__main__", "hf")
"""What others call llmc by: the public names, the command, and `import llmc.hf` of model cards."""

LINE = (
    *("embedded", "files", "encodings", "formats", "models", "artifacts"),
    *("calibration", "compressors", "eval", "recipe", "pipeline", "cli"),
)
"""Folders, each importing from its left only; loose files stand before all of them."""

RANK = {**dict.fromkeys((*LOOSE, "_native"), -1), **{folder: i for i, folder in enumerate(LINE)}}
PUBLIC = RANK["pipeline"]
"""The public names of `llmc` itself: only the command line stands above them."""

NEVER = {("eval", "compressors")}

MAX_LINES, MAX_NESTING, MAX_FILE = 50, 3, 400

EXCEPTIONS: dict[str, str] = {
    "src/llmc/eval/evaluation.py::evaluate": "the signature and what each option means are nearly all of it",
    "src/llmc/recipe/options.py::from_options": "half of it is the signature: every option of the command line, once",
}
"""`path` or `path::function` to the reason why it may exceed a limit."""

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "rich")


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, but for what only type checkers execute."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_run_time(child)


def imported(node: ast.AST, path: Path) -> list[str]:
    """Dotted names that `node` imports, now or through a registry's "module:attribute"."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name != "llmc"]
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "llmc":
        return [f"llmc.{node.attr}"]
    if isinstance(node, ast.ImportFrom):
        package = path.relative_to(PACKAGE.parent).parent.parts
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(filter(None, (base, node.module)))
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"llmc(\.\w+)+:\w+", node.value):
        return [node.value.replace(":", ".")]
    return []


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import from this package in `path`."""
    for node in at_run_time(tree(path)):
        for module in imported(node, path):
            words = module.split(".")
            if words[0] == "llmc" and words[1:] != ["__version__"]:
                yield getattr(node, "lineno", 0), words[1]


def test_every_part_has_its_place() -> None:
    unknown = {part_of(path) for path in python_files("src/llmc")} - {*RANK, *FACES}
    assert not unknown, f"give {sorted(unknown)} a place in LINE and in docs/architecture.md"


def below(other: str, part: str) -> bool:
    """`part` may import `other`; what is no part is one of the public names."""
    return other == part or (RANK[other] < RANK[part] if other in RANK else RANK[part] > PUBLIC)


@pytest.mark.parametrize("path", python_files("src/llmc"), ids=name)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in FACES:
        pytest.skip("a face shows what others hold")
    among = set(LOOSE) if part in LOOSE else set()
    wrong = [
        f"{name(path)}:{line}: {part} imports {other}"
        for line, other in own_imports(path)
        if not (below(other, part) or other in among) or (part, other) in NEVER
    ]
    assert not wrong, "\n".join(wrong)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of llmc."""
    found = {}
    for path in python_files("src/llmc"):
        words = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


def neighbours() -> dict[str, set[str]]:
    """Module -> modules of its own folder that it imports; of a loose file, other loose files."""
    known = modules()
    out: dict[str, set[str]] = {}
    for module, path in known.items():
        named = {word for node in at_run_time(tree(path)) for word in imported(node, path)}
        found = {word if word in known else word.rpartition(".")[0] for word in named} & known.keys()
        home = part_of(path) if part_of(path) in LINE else ""
        out[module] = {
            m for m in found if m != module and (part_of(known[m]) if part_of(known[m]) in LINE else "") == home
        }
    return out


def test_no_two_files_of_a_folder_need_each_other() -> None:
    left = {module: others for module, others in neighbours().items() if module not in ("llmc", "llmc.hf")}
    while True:  # what needs no other module goes, until only circles and what leads to them are left
        free = {module for module, others in left.items() if not others & left.keys()}
        if not free:
            break
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, sorted(left)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How deep blocks stand in each other; `elif` is no deeper than its `if`, a function starts anew."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        block = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match) and not chained
        deepest = max(deepest, nesting(child, depth + block))
    return deepest


def oversized() -> dict[str, str]:
    """What exceeds a limit, by `path` or `path::function`."""
    found: dict[str, str] = {}
    for path in python_files("src", "scripts", "benchmarks"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE:
            found[name(path)] = f"{lines} lines"
        for function in functions(path):
            length = (function.end_lineno or 0) - function.lineno
            if length > MAX_LINES:
                found[f"{name(path)}::{function.name}"] = f"{length} lines"
            if nesting(function) > MAX_NESTING:
                found[f"{name(path)}::{function.name}"] = f"nested {nesting(function)} deep"
    return found


def test_nothing_is_too_long_or_too_deep() -> None:
    found = oversized()
    wrong = {key: size for key, size in found.items() if key not in EXCEPTIONS}
    assert not wrong, f"split these, or give a reason in EXCEPTIONS: {wrong}"
    assert set(EXCEPTIONS) <= set(found), f"no longer needed: {set(EXCEPTIONS) - set(found)}"


def test_nesting_counts_blocks() -> None:
    code = "def f():\n for a in b:\n  if a:\n   pass\n  elif b:\n   with c:\n    def g():\n     while 1:\n      pass\n"
    assert nesting(ast.parse(code).body[0]) == 3


def library_files() -> list[Path]:
    return [path for path in python_files("src/llmc") if part_of(path) != "cli"]


def uses(path: Path, *banned: str) -> list[str]:
    """`path:line` of every call or attribute in `path` that is written like one of `banned`."""
    nodes = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute | ast.Name))
    return [f"{name(path)}:{node.lineno}: {ast.unparse(node)}" for node in nodes if ast.unparse(node) in banned]


def test_only_the_command_line_prints_and_reads_the_environment() -> None:
    banned = ("print", "sys.stdout", "sys.stderr", "os.environ", "os.getenv", "os.environb", "os.putenv")
    wrong = [line for path in library_files() for line in uses(path, *banned)]
    assert not wrong, "\n".join(wrong)


def test_no_assert_as_validation() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong, wrong


def test_no_star_imports_and_no_drawers() -> None:
    files = python_files("src", "scripts", "benchmarks", "tests")
    stars = [
        name(path)
        for path in files
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    drawers = [name(path) for path in files if {"utils", "helpers", "common", "core"} & {*path.parent.parts, path.stem}]
    assert not stars
    assert not drawers


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    """By sys.modules after each verb, not by the clock."""
    code = f"""
import contextlib, io, json, sys
import llmc
from llmc.cli import VERBS, execute
seen = {{"import llmc": [m for m in {HEAVY!r} if m in sys.modules]}}
for words in [[], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = execute(words)
    heavy = [m for m in {HEAVY!r} if m in sys.modules]
    seen[" ".join(words)] = heavy if code == 0 and printed.getvalue() else ["exit", code]
print(json.dumps(seen))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "src", check=True)
    seen: dict[str, list[str]] = json.loads(done.stdout)
    assert len(seen) > 12
    assert {words: heavy for words, heavy in seen.items() if heavy} == {}


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / file for file in listed.split("\0") if file and (ROOT / file).is_file()]


def test_no_path_of_a_machine() -> None:
    machine = re.compile(rb"(?<![\w.~)}])/(?:home|root|Users|tmp|work)/\w+")
    wrong = [
        f"{name(path)}: {found.group().decode()}"
        for path in repository_files()
        if path.suffix != ".safetensors"
        for found in machine.finditer(path.read_bytes())
    ]
    assert not wrong, "\n".join(wrong)
