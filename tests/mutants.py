"""
Simple mutants of a Python file: its source with one small mistake, made by replacing the text of one node of its syntax tree.

Not mutated: docstrings, f-strings, error messages, help texts, imports, type annotations, decorators, and the `__main__` block.
"""
import ast
import re
from typing import NamedTuple

OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
             ast.Pow: ("**", "*")}
COMPARISONS = {ast.Lt: ("<", ("<=", ">")), ast.LtE: ("<=", ("<",)), ast.Gt: (">", (">=", "<")), ast.GtE: (">=", (">",)),
               ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)), ast.In: ("in", ("not in",)), ast.NotIn: ("not in", ("in",)),
               ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",))}
WORDS = {"train": "val", "val": "train", "test": "train", "before": "after", "after": "before", "chosen": "rejected",
         "rejected": "chosen", "positive": "negative", "negative": "positive"}
CALLS = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "any": "all", "all": "any"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "isclose", "allclose"}    # their arguments may stand in any order
TOO_SHORT = 24    # characters: a mutant is shown within the smallest expression that is longer

class Mutant(NamedTuple):
    """
    source[start:end] becomes text. first, last: the lines of its statement, or of the function whose default it is; old, new: the change
    as it is shown; names: what is set by it, where that is done outside of functions.
    """
    file: str
    line: int
    first: int
    last: int
    function: str
    kind: str
    start: int
    end: int
    text: str
    old: str
    new: str
    names: tuple = ()

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
        (first line, last line, names) by which tests that run a node are found: the lines of its statement; of a default, those of the
        function's body; outside of functions, the names that are set by the statement, or the class that it stands in.
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
        return *lines, tuple(n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))

def masked(gap):
    """The text between two nodes with its comments blanked, at equal length."""
    return re.sub(r"#[^\n]*", lambda m: " " * len(m[0]), gap)

def untouched(source, node):
    """Whether a node belongs to what is not mutated."""
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
        is_error = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "error"
        if is_error and child is not parent:
            return True
        child = parent
    return False

def edits(source, node):
    """Yields (kind, start, end, new text) for one node."""
    start, end = source.span(node) if hasattr(node, "lineno") else (0, 0)
    of, parent = source.of, source.parent.get(node)
    def between(left, right, old, new):
        """The one operator between two nodes, replaced."""
        a, b = source.span(left)[1], source.span(right)[0]
        pattern = r"\s+".join(map(re.escape, old.split()))
        if m := re.search(rf"\b{pattern}\b" if old[0].isalpha() else pattern, masked(source.text[a:b])):
            yield a + m.start(), a + m.end(), new
    match node:
        case ast.Call():
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for a, b in zip(node.args, node.args[1:]) if name not in SYMMETRIC else ():
                if not any(isinstance(x, ast.Starred) for x in (a, b)):
                    (s, s_end), (e, e_end) = source.span(a), source.span(b)
                    yield "arguments swapped", s, e_end, of(b) + source.text[s_end:e] + of(a)
            if name in CALLS:
                at = source.span(node.func)[1]
                yield "min for max", at - len(name), at, CALLS[name]
        case ast.BinOp():
            if any(isinstance(x, ast.JoinedStr) or isinstance(getattr(x, "value", None), str) for x in (node.left, node.right)):
                return    # words put together
            if type(node.op) in OPERATORS:
                for edit in between(node.left, node.right, *OPERATORS[type(node.op)]):
                    yield "operator", *edit
            if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitOr, ast.BitAnd)):
                yield "operand dropped", start, end, f"({of(node.left)})"
            if isinstance(node.op, (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd)):
                yield "operand dropped", start, end, f"({of(node.right)})"
        case ast.AugAssign() if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.BitOr)):
            yield "statement removed", start, end, "pass"
            if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
                old, new = OPERATORS[type(node.op)]
                for edit in between(node.target, node.value, old + "=", new + "="):
                    yield "operator", *edit
        case ast.Compare():
            for left, op, right in zip((node.left, *node.comparators), node.ops, node.comparators):
                old, news = COMPARISONS[type(op)]
                for new in news:
                    for edit in between(left, right, old, new):
                        yield "comparison", *edit
        case ast.BoolOp():
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            gaps = [edit for a, b in zip(node.values, node.values[1:]) for edit in between(a, b, old, new)]
            for edit in gaps[:1] if len(gaps) == 1 else ():
                yield "and for or", *edit
            if len(gaps) > 1:
                yield "and for or", start, end, "(" + f" {new} ".join(f"({of(v)})" for v in node.values) + ")"
            for i in range(len(node.values)):
                rest = [f"({of(v)})" for j, v in enumerate(node.values) if j != i]
                yield "operand dropped", start, end, "(" + f" {old} ".join(rest) + ")"
        case ast.UnaryOp(op=ast.Not()):
            yield "not dropped", start, end, f"({of(node.operand)})"
        case ast.UnaryOp(op=ast.USub()) if not isinstance(parent, (ast.Slice, ast.Subscript)):
            yield "minus dropped", start, end, f"({of(node.operand)})"
        case ast.Constant():
            yield from constants(source, node, start, end)
        case ast.Subscript():
            index = of(node.slice)
            if index in ("0", "-1"):
                yield "index", *source.span(node.slice), "-1" if index == "0" else "0"
        case ast.Slice():
            for bound in (node.lower, node.upper):
                if bound is not None:
                    yield "slice", *source.span(bound), f"{of(bound)} + 1"
        case ast.If() | ast.IfExp():
            for value in ("True", "False"):
                yield "condition fixed", *source.span(node.test), value
        case ast.comprehension():
            for test in node.ifs:
                for value in ("True", "False"):
                    yield "condition fixed", *source.span(test), value
        case ast.Expr(value=ast.Call()):
            yield "statement removed", start, end, "pass"

def constants(source, node, start, end):
    """The mutants of a number, a bool, or the name of a split or side."""
    parent = source.parent[node]
    bound = parent if isinstance(parent, ast.UnaryOp) else node
    outer = source.parent[bound]
    place = isinstance(outer, ast.Slice) or (isinstance(outer, ast.Subscript) and source.of(outer.slice) in ("0", "-1"))
    match node.value:
        case bool():
            yield "constant", start, end, str(not node.value)
        case int() if not place and bound is node:    # -1: see "minus dropped"
            yield "constant", start, end, str(node.value + 1)
        case float():
            yield "constant", start, end, repr(node.value * 2 or 1.0)
        case str() if node.value in WORDS:
            yield "another name", start, end, f'"{WORDS[node.value]}"'

def shown(source, start, end, text, node):
    """(old, new): the change within the smallest expression around it that says enough; blanks are joined."""
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
            found.append(Mutant(file, text.count("\n", 0, start) + 1, first, last, source.function(near), kind, start, end, new, old,
                                changed, names))
    return sorted(found, key=lambda m: (m.start, m.end, m.text))
