"""No code of ours unpickles, evaluates or runs what somebody has sent: looked for in the tree of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlora_sched

ROOT = Path(mlora_sched.__file__).parent
UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "pandas"}
EVALUATING = {"eval", "exec", "compile", "__import__"}
SAFE_LOADERS = {"SafeLoader", "_UniqueKeyLoader"}


def trouble_in(source: str) -> Iterator[str]:
    """What in a module would run code that is not in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        yield from (f"imports {name}" for name in names & UNPICKLING)
        if isinstance(node, ast.Call):
            yield from trouble_of_call(node)


def trouble_of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in EVALUATING or called in {"os.system", "os.popen", "runpy.run_path", "torch.hub.load"}:
        yield f"calls {called}"
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    if called in {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}:
        yield f"calls {called}"
    if called == "yaml.load" and (len(node.args) < 2 or ast.unparse(node.args[1]) not in SAFE_LOADERS):
        yield "calls yaml.load with another loader than a safe one"
    for name, harmless in {"trust_remote_code": "False", "allow_pickle": "False", "shell": "False"}.items():
        if given.get(name, harmless) != harmless:
            yield f"passes {name}={given[name]}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(trouble_in(source))


def test_nothing_runs_what_it_reads() -> None:
    modules = sorted(ROOT.rglob("*.py"))
    assert len(modules) > 100
    found = {
        f"{path.relative_to(ROOT)}: {trouble}" for path in modules for trouble in trouble_in(path.read_text("utf-8"))
    }
    assert found == set()
