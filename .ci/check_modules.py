"""Hold modules to 400 lines and functions to 50.

Usage: check_modules.py DIRECTORY... Prints each that is longer, and exits with 1 when there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 400
FUNCTION_LINES = 50


def too_long(path: Path) -> Iterator[str]:
    """What in one module is over its bound; a docstring counts, decorators do not."""
    text = path.read_text("utf-8")
    if (count := len(text.splitlines())) > MODULE_LINES:
        yield f"{path}: {count} lines, at most {MODULE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name}: {count} lines, at most {FUNCTION_LINES}"


def main(directories: list[str]) -> int:
    """Exit code for these directories."""
    modules = sorted(path for directory in directories for path in Path(directory).rglob("*.py"))
    if not modules:
        print(f"no modules in {' '.join(directories) or 'nothing'}", file=sys.stderr)
        return 2
    found = [line for path in modules for line in too_long(path)]
    print("\n".join(found) or f"{len(modules)} modules within their bounds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
