"""What the package exports explains itself: docstrings, and docments, which are comments on the lines of parameters and return values.

1. A public class has a docstring. A public function or method has one, or a comment in its signature; `__init__` and `__call__` have their class's.
2. Where a function is longer than two lines, each parameter and the return value has a comment on its line, unless its type is a class
   that explains itself, or the docstring names the parameter in backticks.
3. A method that a base class within the package explains need not be explained again.
"""
import ast, io, tokenize
from pathlib import Path
import pytest

MODULES = sorted(path for path in (Path(__file__).resolve().parents[1]/"prdp_nb").glob("*.py") if not path.name.startswith("_"))
PLAIN = {"int", "float", "bool", "str", "bytes", "list", "dict", "tuple", "set", "frozenset", "object", "Path", "Callable", "Tensor", "ndarray", "DataFrame", "Module"} # say nothing of what they hold
Function = ast.FunctionDef

def read(source: str) -> tuple[ast.Module, set[int]]: # tree; numbers of the lines with a comment
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return ast.parse(source), {token.start[0] for token in tokens if token.type == tokenize.COMMENT}

def explains(annotation: ast.expr | None) -> bool:
    "Is it a class, and none of those that are `PLAIN`?"
    if annotation is None: return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str): annotation = ast.parse(annotation.value, mode="eval").body
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} | {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}
    return bool(names) and not names & PLAIN

def parameters(function: Function) -> list[ast.arg]:
    given = function.args
    every = given.posonlyargs + given.args + given.kwonlyargs + [a for a in (given.vararg, given.kwarg) if a]
    return [a for a in every if a.arg not in ("self", "cls")]

def unexplained(function: Function, comments: set[int]) -> list[str]: # "" for the function itself, names of parameters, "return"
    "What of a function no docstring, comment or type explains."
    text, first = ast.get_docstring(function) or "", function.body[0].lineno
    signature = range(function.lineno, max(first, function.lineno + 1))
    missing = [] if text or function.name in ("__init__", "__call__") or comments & {*signature} else [""]
    if function.end_lineno - function.lineno < 2: return missing
    missing += [a.arg for a in parameters(function) if not (a.lineno in comments or explains(a.annotation) or f"`{a.arg}`" in text)]
    returns = function.returns
    nothing = returns is None or isinstance(returns, ast.Constant) and returns.value is None
    return missing + ["return"]*(not (nothing or returns.end_lineno in comments or explains(returns)))

def methods(tree: ast.Module): # (class or None, function) for each public one
    for node in tree.body:
        for owner, function in [(None, node)] if isinstance(node, Function) else [(node, n) for n in getattr(node, "body", []) if isinstance(n, Function)]:
            if not function.name.startswith("_") or function.name in ("__init__", "__call__"): yield owner, function

def inherited(owner: ast.ClassDef | None, method: str, classes: dict[str, ast.ClassDef]) -> bool:
    "Is that a method of a base class within the package?"
    bases = [classes[base.id] for base in getattr(owner, "bases", []) if getattr(base, "id", "") in classes]
    return any(method in [n.name for n in base.body if isinstance(n, Function)] or inherited(base, method, classes) for base in bases)

def violations(source: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    tree, comments = read(source)
    found = [f"line {node.lineno}, class {node.name}: no docstring" for node in tree.body if isinstance(node, ast.ClassDef) and not ast.get_docstring(node)]
    for owner, function in methods(tree):
        if function.name != "__init__" and inherited(owner, function.name, classes): continue
        name = f"{owner.name}.{function.name}" if owner else function.name
        found += [f"line {function.lineno}, {name}: {what or 'itself'} is not explained" for what in unexplained(function, comments)]
    return found

@pytest.fixture(scope="module")
def classes(): return {node.name: node for path in MODULES for node in read(path.read_text(encoding="utf-8"))[0].body if isinstance(node, ast.ClassDef)}

@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_everything_public_is_explained(module, classes):
    found = violations(module.read_text(encoding="utf-8"), classes)
    assert not found, "\n".join(["add docstrings or docments in the notebook:", *found])

LONG = "    x = 1\n    y = 2\n    return x, y\n"

@pytest.mark.parametrize("source, expected", [
    ("def f(): return 1\n", ["f: itself"]),
    ("def f(): return 1 # one\n", []),
    ("def f(a): return 1 # short: the comment will do\n", []),
    ("def f(\n    a, # the first\n    b: int,\n):\n    'It is said.'\n" + LONG, ["f: b"]),
    ("def f(a: Config, rng: np.random.Generator, t: 'Rollout'):\n    'Types that explain themselves.'\n" + LONG, []),
    ("def f(a: list[Config]):\n    'A list of what for?'\n" + LONG, ["f: a"]),
    ("def f(a):\n    'What becomes of `a`.'\n" + LONG, []),
    ("def f() -> Tensor:\n    'Of which shape?'\n" + LONG, ["f: return"]),
    ("def f() -> Tensor: # (B,)\n    'Of that shape.'\n" + LONG, []),
    ("class A: pass\n", ["class A: no docstring"]),
    ("class A:\n    'Explained.'\n    def __init__(self, a):\n    " + LONG.replace("\n    ", "\n        ") + "    def g(self): pass\n", ["A.__init__: a", "A.g: itself"]),
    ("class C(B):\n    'Explained.'\n    def g(self): pass\n    def h(self): pass\n", ["C.h: itself"]),
    ("def _private(): return 1\n", [])])
def test_the_rule_itself(source, expected):
    base = read("class B:\n    'Explained.'\n    def g(self): pass # explained\n")[0].body[0]
    found = violations(source, dict(B=base))
    assert len(found) == len(expected) and all(e in f for e, f in zip(expected, found))
