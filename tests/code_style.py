"""Measures of the code's readability: sizes, comments, names, and classes that change.

Run `python -m tests.code_style PATHS...` for a table. `tests/test_code_style.py` holds the limits.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PRIVATE_WORDS = frozenset(
    ["found", "at", "apart", "own", "mine", "theirs", "said", "what", "kept", "given"]
)
PRIVATE_MODULES = frozenset(
    ["ladder", "ladders", "probing", "judging", "practice", "widening", "growth", "tuning"]
)
CONSTRUCTORS = ("__init__", "__new__", "__post_init__", "__setstate__")
# Methods by which a list or a dict that an object holds is changed in place.
CHANGING_METHODS = ("append", "extend", "insert", "pop", "popitem", "clear", "setdefault")
# Comments that are read by a tool, not by a person.
DIRECTIVES = ("noqa", "type:", "pyright:", "ruff:", "fmt:", "pragma:")
NOT_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class FileStyle:
    """What is measured of one file.

    `private_names` and `changes` are pairs of a line number and a description; `field_comments` are
    those of the `comments` that describe a field of a class or a constant, or continue a comment.
    """

    path: Path
    lines: int
    code_lines: int
    comments: int
    field_comments: int
    longest_function: tuple[int, str]
    bound_names: int
    private_names: tuple[tuple[int, str], ...]
    changes: tuple[tuple[int, str], ...]
    private_module: bool

    @property
    def comment_density(self) -> float:
        """Comments per 100 lines of code, without those that only describe a field or constant."""
        return 100 * (self.comments - self.field_comments) / max(self.code_lines, 1)


def measure(path: Path) -> FileStyle:
    """Measure one Python file."""
    source = path.read_text()
    tree = ast.parse(source)
    code, comments = _code_and_comments(source, tree)
    # Beside a field or a constant, or above it.
    fields = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.Module)
        for field in node.body
        if isinstance(field, ast.AnnAssign | ast.Assign)
        for line in (field.end_lineno, field.lineno - 1)
    }
    # The second line of a comment is no second comment.
    texts = source.splitlines()
    fields |= {
        line
        for line in comments
        if line > 1 and all(texts[i - 1].lstrip().startswith("#") for i in (line - 1, line))
    }
    names = list(_bound_names(tree))
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    sizes = [(_code_lines_within(node, code), node.name) for node in functions]
    return FileStyle(
        path=path,
        lines=len(source.splitlines()),
        code_lines=len(code),
        comments=len(comments),
        field_comments=len(fields.intersection(comments)),
        longest_function=max(sizes, default=(0, "")),
        bound_names=len(names),
        private_names=tuple(sorted((line, name) for line, name in names if _is_private(name))),
        changes=tuple(sorted(_changes(tree))),
        private_module=not PRIVATE_MODULES.isdisjoint(path.stem.split("_")),
    )


def python_files(paths) -> list[Path]:
    """All Python files among and below `paths`, sorted."""
    files: set[Path] = set()
    for path in map(Path, paths):
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    return sorted(files)


def _code_and_comments(source: str, tree: ast.AST) -> tuple[set[int], list[int]]:
    """Return the numbers of the lines that hold code, and those of the comments."""
    code: set[int] = set()
    comments: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if not token.string.lstrip("#! ").startswith(DIRECTIVES):
                comments.append(token.start[0])
        elif token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    # A string that stands as a statement is documentation, below a field as well.
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return code, comments


def _code_lines_within(node, code: set[int]) -> int:
    """Lines of code of a function from `def` to its end, nested functions included."""
    return len(code.intersection(range(node.lineno, node.end_lineno + 1)))


def _bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each place where the code chooses a name."""
    for node in ast.walk(tree):
        match node:
            # Assignments, loops, `with`, walrus and comprehensions all store to a `Name`.
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.alias(name=name, asname=alias):
                yield node.lineno, alias or name.split(".")[0]
            case ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def _is_private(name: str) -> bool:
    return not PRIVATE_WORDS.isdisjoint(name.lower().split("_"))


def _changes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Places where an object is changed after its construction."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, FUNCTIONS) and method.name not in CONSTRUCTORS:
                    for line, change in _changes_of_self(method):
                        yield line, f"{node.name}.{method.name}: {change}"


def _changes_of_self(method) -> Iterator[tuple[int, str]]:
    arguments = method.args.posonlyargs + method.args.args
    if not arguments:
        return
    instance = arguments[0].arg
    for node in ast.walk(method):
        match node:
            case (
                ast.Attribute(ctx=ast.Store() | ast.Del())
                | ast.Subscript(ctx=ast.Store() | ast.Del())
            ) if _root(node) == instance:
                yield node.lineno, ast.unparse(node) + " = ..."
            case ast.Call(func=ast.Attribute(attr="__setattr__" | "__setitem__")):
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Name(id="setattr" | "delattr")):
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr=attr, value=ast.Attribute() as value)) if (
                attr in CHANGING_METHODS and _root(value) == instance
            ):
                yield node.lineno, ast.unparse(node)


def _root(node: ast.expr) -> str:
    """The name at the start of `name.a[b].c`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def table(files: list[FileStyle]) -> str:
    """One line for each file, then what is to be mended, then totals."""
    rows = [f"{'lines':>6} {'code':>5} {'#/100':>5} {'longest':>7}  file  (longest function)"]
    for file in files:
        size, name = file.longest_function
        rows.append(
            f"{file.lines:6d} {file.code_lines:5d} {file.comment_density:5.1f} {size:7d}"
            f"  {file.path}  ({name})"
        )
    for file in files:
        rows += [f"{file.path}: module name of the private vocabulary"] * file.private_module
        rows += [f"{file.path}:{line}: private name {name}" for line, name in file.private_names]
        rows += [f"{file.path}:{line}: changes {change}" for line, change in file.changes]
    lines, code = (sum(getattr(f, n) for f in files) for n in ("lines", "code_lines"))
    private, bound = sum(len(f.private_names) for f in files), sum(f.bound_names for f in files)
    comments = sum(f.comments for f in files)
    rows.append(
        f"total: {len(files)} files, {lines} lines, {code} of code, "
        f"{100 * comments / max(code, 1):.1f} comments per 100 lines of code "
        f"({100 * comments / max(lines, 1):.1f} per 100 lines of any kind), "
        f"{private} of {bound} bound names private ({100 * private / max(bound, 1):.2f} %)"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    roots = sys.argv[1:] or ["jaxgrad", "experiments"]
    for root in roots:
        print(table([measure(path) for path in python_files([root])]))
