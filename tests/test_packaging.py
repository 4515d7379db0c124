"""How minivim is installed: what is declared, what a wheel holds, and what `import minivim` asks for."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import minivim

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TARGETS = {"lab", "test", "train", "bench", "notebooks", "lint"}

SMALL_SCAN = """
import torch, minivim, minivim.kernels
u = delta = torch.ones(1, 3, 2)
out = minivim.selective_scan(u, delta, -torch.ones(2, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 4))
decay = torch.exp(torch.tensor(-1.0))
print(torch.allclose(out[0, :, 0], 4 * torch.stack([decay**0, 1 + decay, 1 + decay + decay**2])))
"""
NEW_MODULES = """
import sys, torch
before = set(sys.modules)
import minivim
print(*sorted(set(sys.modules) - before), sep="\\n")
"""


def requirements(*groups: list[str]) -> set[str]:
    """The requirements of the groups, each once, without minivim's references to its own extras."""
    return {str(Requirement(line)) for group in groups for line in group if Requirement(line).name != "minivim"}


def python(interpreter: str | Path, code: str, folder: Path) -> str:
    """What `code` prints in a fresh interpreter that sees neither this folder nor the caller's settings."""
    command = [str(interpreter), "-I", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, timeout=300).stdout.strip()


def closure(names: list[str]) -> dict[str, Distribution]:
    """The named distributions and all that they declare to need, as installed here."""
    found, waiting = {}, [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = distribution(name)
            needed = [Requirement(line) for line in found[name].requires or []]
            waiting += [
                canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})
            ]
    return found


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what git would ship."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "minivim", "kernels", "data"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """An environment with minivim's wheel, its four dependencies and what those declare to need; nothing else."""
    environment = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(environment)
    site = site_packages(environment)
    for package in closure([Requirement(line).name for line in PROJECT["dependencies"]]).values():
        for top in {file.parts[0] for file in package.files if file.suffix != ".pth"} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    shutil.unpack_archive(wheel, site, "zip")
    return environment


def test_the_bare_environment_satisfies_what_the_wheel_declares(bare):
    installed = {canonicalize_name(d.name): d for d in distributions(path=[str(site_packages(bare))])}
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert core == {"torch", "numpy", "einops", "jaxtyping"}
    assert set(installed) == {"minivim", *closure(list(core))}
    for package in installed.values():
        for needed in map(Requirement, package.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                version = installed[canonicalize_name(needed.name)].version
                assert needed.specifier.contains(version, prereleases=True), f"{package.name} needs {needed}"


def test_the_wheel_imports_and_scans_with_four_dependencies(bare, tmp_path):
    assert python(bare / "bin" / "python", SMALL_SCAN, tmp_path) == "True"


def test_the_bare_environment_is_bare(bare, tmp_path):
    """Otherwise the test above would pass for a package that imports more than it declares."""
    absent = ["numba", "matplotlib", "datasets", "sklearn", "safetensors", "tqdm", "tyro", "jupyterlab", "PIL", "onnx"]
    if "triton" not in closure(["torch"]):  # torch's CUDA build brings triton with it
        absent.append("triton")
    code = f"import importlib.util as u; print(*[name for name in {absent} if u.find_spec(name)])"
    assert python(bare / "bin" / "python", code, tmp_path) == ""
    where = python(bare / "bin" / "python", "import minivim.kernels as k; print(k.__file__)", tmp_path)
    assert Path(where).parts[-3:] == ("minivim", "kernels", "__init__.py")
    assert Path(where).is_relative_to(bare)


def test_a_wheel_holds_every_module_and_nothing_of_the_course(bare):
    site = site_packages(bare)
    shipped = {path.relative_to(site).as_posix() for path in (site / "minivim").rglob("*.py")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minivim").rglob("*.py")}
    kernels = {f"minivim/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    assert shipped == modules | kernels | {"minivim/shipped/__init__.py"}
    weights = {path.name for path in (ROOT / "data").iterdir() if path.suffix in (".safetensors", ".md")}
    assert {path.name for path in (site / "minivim" / "shipped").iterdir()} >= weights > set()
    assert not any((site / name).exists() for name in ("tests", "notebooks", "kernels", "data"))


def test_the_wheel_says_that_it_is_typed_and_which_version_it_is(bare, tmp_path):
    assert (site_packages(bare) / "minivim" / "py.typed").exists()
    assert python(bare / "bin" / "python", "import minivim; print(minivim.__version__)", tmp_path) == PROJECT["version"]


def test_changelog_and_citation_are_of_this_version():
    newest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest == citation["version"] == PROJECT["version"] == minivim.__version__
    assert citation["license"] == PROJECT["license"]
    links = {reference["url"].rpartition("/")[2] for reference in citation["references"]}
    assert links == {"2401.09417", "2312.00752"}


def test_importing_minivim_loads_only_its_four_dependencies_beyond_torch(tmp_path):
    """In the full environment, where a stray import would succeed. What loads nothing else costs no time at import."""
    loaded = python(sys.executable, NEW_MODULES, tmp_path).split()
    assert "minivim.ops.scan" in loaded
    tops = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert tops <= {"minivim", "torch", "numpy", "einops", "jaxtyping", "wadler_lindig", "typing_extensions"}
    heavy = [name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor", "torch.distributed"))]
    assert heavy == [], "these parts of torch take seconds to import: import them where they are used"


def test_kernels_are_importable_from_any_folder_when_installed_editable(tmp_path):
    code = "import minivim.kernels, pathlib; print(pathlib.Path(minivim.kernels.__file__).resolve().parent)"
    assert Path(python(sys.executable, code, tmp_path)) == ROOT / "kernels"


def test_extra_all_names_every_other_extra():
    (line,) = EXTRAS["all"]
    assert Requirement(line).name == "minivim"
    assert Requirement(line).extras == set(EXTRAS) - {"all"}


def test_ranges_are_open_and_python_is_3_11():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "torch>=2.7" in PROJECT["dependencies"]
    for line in requirements(PROJECT["dependencies"], *EXTRAS.values()):
        assert [s.operator for s in Requirement(line).specifier] == [">="], f"{line}: a range has one floor, no ceiling"


def test_triton_is_asked_for_on_linux_only():
    (triton,) = (Requirement(line) for line in EXTRAS["triton"])
    assert triton.marker.evaluate({"sys_platform": "linux"})
    assert not triton.marker.evaluate({"sys_platform": "darwin"})


def test_constraints_pin_every_direct_dependency_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for pin in map(Requirement, lines):
        assert [s.operator for s in pin.specifier] == ["=="]
        pins[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    direct = {
        canonicalize_name(Requirement(r).name): Requirement(r)
        for r in requirements(PROJECT["dependencies"], *EXTRAS.values())
    }
    assert set(pins) == set(direct)
    assert all(direct[name].specifier.contains(version) for name, version in pins.items())
    assert (pins["torch"], pins["triton"]) == ("2.13.0", "3.7.1")


def test_environment_yml_asks_for_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, section = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert list(section) == ["pip"]
    *lines, last = section["pip"]
    assert last == "-e ."
    assert len(lines) == len(set(lines))
    asked = {str(Requirement(line)) for line in lines}
    assert asked == requirements(PROJECT["dependencies"], *EXTRAS.values())
    named = {Requirement(line).name for line in asked}
    assert named >= {"torch", "numpy", "jupyterlab", "matplotlib", "triton", "einops", "nbval", "datasets"}


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_make_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(phony) >= TARGETS
    listed = {
        line.split()[1]: line.split(maxsplit=2)[2]
        for line in make("help").stdout.splitlines()
        if line.startswith("make ")
    }
    assert set(listed) == set(phony)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_sets_up_first(target, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    planned = make("--dry-run", target, folder=tmp_path).stdout
    assert "-m venv .venv" in planned
    assert '-c constraints.txt -e ".[all]"' in planned
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    assert "-m venv" not in make("--dry-run", target, folder=tmp_path).stdout
    stale = (tmp_path / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (stale, stale))
    assert "-m venv" in make("--dry-run", target, folder=tmp_path).stdout


@pytest.mark.parametrize("found", ["missing", "old"])
def test_a_missing_or_old_python_gets_one_clear_sentence(found, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    interpreter = tmp_path / "python3.9"
    if found == "old":  # runs the check as Python 3.9 would
        pretend = 'import sys; sys.version_info, sys.version = (3, 9, 2), "3.9.2 (main)"'
        interpreter.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}\n'\"$2\"\n")
        interpreter.chmod(0o755)
    answer = make("test", f"PYTHON={interpreter}", folder=tmp_path)
    assert answer.returncode != 0
    said = [line for line in (answer.stdout + answer.stderr).splitlines() if not line.startswith("make")]
    state = "was not found" if found == "missing" else "is 3.9.2"
    assert len(said) == 1
    assert said[0].startswith(f"minivim needs Python 3.11 or newer, and {interpreter} {state}: name")
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if not line.startswith(("#", "set ", "cd "))]
    assert [line for line in commands if line] == ["make test"]
