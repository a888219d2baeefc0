"""The floors of the house: a module imports from its own floor's list downwards, never upwards."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"glimt": ROOT / "python/glimt", "glimt_kernels": ROOT / "kernels/glimt_kernels"}

# First part of a module's name under glimt -> its floor. `glimt/__init__` only forwards names, lazily.
FLOORS: dict[str, int] = {
    **dict.fromkeys(["shapes", "config", "request", "errors", "env", "suggest", "check", "images"], 1),
    **dict.fromkeys(["models", "sampling"], 2),
    **dict.fromkeys(["weights", "compile"], 3),
    **dict.fromkeys(["engine", "pipeline", "plan", "memory", "profile", "report"], 4),
    **dict.fromkeys(["cli", "video", "service"], 5),
}
# Upward imports that are meant, each inside a function: `VideoResult.save(path)` is how a result becomes a file.
MEANT = {"glimt.report": {"glimt.video.mp4", "glimt.video.mp4.save_video"}}
# Neighbours on one floor that know nothing of each other.
STRANGERS = [{"models", "sampling"}, {"weights", "compile"}]


def modules(package: str) -> list[tuple[str, Path]]:
    root = PACKAGES[package]
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found.append((".".join((package, *parts)).removesuffix(".__init__"), path))
    return found


def imports(name: str, path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of everything ``path`` imports; under ``if TYPE_CHECKING`` too: a type is a dependency."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    nodes = _outside_functions(tree) if top_level_only else list(ast.walk(tree))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return found


def _outside_functions(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return []
    return [node] + [inner for child in ast.iter_child_nodes(node) for inner in _outside_functions(child)]


def part(name: str) -> str | None:
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "glimt" and len(pieces) > 1 else None


def violations(name: str, imported: set[str]) -> list[str]:
    """What ``name`` (a module of glimt) may not import, and why."""
    mine = part(name)
    if mine is None:
        return []
    wrong = [f"{name} imports {other}" for other in imported if other.split(".")[0] == "glimt_world"]
    for other in imported:
        theirs = part(other)
        if theirs is None or theirs == mine or theirs not in FLOORS:
            continue
        if FLOORS[theirs] > FLOORS[mine]:
            wrong.append(f"{name} (floor {FLOORS[mine]}) imports {other} (floor {FLOORS[theirs]})")
        if any({mine, theirs} <= pair for pair in STRANGERS):
            wrong.append(f"{name} and {other} must not know each other")
    return wrong


def test_every_module_has_a_floor() -> None:
    parts = {part(name) for name, path in modules("glimt") if path.name != "__main__.py"}
    homeless = parts - set(FLOORS) - {None}
    assert not homeless, f"give these a floor in this test: {sorted(map(str, homeless))}"


def test_no_upward_imports() -> None:
    wrong = []
    for name, path in modules("glimt"):
        outside = imports(name, path, top_level_only=True)
        wrong += violations(name, imports(name, path) - (MEANT.get(name, set()) - outside))
    assert wrong == []


def test_values_need_only_the_standard_library() -> None:
    wrong = []
    for name, path in modules("glimt"):
        if FLOORS.get(part(name) or "", 0) == 1 or name == "glimt":
            outside = {top for top in (m.split(".")[0] for m in imports(name, path, top_level_only=True)) if top}
            wrong += [f"{name} imports {top}" for top in outside - set(sys.stdlib_module_names) - {"glimt"}]
    assert wrong == []


def test_kernels_never_import_the_engine() -> None:
    wrong = []
    for name, path in modules("glimt_kernels"):
        tops = {module.split(".")[0] for module in imports(name, path) if module}
        wrong += [f"{name} imports {top}" for top in tops & {"glimt", "glimt_world"}]
    assert wrong == []


@pytest.mark.parametrize(
    "third_party",
    [
        *("transformers", "huggingface_hub", "av", "cv2", "diffusers", "rich", "PIL"),
        *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx"),
    ],
)
def test_optional_third_parties_are_imported_inside_functions(third_party: str) -> None:
    wrong = []
    for package in PACKAGES:
        for name, path in modules(package):
            tops = {module.split(".")[0] for module in imports(name, path, top_level_only=True)}
            wrong += [name] if third_party in tops and not _only_for_types(path, third_party) else []
    assert wrong == []


def _only_for_types(path: Path, third_party: str) -> bool:
    """Whether every import of ``third_party`` outside functions stands under ``if TYPE_CHECKING``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    allowed = {id(inner) for block in blocks for child in block.body for inner in ast.walk(child)}
    for node in _outside_functions(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == third_party for name in names) and id(node) not in allowed:
            return False
    return True


@pytest.mark.parametrize(
    ("module", "imported", "count"),
    [
        ("glimt.models.wan.vae", {"glimt.sampling.noise"}, 1),
        ("glimt.errors", {"glimt.engine"}, 1),
        ("glimt.engine", {"glimt.cli"}, 1),
        ("glimt.weights.reader", {"glimt_world.scene"}, 1),
        ("glimt.engine", {"glimt.models.zoo", "glimt.sampling", "glimt.weights.reader", "glimt.errors"}, 0),
    ],
)
def test_the_check_itself_finds_violations(module: str, imported: set[str], count: int) -> None:
    assert len(violations(module, imported)) == count
