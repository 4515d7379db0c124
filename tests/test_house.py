"""The house rules: who may import whom, what is documented, how long a file may be, what no file may say."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import jaxtyping
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from minivim.ops import causal_conv_silu

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "minivim").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
CODE = sorted([*PACKAGE, *KERNELS, *ROOT.glob("*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("notebooks/*.py")])
TEXTS = [
    *CODE,
    *(
        ROOT / name
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "environment.yml", ".gitignore", ".ci/run")
    ),
    *(path for folder in ("", "minivim", "kernels", "data", "notebooks") for path in (ROOT / folder).glob("*.md")),
    *ROOT.glob("notebooks/**/*.ipynb"),
    *ROOT.glob("notebooks/src/*.py"),
]
# From the cellar to the roof; a room is a folder, or a file that stands alone. It imports only from the floors below.
FLOORS = [
    {"kernels"},
    {"checks", "extras"},
    {"discretize", "figures", "files", "preparation", "processes"},
    {"lti", "hippo"},
    {"data", "s4", "ops"},
    {"compat", "models"},
    {"__init__"},  # what `import minivim` loads: never the training loop, the measurements or the command line
    {"train"},
    {"bench"},
    {"course"},
    {"cli"},
    {"__main__"},
]
CORE = {"torch", "numpy", "einops", "jaxtyping"}
KERNEL_LIBRARIES = {"torch", "triton", "numba", "llvmlite", "numpy"}  # numba is written in terms of llvmlite
# Split in two, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
ONE_MACHINE = re.compile(r"\.\./sha" r"red|/(?:home|root|Users|work|farm)" r"/|pythonho" r"sted|pypi\.o" r"rg")
PASSING = re.compile(r"\bissues? #?\d|\bthis (?:ses" r"sion|iss" r"ue|workplace)\b", re.IGNORECASE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    """The dotted name of a file of the package; of a folder's `__init__` that of the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("minivim", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module(path): path for path in PACKAGE + KERNELS}


def room(dotted: str) -> str:
    """The room of a module: the first name below minivim; what minivim itself exports counts as `__init__`."""
    below = dotted.split(".")[1:2] or ["__init__"]
    return below[0] if f"minivim.{below[0]}" in MODULES else "__init__"


def floor(of: str) -> int:
    found = [height for height, rooms in enumerate(FLOORS) if of in rooms]
    assert found, f"{of} is a new room: give it a floor in FLOORS"
    return found[0]


def imports(source: str) -> set[str]:
    """The dotted names that `source` imports anywhere, also inside functions; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(source: str) -> set[str]:
    """The rooms of the package that `source` imports from."""
    return {room(dotted) for dotted in imports(source) if dotted.split(".")[0] == "minivim"}


def modules_used(source: str) -> set[str]:
    """The modules of the package that `source` imports, by their own names."""
    found = set()
    for dotted in imports(source):
        while dotted and dotted not in MODULES:
            dotted = dotted.rpartition(".")[0]
        found |= {dotted} - {""}
    return found


def required(source: str) -> set[tuple[str, str]]:
    """The (module, extra) of every require("module", "extra") in `source`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if getattr(call.func, "id", getattr(call.func, "attr", "")) == "require"]
    return {tuple(argument.value for argument in call.args) for call in calls if len(call.args) == 2}


def outside(source: str) -> set[str]:
    """The top-level modules that `source` imports and that are neither Python's nor ours."""
    return {dotted.partition(".")[0] for dotted in imports(source)} - sys.stdlib_module_names - {"minivim"}


def declared(extra: str | None) -> set[str]:
    """The distributions that pyproject.toml asks for, in the core (None) or in one extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@cache
def distributions_of(module: str) -> set[str]:
    if module == "torch.utils.tensorboard":  # a part of torch that works only beside tensorboard
        return {"tensorboard"}
    return {canonicalize_name(each) for each in packages_distributions().get(module.partition(".")[0], [module])}


def public(tree: ast.Module) -> list[ast.AST]:
    """The public classes, functions and methods; autograd Functions are internal, and an overload is a type."""
    nodes = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    nodes = [node for node in nodes if "overload" not in map(ast.unparse, node.decorator_list)]
    nodes = [
        node for node in nodes if not any(ast.unparse(base).endswith("Function") for base in getattr(node, "bases", []))
    ]
    methods = [each for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_" for each in node.body]
    nodes += [each for each in methods if isinstance(each, ast.FunctionDef)]
    return [node for node in nodes if not node.name.startswith("_")]


def bare_tensor(annotation: ast.AST) -> bool:
    """Whether a Tensor stands in the annotation without a shape; a dict of tensors has one shape per key."""
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        if kind in {"dict", "Mapping"} or hasattr(jaxtyping, kind):
            return False
    if ast.unparse(annotation).split(".")[-1] == "Tensor" and isinstance(annotation, (ast.Name, ast.Attribute)):
        return True
    return any(bare_tensor(child) for child in ast.iter_child_nodes(annotation))


def unshaped(function: ast.FunctionDef) -> list[str]:
    """The arguments without an annotation, or with a tensor without a shape; a checker's `answer` may be anything."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [
        argument.arg
        for argument in arguments
        if argument.arg not in {"self", "cls", "answer"}
        and (argument.annotation is None or bare_tensor(argument.annotation))
    ]


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_file_of_code_is_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= 430


@pytest.mark.parametrize("path", PACKAGE + KERNELS, ids=name)
def test_a_room_imports_only_from_the_floors_below(path):
    here = room(module(path)) if path != ROOT / "minivim" / "__init__.py" else "__init__"
    above = {each for each in rooms_used(path.read_text()) if each != here and floor(each) >= floor(here)}
    assert above == set(), f"{here} may not import from {sorted(above)}"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_what_the_package_imports_is_declared(path):
    source = path.read_text()
    assert outside(source) <= CORE, "imported where it is used: require(module, extra)"
    for module, extra in required(source):
        pytest.importorskip(
            module.partition(".")[0], reason="which distribution holds it is asked of what is installed"
        )
        assert distributions_of(module) & declared(extra), f"{module} is not in the extra {extra}"
    assert declared(None) == CORE


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_stand_on_torch_numba_and_triton_alone(path):
    assert outside(path.read_text()) <= KERNEL_LIBRARIES
    assert rooms_used(path.read_text()) <= {"kernels"}


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_public_names_are_documented_and_tensors_have_shapes(path):
    for node in public(ast.parse(path.read_text())):
        inherited = hasattr(torch.nn.Module, node.name)  # documented there
        assert inherited or ast.get_docstring(node), f"{node.name} (line {node.lineno}) has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert unshaped(node) == [], f"{node.name} (line {node.lineno}): arguments without type or shape"


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_a_file_is_finished_and_speaks_of_the_project_only(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for pattern in (UNFINISHED, ONE_MACHINE, PASSING):
            assert not pattern.search(line), f"{name(path)}:{number}: {pattern.search(line)[0]!r}"


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_passes(command):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed: pip install 'minivim[dev]'")
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stdout


def test_each_ignored_lint_rule_has_its_reason_beside_it():
    table = (ROOT / "pyproject.toml").read_text().partition("[tool.ruff.lint]")[2].partition("ignore = [")[2]
    rules = [line for line in table.splitlines() if re.match(r'\s+"[A-Z]+\d+"', line)]
    assert len(rules) >= 1
    assert all(re.search(r"# \w.{15,}", line) for line in rules), rules
    waived = [line for path in PACKAGE + KERNELS for line in path.read_text().splitlines() if "noqa" in line]
    assert all(re.search(r"# noqa: [A-Z]+\d+  # \w.{15,}", line) for line in waived), waived


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_targets_and_files_that_exist(document):
    text = (ROOT / document).read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    asked = set(re.findall(r"(?:^|`|\$ )make ([a-z]+)", text, re.MULTILINE))
    assert asked
    assert asked <= targets
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_quick_start_is_make_lab_and_make_test():
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Quick start.*?```(?:bash)?\n(.*?)```", text, re.DOTALL)[1]
    assert [line.partition("#")[0].strip() for line in block.splitlines()] == ["make lab", "make test"]


def test_shapes_are_checked_while_the_tests_run():
    pytest.importorskip("beartype")
    x, weight, bias = torch.ones(2, 3, 4), torch.ones(5, 4), torch.ones(4)
    with pytest.raises(jaxtyping.TypeCheckError):
        causal_conv_silu(x, weight, bias)


def test_unchecked_switches_the_checks_off(unchecked):
    convolve = torch.compile(causal_conv_silu, fullgraph=True, backend="eager")
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(4, 4), torch.randn(4)
    assert torch.allclose(convolve(x, weight, bias), causal_conv_silu(x, weight, bias), atol=1e-6)


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_reach_their_compilers_unwrapped(path):
    kernel = pytest.importorskip(module(path), exc_type=ImportError, reason="its compiler is not installed")
    assert not hasattr(kernel, "jaxtyping")  # the run-time checks would have put this name there


def test_no_module_is_reached_twice_on_the_way_down():
    """What a module imports, anywhere in it, never leads back to it; a room's own door is for those outside."""
    uses = {name: modules_used(path.read_text()) - {name} for name, path in MODULES.items()}
    while done := [name for name in uses if not uses[name] & uses.keys()]:
        for name in done:
            del uses[name]
    assert uses == {}, "these modules import each other in a circle"


def crowded(paths: list[Path]) -> list[str]:
    """Files that want to be a folder: a name that begins with another file's or folder's name, or a shared prefix."""
    found = []
    for path in paths:
        prefix = path.stem.removeprefix("test_").partition("_")[0]
        others = [other for other in path.parent.iterdir() if other != path and other.suffix in ("", ".py")]
        others = [other.stem.removeprefix("test_") for other in others if not other.name.startswith("_")]
        if "_" in path.stem.removeprefix("test_") and any(each.split("_")[0] == prefix for each in others):
            found.append(path.name)
    return found


def test_a_prefix_that_several_files_share_is_a_folder():
    assert crowded([path for path in CODE if not path.name.startswith("_")]) == []


# The rules above, tried on lines that break them.


def test_the_rule_of_prefixes_sees_what_wants_a_folder(tmp_path):
    for each in ("grade.py", "grade_wire.py", "scan_cpu.py", "scan_gpu.py", "nbval_free.py", "__init__.py"):
        (tmp_path / each).touch()
    assert crowded(sorted(tmp_path.glob("*.py"))) == ["grade_wire.py", "scan_cpu.py", "scan_gpu.py"]


def test_the_floor_rule_sees_every_kind_of_import():
    assert rooms_used("import minivim.models.vim") == {"models"}
    assert rooms_used("from minivim import lti") == {"lti"}
    assert rooms_used("def f():\n    from minivim.ops import selective_scan") == {"ops"}
    assert rooms_used("from minivim import selective_scan") == {"__init__"}
    assert rooms_used("import minivim") == {"__init__"}
    assert rooms_used("from minivim.bench.report import Report") == {"bench"}
    assert rooms_used("import torch") == set()


def test_the_dependency_rule_sees_imports_inside_functions():
    pytest.importorskip("sklearn")
    assert outside("def f():\n    import tqdm.auto\n    import os") == {"tqdm"}
    assert required('x = extras.require("sklearn.datasets", "train")') == {("sklearn.datasets", "train")}
    assert distributions_of("sklearn.datasets") == {"scikit-learn"}


@pytest.mark.parametrize(
    ("signature", "found"),
    [
        ("x: Tensor", ["x"]),
        ("x: torch.Tensor | None", ["x"]),
        ("x: list[Tensor]", ["x"]),
        ("x", ["x"]),
        ("*, x", ["x"]),
        ('x: Float[Tensor, "B L"]', []),
        ('x: tuple[Float[Tensor, "B L"], int] | None = None', []),
        ("self, state: dict[str, Tensor]", []),
    ],
)
def test_the_shape_rule_finds_tensors_without_a_shape(signature, found):
    assert unshaped(ast.parse(f"def f({signature}): pass").body[0]) == found


FACTORIES = {"empty", "zeros", "ones", "full", "arange", "tensor", "rand", "randn", "linspace", "eye"}


def homeless(source: str) -> list[str]:
    """Calls that make a tensor on the default device, wherever the inputs are."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func).removeprefix("torch.") in FACTORIES]
    calls = [call for call in calls if ast.unparse(call.func).startswith("torch.")]
    return [ast.unparse(call) for call in calls if not {"device", None} & {keyword.arg for keyword in call.keywords}]


@pytest.mark.parametrize("path", KERNELS + sorted((ROOT / "minivim" / "ops").glob("*.py")), ids=name)
def test_an_operation_makes_its_tensors_where_its_inputs_are(path):
    assert homeless(path.read_text()) == []
    assert homeless("torch.empty(3, dtype=dtype)") != []
    assert homeless("torch.empty(3, device=x.device) + torch.zeros(3, **new) + x.new_empty(3)") == []
