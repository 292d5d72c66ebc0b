"""
Mutants of a Python file: its source with one small mistake. The text of one node of its syntax tree is replaced.

Not mutated: docstrings, f-strings, error messages, help texts, imports, type annotations, decorators, and the
`__main__` block. Used by mutate.py.
"""
import ast
import re
from typing import NamedTuple

OPERATORS = {    # node -> (its text, the mutant's)
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Pow: ("**", "*"),
}
COMPARISONS = {    # node -> (its text, those of the mutants)
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<",)),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">",)),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
WORDS = {
    "train": "val", "val": "train", "test": "train",
    "before": "after", "after": "before",
    "chosen": "rejected", "rejected": "chosen",
    "positive": "negative", "negative": "positive",
}
CALLS = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "any": "all", "all": "any"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "isclose", "allclose"}    # their arguments may stand in any order
TOO_SHORT = 24    # characters: a mutant is shown within the smallest expression that is longer

class Mutant(NamedTuple):
    """One mistake: source[start:end] becomes text."""
    file: str
    line: int
    first: int       # the lines of its statement, or of the body of the function whose default it is
    last: int
    function: str    # dotted name; "" outside of functions
    kind: str
    start: int
    end: int
    text: str
    old: str         # the change as it is shown
    new: str
    names: tuple = ()    # outside of functions: the names that the statement sets

class Source:
    """A file's text, its syntax tree, and where each node stands in both."""
    def __init__(self, text):
        self.text, self.tree = text, ast.parse(text)
        self.lines = text.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.parent = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def offset(self, line, column):
        """The character at a line and a column as ast counts it, in bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def span(self, node):
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def of(self, node):
        start, end = self.span(node)
        return self.text[start:end]

    def ancestors(self, node):
        while node in self.parent:
            node = self.parent[node]
            yield node

    def statement(self, node):
        return node if isinstance(node, ast.stmt) else next(a for a in self.ancestors(node) if isinstance(a, ast.stmt))

    def function(self, node):
        """The dotted name of the function that a node stands in; "" at the module's level."""
        names = [a.name for a in (node, *self.ancestors(node)) if isinstance(a, (ast.FunctionDef, ast.ClassDef))]
        return ".".join(reversed(names))

    def header(self, statement):
        """(start, end) of a statement without the statements in it."""
        start, end = self.span(statement)
        if (body := getattr(statement, "body", None)) and isinstance(body, list):
            end = start + len(self.text[start:self.span(body[0])[0]].rstrip())
        return start, end

    def reach(self, node):
        """
        (first line, last line, names) by which tests that run a node are found.

        The lines are those of its statement; for a default, those of the function's body. Outside of functions, names
        are those that the statement sets, or the class that it stands in.
        """
        statement = self.statement(node)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            return statement.body[0].lineno, statement.end_lineno, ()
        around = [a for a in self.ancestors(statement) if isinstance(a, (ast.FunctionDef, ast.ClassDef))]
        start, end = self.header(statement)
        lines = self.text.count("\n", 0, start) + 1, self.text.count("\n", 0, end) + 1
        if around and isinstance(around[0], ast.FunctionDef):
            return *lines, ()
        if around:
            return *lines, (around[0].name,)
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
        return *lines, tuple(n.id for n in names if isinstance(n.ctx, ast.Store))

def masked(gap):
    """The text between two nodes with its comments blanked, at equal length."""
    return re.sub(r"#[^\n]*", lambda m: " " * len(m[0]), gap)

def untouched(source, node):
    """Whether a node is not mutated: see the top of this file."""
    child = node
    for parent in (node, *source.ancestors(node)):
        if isinstance(parent, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Raise)):
            return not isinstance(parent, ast.Raise) or child is not parent
        if isinstance(parent, ast.Expr) and isinstance(parent.value, ast.Constant):    # a docstring
            return True
        if isinstance(parent, ast.keyword) and parent.arg == "help":
            return True
        if child is not parent and child in getattr(parent, "decorator_list", ()):
            return True
        if child is not parent and child in (getattr(parent, "annotation", None), getattr(parent, "returns", None)):
            return True
        if isinstance(parent, ast.If) and "__name__" in ast.unparse(parent.test):
            return True
        is_error = isinstance(parent, ast.Call) and getattr(parent.func, "attr", "") == "error"    # argparse's
        if is_error and child is not parent:
            return True
        child = parent
    return False

def between(source, left, right, old, new):
    """Yields the edit (start, end, new) of the operator, old, that stands between two nodes."""
    start, end = source.span(left)[1], source.span(right)[0]
    pattern = r"\s+".join(map(re.escape, old.split()))
    if old[0].isalpha():
        pattern = rf"\b{pattern}\b"
    if m := re.search(pattern, masked(source.text[start:end])):
        yield start + m.start(), start + m.end(), new

def of_call(source, node):
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name not in SYMMETRIC:
        for a, b in zip(node.args, node.args[1:]):
            if isinstance(a, ast.Starred) or isinstance(b, ast.Starred):
                continue
            (a_start, a_end), (b_start, b_end) = source.span(a), source.span(b)
            yield "arguments swapped", a_start, b_end, source.of(b) + source.text[a_end:b_start] + source.of(a)
    if name in CALLS:
        end = source.span(node.func)[1]
        yield "min for max", end - len(name), end, CALLS[name]

def is_text(node):
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)

def of_operation(source, node):
    if is_text(node.left) or is_text(node.right):
        return    # a joined message
    if type(node.op) in OPERATORS:
        for edit in between(source, node.left, node.right, *OPERATORS[type(node.op)]):
            yield "operator", *edit
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitOr, ast.BitAnd)):
        yield "operand dropped", *source.span(node), f"({source.of(node.left)})"
    if isinstance(node.op, (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd)):
        yield "operand dropped", *source.span(node), f"({source.of(node.right)})"

def of_assignment(source, node):
    """An augmented assignment."""
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.BitOr)):
        yield "statement removed", *source.span(node), "pass"
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
        old, new = OPERATORS[type(node.op)]
        for edit in between(source, node.target, node.value, old + "=", new + "="):
            yield "operator", *edit

def of_comparison(source, node):
    for left, op, right in zip((node.left, *node.comparators), node.ops, node.comparators):
        old, news = COMPARISONS[type(op)]
        for new in news:
            for edit in between(source, left, right, old, new):
                yield "comparison", *edit

def of_and_or(source, node):
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    values = [f"({source.of(value)})" for value in node.values]
    if len(values) == 2:
        for edit in between(source, *node.values, old, new):
            yield "and for or", *edit
    else:
        yield "and for or", *source.span(node), "(" + f" {new} ".join(values) + ")"
    for i in range(len(values)):
        rest = values[:i] + values[i + 1:]
        yield "operand dropped", *source.span(node), "(" + f" {old} ".join(rest) + ")"

def of_sign(source, node):
    """`not` or a minus."""
    if isinstance(node.op, ast.Not):
        yield "not dropped", *source.span(node), f"({source.of(node.operand)})"
    in_index = isinstance(source.parent.get(node), (ast.Slice, ast.Subscript))
    if isinstance(node.op, ast.USub) and not in_index:
        yield "minus dropped", *source.span(node), f"({source.of(node.operand)})"

def of_index(source, node):
    other = {"0": "-1", "-1": "0"}.get(source.of(node.slice))
    if other:
        yield "index", *source.span(node.slice), other

def of_slice(source, node):
    for bound in (node.lower, node.upper):
        if bound is not None:
            yield "slice", *source.span(bound), f"{source.of(bound)} + 1"

def of_condition(source, node):
    """An if, a conditional expression, or the ifs of a comprehension."""
    tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
    for test in tests:
        for value in ("True", "False"):
            yield "condition fixed", *source.span(test), value

def of_statement(source, node):
    """An expression that stands as a statement."""
    if isinstance(node.value, ast.Call):
        yield "statement removed", *source.span(node), "pass"

def of_constant(source, node):
    """A number, a bool, or the name of a split or a side."""
    parent = source.parent[node]
    bound = parent if isinstance(parent, ast.UnaryOp) else node
    outer = source.parent[bound]
    is_bound = isinstance(outer, ast.Slice)
    at_an_end = isinstance(outer, ast.Subscript) and source.of(outer.slice) in ("0", "-1")
    match node.value:
        case bool():
            yield "constant", *source.span(node), str(not node.value)
        case int() if bound is node and not is_bound and not at_an_end:    # -1: see "minus dropped"
            yield "constant", *source.span(node), str(node.value + 1)
        case float():
            yield "constant", *source.span(node), repr(node.value * 2 or 1.0)
        case str() if node.value in WORDS:
            yield "another name", *source.span(node), f'"{WORDS[node.value]}"'

EDITS = {    # node -> the function (source, node) that yields its edits (kind, start, end, new text)
    ast.Call: of_call,
    ast.BinOp: of_operation,
    ast.AugAssign: of_assignment,
    ast.Compare: of_comparison,
    ast.BoolOp: of_and_or,
    ast.UnaryOp: of_sign,
    ast.Constant: of_constant,
    ast.Subscript: of_index,
    ast.Slice: of_slice,
    ast.If: of_condition,
    ast.IfExp: of_condition,
    ast.comprehension: of_condition,
    ast.Expr: of_statement,
}

def edits(source, node):
    """The edits (kind, start, end, new text) of one node."""
    return EDITS[type(node)](source, node) if type(node) in EDITS else ()

def shown(source, start, end, text, node):
    """(old, new): the change within the smallest expression of TOO_SHORT characters around it; blanks are joined."""
    a, b = start, end
    for around in (node, *source.ancestors(node)):
        if not hasattr(around, "lineno"):
            continue
        a, b = source.header(around) if isinstance(around, ast.stmt) else source.span(around)
        if (b - a >= TOO_SHORT and a <= start and end <= b) or isinstance(around, ast.stmt):
            break
    join = lambda s: " ".join(s.split())
    return join(source.text[a:b]), join(source.text[a:start] + text + source.text[end:b])

def mutants(file, text):
    """Every mutant of a file, in the order of its lines."""
    source, seen, found = Source(text), set(), []
    for node in ast.walk(source.tree):
        if untouched(source, node):
            continue
        for kind, start, end, new in edits(source, node):
            if (start, end, new) in seen or text[start:end] == new:
                continue
            seen.add((start, end, new))
            near = node if hasattr(node, "lineno") else node.ifs[0]    # a comprehension has no place of its own
            first, last, names = source.reach(near)
            old, changed = shown(source, start, end, new, near)
            line = text.count("\n", 0, start) + 1
            function = source.function(near)
            found.append(Mutant(file, line, first, last, function, kind, start, end, new, old, changed, names))
    return sorted(found, key=lambda m: (m.start, m.end, m.text))
