"""What the house measures: `python tests/house_report.py` prints its rooms and imports, and what is longest in it.

A room is a folder of the package with Python files, or a module beside them; an import leads from one room to another.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from test_house import PACKAGE, ROOT, imported_modules, relative, source_files


def room_of(path: Path) -> str:
    """The folder of a file; for a file at the top of the package, the file."""
    inside = path.relative_to(PACKAGE)
    return str(inside.parent if len(inside.parts) > 1 else inside)


def imports(files: list[Path]) -> set[tuple[str, str]]:
    """Pairs of rooms, of which the first imports the second. The package's own file, which re-exports, is left out."""
    pairs = set()
    for path in (path for path in files if path != PACKAGE / "__init__.py"):
        for module in imported_modules(path):
            if module.startswith("vdmini_diffusers."):
                at = ROOT.joinpath(*module.split("."))
                file = at / "__init__.py" if at.is_dir() else at.with_suffix(".py")
                if file.is_file():
                    pairs.add((room_of(path), room_of(file)))
    return {(a, b) for a, b in pairs if a != b}


def functions(files: list[Path]) -> Iterator[tuple[int, str]]:
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield (node.end_lineno or 0) - node.lineno + 1, f"{relative(path)}, {node.name}"


def main() -> None:
    files = source_files()
    rooms = {room_of(path) for path in files if path != PACKAGE / "__init__.py"}
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    longest = max(lengths, key=lambda name: lengths[name])
    length, function = max(functions(files))
    print(f"{len(files)} files, {sum(lengths.values()):,} lines")
    print(f"{len(rooms)} rooms, {len(imports(files))} imports from one to another")
    print(f"longest file: {longest}, {lengths[longest]} lines")
    print(f"longest function: {function}, {length} lines")


if __name__ == "__main__":
    main()
