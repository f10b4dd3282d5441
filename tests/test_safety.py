"Reading a file never runs code: no pickle, no `torch.load` without `weights_only=True`, no code from a hub."
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT/"prdp_nb").glob("*.py"))
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list",
            "trust_remote_code", "allow_pickle", "unsafe_load", "full_load", "eval", "exec"}


def offences(source):
    "What a module says that could run code out of a file or a message, and the line."
    found = []
    for node in ast.walk(ast.parse(source)):
        names = {getattr(node, "id", None), getattr(node, "module", None), getattr(node, "arg", None)} | ({node.name} if isinstance(node, ast.alias) else set())
        if isinstance(node, ast.Attribute) and not (node.attr == "eval" and ast.unparse(node.value) not in ("builtins", "pd")): names.add(node.attr) # model.eval() is no eval
        found += [(name, getattr(node, "lineno", 0)) for name in names & PICKLING]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and not any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords):
            found.append(("torch.load", node.lineno))
        if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(alias.name == "load" for alias in node.names): found.append(("torch.load by another name", node.lineno))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load": found.append(("yaml.load", node.lineno))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_runs_no_code_from_files(module):
    assert offences(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ["import pickle", "from pickle import loads", "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
                                  "Model.from_pretrained(name, trust_remote_code=True)", "torch.distributed.all_gather_object(a, b)", "yaml.load(text, yaml.Loader)", "from torch import load"])
def test_the_search_finds_what_it_looks_for(line):
    assert offences(line)
    assert not offences("torch.load(path, weights_only=True)\nmodel.eval()\nyaml.safe_load(text)")
