"""The layers: imports point one way, and none is hidden in a function."""

import ast

import pytest

from support.files import ROOT

LAYERS = (  # each imports only from itself and from those above
    *("support", "models", "data", "catalogue", "flags", "storage", "engine"),
    *("attacks", "flatness", "reporting", "training", "exchange"),
    "root",
)
STRANGERS = ("attacks", "flatness", "reporting")  # none of them imports another
ROOT_MODULES = ("core", "launch", "results", "figures", "report", "export", "import_network", "sweep")
IN_FUNCTIONS = {  # (module, what it imports): why
    ("engine.context", "models.network"): "TensorFlow loads after the flags and the data are checked",
    ("import_network", "exchange.importing"): "TensorFlow is kept out of --help and of errors in flags",
}


def modules():
    """{module: (layer, syntax tree)} of the program, without scripts."""
    found = {}
    for layer in LAYERS[:-1]:
        for path in (ROOT / layer).glob("*.py"):
            found[f"{layer}.{path.stem}".removesuffix(".__init__")] = layer, ast.parse(path.read_text())
    return found | {name: ("root", ast.parse((ROOT / f"{name}.py").read_text())) for name in ROOT_MODULES}


MODULES = modules()


def imports(tree):
    """(imported module of the program, whether in a function) of each import."""
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [full if (full := f"{node.module}.{a.name}") in MODULES else node.module for a in node.names]
        yield from ((name, id(node) in inside) for name in names if name in MODULES)


EDGES = {name: set(imports(tree)) for name, (_, tree) in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_layers_above_it(module):
    layer = MODULES[module][0]
    for other, _ in EDGES[module]:
        theirs = MODULES[other][0]
        assert LAYERS.index(theirs) <= LAYERS.index(layer), f"{module} imports {other}"
        assert theirs == layer or not {theirs, layer} <= set(STRANGERS), f"{module} imports {other}"


def test_imports_are_acyclic():
    left = {name: {other for other, _ in edges if other != name} for name, edges in EDGES.items()}
    while free := [name for name, edges in left.items() if not edges & set(left)]:
        left = {name: edges for name, edges in left.items() if name not in free}
    assert not left, f"circle among {sorted(left)}"


def test_no_import_of_the_program_hides_in_a_function():
    hidden = {(name, other) for name, edges in EDGES.items() for other, inside in edges if inside}
    assert hidden == set(IN_FUNCTIONS)


def test_the_facade_is_imported_by_no_module():
    assert not [name for name, edges in EDGES.items() if "results" in {other for other, _ in edges}]


def test_the_root_holds_scripts_and_few_modules():
    scripts = ("exper-", "eval-", "make_", "train_", "measure_")
    found = {path.stem for path in ROOT.glob("*.py") if not path.name.startswith(scripts)}
    assert found == set(ROOT_MODULES) and len(found) <= 8


def test_no_file_is_longer_than_450_lines_and_no_function_longer_than_60():
    for name, (layer, tree) in MODULES.items():
        path = ROOT / (f"{name}.py" if layer == "root" else name.replace(".", "/") + ".py")
        path = path if path.exists() else ROOT / name / "__init__.py"
        assert len(path.read_text().splitlines()) <= 450, name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 60, f"{name}.{node.name}"
