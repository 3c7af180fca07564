"""Who may import whom. Run by pytest, and by .ci/check without pytest: it needs the standard library only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "weightguard"

# Part -> the other parts it may import at all; `errors` is open to everyone.
MAY = {
    "errors": set(),
    "bits": set(),
    "forms": set(),
    "measurement": {"forms"},
    "verdict": {"forms", "measurement"},
    "options": set(),
    "checkpoint": set(),
    "kernels": set(),
    "data": set(),
    "weights": {"checkpoint", "kernels"},
    "statistics": {"checkpoint", "kernels", "data", "weights"},
    "plan": {"bits", "checkpoint"},
    "parts": {"bits", "checkpoint"},
    "comparison": {"checkpoint", "kernels", "statistics", "weights"},
    "locate": {"bits", "checkpoint", "data", "kernels", "parts", "options", "statistics", "weights"},
    "guards": {"parts", "options", "statistics"},
    "training": {"checkpoint", "data", "statistics"},
    "methods": {"bits", "checkpoint", "parts", "options", "statistics", "weights", "plan"},
    "rewrite": {"bits", "checkpoint", "forms", "kernels", "statistics", "weights", "plan"},
    "validate": {"checkpoint", "data", "measurement", "statistics"},
    "attacks": {"checkpoint", "data", "options", "statistics", "training", "validate"},
    "lab": set(),
    "report": {"forms", "verdict", "measurement"},
    "api": {
        "attacks",
        "checkpoint",
        "comparison",
        "data",
        "forms",
        "verdict",
        "guards",
        "kernels",
        "lab",
        "locate",
        "measurement",
        "methods",
        "parts",
        "options",
        "plan",
        "report",
        "rewrite",
        "statistics",
        "training",
        "validate",
        "weights",
    },
    "cli": {"api", "forms"},
    "__init__": {"api"},
    "__main__": {"cli"},
}
STANDARD_ONLY = {"errors", "forms", "verdict", "measurement"}
# Imported inside functions only, and only there.
HEAVY = {
    "transformers": {"statistics", "validate", "lab", "guards"},
    "peft": {"statistics", "validate", "lab", "training"},
    "lm_eval": {"validate"},
}
NO_TORCH_AT_TOP = {
    "locate",
    "methods",
    "options",
    "cli",
    "api",
    "checkpoint",
    "data",
    "plan",
    "parts",
    "bits",
    "errors",
    "forms",
    "verdict",
    "measurement",
    "report",
    "__init__",
    "__main__",
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """(dotted name, at run time and at the top of the module) of every import."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not _typing(child)
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            visit(child, inner)

    visit(tree, True)
    return found


def _typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def problems() -> list[str]:
    said = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part, where = part_of(path), path.relative_to(PACKAGE.parent)
        for name, top in imports(ast.parse(path.read_text(encoding="utf-8"))):
            said += [f"{where}: {text}" for text in _wrong(part, path, name.split("."), top)]
    return said


def _wrong(part: str, path: Path, name: list[str], top: bool) -> list[str]:
    if name[0] == "weightguard":
        other = name[1] if len(name) > 1 else "__init__"
        wrong = [] if other in (part, "errors") or other in MAY[part] else [f"{part} must not import {other}"]
        if part == "methods" and other == "methods" and len(name) > 2 and path.stem != "__init__":
            shared = {"factoring", "inputs", "masking", "selecting"}
            wrong += [] if name[2] in shared else [f"methods never import each other ({name[2]})"]
        if part == "guards" and other == "guards" and path.stem != "__init__":
            shared = {"attaching", "keeping", "directions"}
            wrong += [] if name[2] in shared else [f"guards never import each other ({name[2]})"]
        return wrong
    if part in STANDARD_ONLY and name[0] not in sys.stdlib_module_names:
        return [f"{part} imports the standard library only, not {name[0]}"]
    if name[0] in HEAVY and (top or part not in HEAVY[name[0]]):
        return [f"{name[0]} may be imported inside functions of {', '.join(sorted(HEAVY[name[0]]))} only"]
    if name[0] == "torch" and top and part in NO_TORCH_AT_TOP:
        return [f"no torch at the top of a module of {part}"]
    return []


def test_import_rules() -> None:
    assert problems() == []


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "import rules hold")
    sys.exit(bool(found))
