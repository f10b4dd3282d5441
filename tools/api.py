"""The pages of the API, one a module, read from its source: the comments beside parameters are the
documentation."""
import ast, copy, io, re, textwrap, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/prdp-nb/prdp_nb/blob/main/prdp_nb"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

def escape(text: str) -> str: # Markdown that shows it; what stands in backticks stays code
    return re.sub(r"(`[^`]*`)|([\\*_<>\[\]$])", lambda m: m[1] or "\\" + m[2], text)

def block(lines: list[str]) -> str:
    return "```python\n" + textwrap.dedent("\n".join(lines)) + "\n```"

def table(rows: list[tuple]) -> str: # (name, type, default, meaning) of each; else ""
    if not rows: return ""
    cells = [[f"`{cell}`"*bool(cell) for cell in row[:3]] + [escape(row[3])] for row in rows]
    columns = [column for column in zip(("", "type", "default", "meaning"), ("---",)*4, *cells)
               if any(column[2:])]
    lines = ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in zip(*columns)]
    return "\n".join(["```{table}", ":class: parameters", "", *lines, "```"])

def written(node: ast.expr | None) -> str: # its code
    return "" if node is None else ast.unparse(node)

def names(given: ast.arguments) -> str: # of a signature, with defaults, without types
    bare = copy.deepcopy(given)
    for node in ast.walk(bare):
        if isinstance(node, ast.arg): node.annotation = None
    return ast.unparse(bare)

class Source:
    "What a module says of its public names."
    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        found = (token for token in tokens if token.type == tokenize.COMMENT)
        self.comments = {token.start[0]: token.string.lstrip("# ") for token in found}
        self.name, self.summary = f"prdp_nb.{path.stem}", escape(ast.get_docstring(self.tree))
        self.chapter = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", self.text)[1]

    def parameters(self, function) -> list[tuple]: # rows of a table
        given = function.args
        plain = given.posonlyargs + given.args
        defaults = [None]*(len(plain) - len(given.defaults)) + given.defaults
        every = [("", *pair) for pair in zip(plain, defaults)] + [("*", given.vararg, None)]
        every += [("", *pair) for pair in zip(given.kwonlyargs, given.kw_defaults)]
        every += [("**", given.kwarg, None)]
        return [(stars + arg.arg, written(arg.annotation), written(default),
                 self.comments.get(arg.lineno, ""))
                for stars, arg, default in every if arg and arg.arg not in ("self", "cls")]

    def returned(self, function) -> list[tuple]: # a row of a table, or none
        kind, last = written(function.returns), function.body[0].lineno - 1
        meaning = self.comments.get(last, "") # beside the bracket that closes the signature
        return [("return", kind, "", meaning)] if meaning or kind not in ("", "None") else []

    def fields(self, owner: ast.ClassDef) -> list[tuple]: # rows of a table
        rows = []
        for node in owner.body:
            meaning = self.comments.get(node.lineno, "")
            if isinstance(node, ast.Assign) and meaning:
                rows.append((written(node.targets[0]), "", written(node.value), meaning))
            if not isinstance(node, ast.AnnAssign): continue
            default = node.value
            if written(getattr(default, "func", None)) == "option": # a field of `Config`
                limits = [f"{limit.arg.replace('_', ' ')} `{written(limit.value)}`"
                          for limit in default.keywords]
                meaning = "; ".join([ast.literal_eval(default.args[1]), *limits])
                default = default.args[0]
            rows.append((node.target.id, written(node.annotation), written(default), meaning))
        return rows

    def entry(self, node, level: int = 2, owner: str = "") -> list[str]: # paragraphs
        "A function, a method or a class with its methods."
        is_class = isinstance(node, ast.ClassDef)
        methods = [n for n in node.body if isinstance(n, FUNCTIONS)] if is_class else []
        maker = next((m for m in methods if m.name == "__init__"), None) if is_class else node
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        head = self.lines[first:node.lineno] if is_class else self.lines[first:node.lineno - 1]
        rows = self.fields(node) if is_class else []
        if maker and maker.body[0].lineno - maker.lineno < 2: # its comment is about the whole
            head.append(self.lines[maker.lineno - 1])
        elif maker:
            indent = " "*maker.col_offset
            head += textwrap.wrap(f"{indent}def {maker.name}({names(maker.args)})", 85,
                                  subsequent_indent=indent + "    ", break_long_words=False)
            rows += self.parameters(maker) + self.returned(maker)
        place = f"{SOURCE}/{self.path.name}#L{first + 1}-L{node.end_lineno}"
        text = [f"{'#'*level} {escape(owner + node.name)}", block(head),
                escape(ast.get_docstring(node) or ""), table(rows)]
        if not owner: # a method's is in that of its class
            text += ["<details><summary>Source</summary>", f"[On GitHub]({place})",
                     block(self.lines[first:node.end_lineno]), "</details>"]
        for method in methods:
            if not method.name.startswith("_") or method.name == "__call__":
                text += self.entry(method, 3, f"{node.name}.")
        return text

    def page(self, chapter_title: str) -> str: # Markdown
        "What the module exports, in the order of its source."
        text = [f"# {escape(self.name)}", f"> {self.summary}",
                f"Explained in [{chapter_title}](../{self.chapter}.ipynb)."]
        public = set()
        for node in self.tree.body:
            name = getattr(node, "name", None) or written(getattr(node, "targets", [None])[0])
            if name == "__all__": public = set(ast.literal_eval(node.value))
            elif name in public and isinstance(node, ast.Assign):
                lines = self.lines[node.lineno - 1:node.end_lineno]
                text += [f"## {escape(name)}", block(lines)]
            elif name in public: text += self.entry(node)
        return "\n\n".join(filter(None, text)) + "\n"
