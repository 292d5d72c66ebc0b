"""
Python functions as text: find one in a file, take out its body, put another one in its place.

A function is named by its qualified name: `dpo`, or `Attention.forward`. Everything is done on lines that the syntax
tree points to, so comments and layout of the rest stay as they are.
"""
import ast
import functools

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

class Unreadable(Exception):
    """The file cannot be used. The message is one line for the student."""

def parse(text, name):
    """The syntax tree. Raises Unreadable with the line of a syntax error."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = getattr(e, "lineno", None)
        where = f"{name}, line {line}" if line else name
        raise Unreadable(f"{where}: not Python: {getattr(e, 'msg', None) or type(e).__name__}") from None

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

def first_line(node):
    """The line, from 1, on which a statement begins: that of its first decorator, if there is one."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])

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
    return "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno])

def put(text, qualname, function, before=""):
    """The file with another source of one function, without decorators: those stay. `before` goes above it."""
    tree, lines = tree_of(text), text.splitlines()
    node = find(tree, qualname)
    lines[node.lineno - 1:node.end_lineno] = function.splitlines()
    if before:
        outermost = next(x for x in tree.body if x.lineno <= node.lineno <= x.end_lineno)
        at = first_line(outermost) - 1
        lines[at:at] = [*before.splitlines(), ""]
    return "\n".join(lines) + "\n"

def blank(text, qualname, message, hidden=()):
    """The file with a function's body replaced by its docstring, less the hidden lines, and NotImplementedError."""
    node, lines = find(tree_of(text), qualname), text.splitlines()
    first, body = node.body[0], []
    indent = " " * first.col_offset
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        body = [line for line in lines[first.lineno - 1:first.end_lineno] if not any(text in line for text in hidden)]
    body.append(f"{indent}raise NotImplementedError({message!r})")
    start = lines[:first.lineno - 1]
    if first.lineno == node.lineno:    # def f(x): return x
        start = [*lines[:first.lineno - 1], lines[first.lineno - 1][:first.col_offset].rstrip()]
        body = [f"{' ' * (node.col_offset + 4)}{line.strip()}" for line in body[-1:]]
    return "\n".join([*start, *body, *lines[node.end_lineno:]]) + "\n"

def edited(text, qualnames, edits):
    """The file with each right text replaced by the wrong one, which stands exactly once in one of the functions."""
    for right, wrong in edits:
        homes = [name for name in qualnames if (source_of(text, name) or "").count(right)]
        counts = [source_of(text, name).count(right) for name in homes]
        assert counts == [1], f"{right!r} stands {sum(counts)} times in {', '.join(qualnames)}"
        text = put(text, homes[0], source_of(text, homes[0]).replace(right, wrong))
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
    return set()

def additions(text, original):
    """The source of the top-level statements of `text` that give names which `original` does not have."""
    there = set().union(*(defined(node) for node in tree_of(original).body))
    new = [node for node in tree_of(text).body if defined(node) and not defined(node) & there]
    lines = text.splitlines()
    parts = [lines[first_line(node) - 1:node.end_lineno] for node in new]
    return "\n".join("\n".join(part) for part in parts)

def is_docstring(body):
    """Whether a list of statements begins with a string."""
    return bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)

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
    before = additions(submitted, original)
    for qualname in qualnames:
        if find(tree, qualname) is None:
            raise Unreadable(f"{name}: there is no function {qualname}")
        original = put(original, qualname, source_of(submitted, qualname), before)
        before = ""
    return original
