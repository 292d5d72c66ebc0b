"""
Python functions as text: find one in a file, take out its body, put another one in its place.

A function is named by its qualified name: `dpo`, or `Attention.forward`. Everything is done on lines that the syntax
tree points to, so comments and layout of the rest stay as they are.
"""
import ast
import copy
import functools
import textwrap

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

class Unreadable(Exception):
    """The file cannot be used. The message is one line for the student."""

def parse(text, name):
    """The syntax tree. Raises Unreadable with the line of a syntax error."""
    try:
        return tree_of(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = getattr(e, "lineno", None)
        where = f"{name}, line {line}" if line else name
        raise Unreadable(f"{where}: not Python: {getattr(e, 'msg', None) or type(e).__name__}") from None

def lines_of(text):
    """The lines as Python counts them. str.splitlines also splits at form feeds and other signs."""
    return text.removesuffix("\n").split("\n")

@functools.lru_cache(maxsize=256)
def tree_of(text):
    """The syntax tree of a text that is Python. It is shared, and must not be changed."""
    return ast.parse(text)

def find(tree, qualname):
    """The node of a function, or None: `Attention.forward` is forward in the class Attention."""
    body = tree.body
    *outer, name = qualname.split(".")
    for part in outer:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part), [])
    return next((node for node in reversed(body) if isinstance(node, FUNCTION) and node.name == name), None)

def is_docstring(body):
    """Whether a list of statements begins with a string."""
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str)

def first_line(node):
    """The line, from 1, on which a statement begins: that of its first decorator, if there is one."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])

def text_of(text, node):
    """The lines of a statement, with its decorators."""
    return "\n".join(lines_of(text)[first_line(node) - 1:node.end_lineno])

def all_functions(text, target):
    """The qualified names of a target: "losses.py:*" is every registered loss of the file, others are one name."""
    name = target.split(":")[1]
    if name != "*":
        return [name]
    return [node.name for node in tree_of(text).body if isinstance(node, FUNCTION)
            and any("register" in ast.unparse(d) for d in node.decorator_list)]

def source_of(text, qualname):
    """The lines of a function without its decorators, or None."""
    node = find(tree_of(text), qualname)
    if node is None:
        return None
    return "\n".join(lines_of(text)[node.lineno - 1:node.end_lineno])

def put(text, qualname, function, before=""):
    """The file with another source of one function, without decorators: those stay. `before` goes above it."""
    tree, lines = tree_of(text), lines_of(text)
    node = find(tree, qualname)
    lines[node.lineno - 1:node.end_lineno] = lines_of(function)
    if before:
        outermost = next(x for x in tree.body if x.lineno <= node.lineno <= x.end_lineno)
        at = first_line(outermost) - 1
        lines[at:at] = [*lines_of(before), ""]
    return "\n".join(lines) + "\n"

def blank(text, qualname, message, hidden=()):
    """The file with a function's body replaced by its docstring, less the hidden lines, and NotImplementedError."""
    node, lines = find(tree_of(text), qualname), lines_of(text)
    first, docstring = node.body[0], []
    start, indent = lines[:first.lineno - 1], lines[first.lineno - 1][:first.col_offset]
    if indent.strip():    # def f(x): return x
        start.append(indent.rstrip())
        indent = " " * (node.col_offset + 4)
    elif is_docstring(node.body):
        docstring = lines[first.lineno - 1:first.end_lineno]
    docstring = [line for line in docstring if not any(text in line for text in hidden)]
    raises = f"{indent}raise NotImplementedError({message!r})"
    return "\n".join([*start, *docstring, raises, *lines[node.end_lineno:]]) + "\n"

def edited(text, qualnames, edits):
    """The file with each right text replaced by the wrong one, which stands exactly once in one of the functions."""
    for right, wrong in edits:
        counts = {name: (source_of(text, name) or "").count(right) for name in qualnames}
        assert sum(counts.values()) == 1, f"{right!r} stands {sum(counts.values())} times in {', '.join(qualnames)}"
        home = max(counts, key=counts.get)
        text = put(text, home, source_of(text, home).replace(right, wrong))
    return text

def applies(text, qualnames, edits):
    """Whether edited() can make all the edits."""
    try:
        edited(text, qualnames, edits)
    except AssertionError:
        return False
    return True

def defined(node):
    """The names that a top-level statement gives."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    if isinstance(node, ast.Try):    # try: import numpy as np
        return set().union(*map(defined, node.body))
    return set()

def is_future(node):
    """Whether a statement is `from __future__ import ...`, which must stand first in a file."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"

def new_names(node, there):
    """An import without the names that are there already, as text; "" if none is new."""
    new = copy.copy(node)
    new.names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) not in there]
    return ast.unparse(new) if new.names else ""

def additions(text, original):
    """The source of the top-level statements of `text` that give names which `original` does not have."""
    there = set().union(*(defined(node) for node in tree_of(original).body))
    parts = []
    for node in tree_of(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            parts.append("" if is_future(node) else new_names(node, there))
        elif defined(node) and not defined(node) & there:
            parts.append(text_of(text, node))
    return "\n".join(filter(None, parts))

def methods(text, original, qualname):
    """The source of methods that a function's class has in `text` and not in `original`; "" if it has no class."""
    def functions(side):
        classes = [n for n in tree_of(side).body if isinstance(n, ast.ClassDef) and n.name == qualname.split(".")[0]]
        return [node for one in classes[:1] for node in one.body if isinstance(node, FUNCTION)]
    there = {node.name for node in functions(original)}
    return "\n\n".join(text_of(text, node) for node in functions(text) if node.name not in there)

def reindented(function, indent):
    """A function's source with its `def` at another indentation."""
    have = function[:len(function) - len(function.lstrip())]
    return function if have == indent else textwrap.indent(textwrap.dedent(function), indent)

def with_future(text, submitted):
    """The text with the student's `from __future__` imports below its docstring."""
    future = [ast.unparse(node) for node in tree_of(submitted).body if is_future(node)]
    body, lines = tree_of(text).body, lines_of(text)
    at = body[0].end_lineno if is_docstring(body) else 0
    return "\n".join([*lines[:at], *future, *lines[at:]]) + "\n"

def stripped(node):
    """The structure of a statement without docstrings, to compare two files."""
    node = ast.parse(ast.unparse(node))
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(body, list) and is_docstring(body):
            inner.body = body[1:] or [ast.Pass()]
    return ast.dump(node)

def other_edits(text, original, qualnames):
    """The names of `original` that `text` defines otherwise, apart from the functions in qualnames."""
    for name in qualnames:
        for side in (text, original):
            assert find(tree_of(side), name), name
        text, original = blank(text, name, ""), blank(original, name, "")
    have = {name: stripped(node) for node in tree_of(text).body for name in defined(node)}
    want = {name: stripped(node) for node in tree_of(original).body for name in defined(node)}
    return [name for name in want if have.get(name) != want[name] and name not in qualnames]

def graft(submitted, original, qualnames, name):
    """
    The original file with the student's functions, their new helpers and imports.

    Raises Unreadable, with one line, if the submitted text is no Python or one of the functions is missing.
    """
    tree = parse(submitted, name)
    before, text = additions(submitted, original), original
    for qualname in qualnames:
        if find(tree, qualname) is None:
            raise Unreadable(f"{name}: there is no function {qualname}")
        indent = " " * find(tree_of(original), qualname).col_offset
        parts = [source_of(submitted, qualname)]
        if qualname.split(".")[0] not in {other.split(".")[0] for other in qualnames[:qualnames.index(qualname)]}:
            parts.append(methods(submitted, original, qualname))
        function = "\n\n".join(reindented(part, indent) for part in parts if part)
        text = put(text, qualname, function, before)
        before = ""
    return with_future(text, submitted)
