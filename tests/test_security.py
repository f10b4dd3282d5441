"""Nothing that is read can run code: no pickle, no `torch.load` of more than tensors, no code from
a repository, no YAML that makes objects, no eval."""
import ast
from pathlib import Path
import pytest, yaml
from prdp_nb.config import StrictYAML

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT/"prdp_nb").glob("*.py"), *(ROOT/"tools").glob("*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# of torch.distributed and accelerate, which pickle what they send
OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}
# Between the processes of one run, which started together, nothing strange can be in what is sent.
ALLOWED = {"processes.py": ["gather_object pickles what it sends"]}
BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE = dict(torch={"load"}, yaml={"load", "unsafe_load", "full_load"}) # module -> its functions
SAFE_VALUES = dict(trust_remote_code=False, allow_pickle=False, shell=False, weights_only=True)

def keyword(call: ast.Call, name: str):
    "The constant that a keyword has; None where it is not given, ... where it is something else."
    values = [k.value for k in call.keywords if k.arg == name]
    if not values: return None
    return getattr(values[0], "value", ...) if isinstance(values[0], ast.Constant) else ...

def import_faults(node: ast.Import):
    for alias in node.names:
        if alias.name.split(".")[0] in MODULES: yield f"import {alias.name}"
        if alias.asname and alias.name in UNSAFE: yield f"{alias.name} under another name"

def from_faults(node: ast.ImportFrom):
    if node.level: return # from the package itself
    if node.module.split(".")[0] in MODULES: yield f"from {node.module} import"
    for alias in node.names:
        if alias.name in UNSAFE.get(node.module, ()):
            yield f"{node.module}.{alias.name} under another name"
        if alias.name in OBJECTS: yield f"{alias.name} pickles what it sends"

def attribute_faults(node: ast.Attribute):
    name = ast.unparse(node)
    unsafe = {f"{module}.{f}" for module, functions in UNSAFE.items() for f in functions}
    if name in unsafe or node.attr in OBJECTS | {"read_pickle", "to_pickle"}: yield name

def call_faults(node: ast.Call):
    name = ast.unparse(node.func)
    if name in BUILTINS: yield f"{name}()"
    if name in {"os.system", "os.popen"}: yield "a shell"
    for option, safe in SAFE_VALUES.items():
        if keyword(node, option) not in (None, safe): yield f"{option} that is not {safe}"

FAULTS = {ast.Import: import_faults, ast.ImportFrom: from_faults, ast.Attribute: attribute_faults,
          ast.Call: call_faults}

def faults(node: ast.AST):
    "What one node of a syntax tree may not be, in words."
    if isinstance(node, ast.Constant) and node.value in MODULES | {"trust_remote_code"}:
        yield f"the name {node.value!r}"
    if type(node) in FAULTS: yield from FAULTS[type(node)](node)

def is_safe_load(node: ast.AST) -> bool: # torch.load(..., weights_only=True), or a safe YAML loader
    if not isinstance(node, ast.Call): return False
    if ast.unparse(node.func) == "yaml.load": return ast.unparse(node).endswith(", StrictYAML)")
    return ast.unparse(node.func) == "torch.load" and keyword(node, "weights_only") is True

def found(source: str) -> list[str]:
    "Every fault of a module. A call `torch.load(..., weights_only=True)` is none."
    nodes = list(ast.walk(ast.parse(source)))
    safe = {id(node.func) for node in nodes if is_safe_load(node)}
    return [f"line {getattr(node, 'lineno', 0)}: {fault}"
            for node in nodes if id(node) not in safe for fault in faults(node)]

@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_runs_what_it_reads(path):
    faults_of_it = [fault.partition(": ")[2] for fault in found(path.read_text(encoding="utf-8"))]
    assert faults_of_it == ALLOWED.get(path.name, [])

def test_there_is_something_to_look_at():
    calls = [path.name for path in FILES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert {"clip_rewards.py", "training.py"} <= {*calls}
    assert issubclass(StrictYAML, yaml.SafeLoader)

FAULTY = [
    "import pickle", "import os, pickle as p", "from pickle import loads",
    "def f():\n    import dill", "importlib.import_module('pickle')", "import joblib.numpy_pickle",
    "torch.load(path)", "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=flag)", "torch.load(path, **options)", "read = torch.load",
    "import torch as t", "from torch import load", "options = {'trust_remote_code': True}",
    "options = dict(trust_remote_code=True)", "np.load(path, allow_pickle=True)",
    "pd.read_pickle(path)", "table.to_pickle(path)", "yaml.load(text)", "yaml.unsafe_load(text)",
    "from yaml import load", "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "load_dataset(name, trust_remote_code=remote)", "eval(text)", "exec(text)",
    "subprocess.run(text, shell=True)", "os.system(text)",
    "torch.distributed.all_gather_object(found, mine)",
    "from accelerate.utils import gather_object"]

@pytest.mark.parametrize("source", FAULTY)
def test_each_fault_is_found(source): assert found(source)

SAFE = [
    "torch.load(path, map_location='cpu', weights_only=True)", "yaml.safe_load(text)",
    "model.eval()", "re.compile(text)", "np.load(path)", "np.load(path, allow_pickle=False)",
    "AutoModel.from_pretrained(name, trust_remote_code=False)", "'no pickle is read here'",
    "torch.save(state, path)", "subprocess.run(command)", "from .pickle_free import load"]

@pytest.mark.parametrize("source", SAFE)
def test_what_is_safe_is_no_fault(source): assert found(source) == []
