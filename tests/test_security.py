"Nothing that is read can run code: no pickle, no `torch.load` of more than tensors, no code from a repository, no YAML that makes objects, no eval."
import ast
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT/"prdp_nb").glob("*.py"), *(ROOT/"tools").glob("*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"} # of torch.distributed and accelerate, which pickle what they send
BUILTINS = {"eval", "exec", "compile", "__import__"}

def keyword(call: ast.Call, name: str): # its constant value; ... where it is given as anything else; None where it is not given
    values = [k.value for k in call.keywords if k.arg == name]
    return (getattr(values[0], "value", ...) if isinstance(values[0], ast.Constant) else ...) if values else None

def faults(node: ast.AST):
    "What one node of a syntax tree may not be, in words."
    if isinstance(node, ast.Import): yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
    if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in MODULES: yield f"from {node.module} import"
    if isinstance(node, ast.Import): yield from (f"{a.name} under another name" for a in node.names if a.asname and a.name in ("torch", "yaml"))
    if isinstance(node, ast.Constant) and node.value in MODULES | {"trust_remote_code"}: yield f"the name {node.value!r}"
    if isinstance(node, ast.ImportFrom) and node.module == "torch" and {"load"} & {a.name for a in node.names}: yield "torch.load under another name"
    if isinstance(node, ast.ImportFrom) and node.module == "yaml" and {"load", "unsafe_load", "full_load"} & {a.name for a in node.names}: yield "yaml.load under another name"
    if isinstance(node, ast.Attribute) and (ast.unparse(node) in {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"} or node.attr in OBJECTS | {"read_pickle", "to_pickle"}): yield ast.unparse(node)
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in BUILTINS: yield f"{name}()"
        if keyword(node, "trust_remote_code") not in (None, False): yield "trust_remote_code"
        if keyword(node, "allow_pickle") not in (None, False): yield "allow_pickle"
        if keyword(node, "shell") not in (None, False) or name in {"os.system", "os.popen"}: yield "a shell"
        if keyword(node, "weights_only") not in (None, True): yield "weights_only that is not True"

def found(source: str) -> list[str]:
    "Every fault of a module. A call `torch.load(..., weights_only=True)` is none."
    tree = ast.parse(source)
    safe = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load" and keyword(call, "weights_only") is True}
    return [f"line {getattr(node, 'lineno', 0)}: {fault}" for node in ast.walk(tree) if id(node) not in safe for fault in faults(node)]

@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_runs_what_it_reads(path): assert found(path.read_text(encoding="utf-8")) == []

def test_there_is_something_to_look_at():
    calls = [path.name for path in FILES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert {"rewards.py", "training.py"} <= {*calls} and "safe_load" in (ROOT/"prdp_nb/config.py").read_text(encoding="utf-8")

@pytest.mark.parametrize("source", [
    "import pickle", "import os, pickle as p", "from pickle import loads", "def f():\n    import dill", "importlib.import_module('pickle')", "import joblib.numpy_pickle",
    "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "torch.load(path, **options)", "read = torch.load", "import torch as t", "options = {'trust_remote_code': True}", "options = dict(trust_remote_code=True)", "from torch import load",
    "np.load(path, allow_pickle=True)", "pd.read_pickle(path)", "table.to_pickle(path)", "yaml.load(text)", "yaml.unsafe_load(text)", "from yaml import load",
    "AutoModel.from_pretrained(name, trust_remote_code=True)", "load_dataset(name, trust_remote_code=remote)", "eval(text)", "exec(text)", "subprocess.run(text, shell=True)", "os.system(text)", "torch.distributed.all_gather_object(found, mine)"])
def test_each_fault_is_found(source): assert found(source)

@pytest.mark.parametrize("source", [
    "torch.load(path, map_location='cpu', weights_only=True)", "yaml.safe_load(text)", "model.eval()", "re.compile(text)", "np.load(path)", "np.load(path, allow_pickle=False)",
    "AutoModel.from_pretrained(name, trust_remote_code=False)", "'no pickle is read here'", "torch.save(state, path)", "subprocess.run(command)", "from .pickle_free import load"])
def test_what_is_safe_is_no_fault(source): assert found(source) == []
