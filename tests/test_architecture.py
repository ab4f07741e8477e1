"""The layers and the house rules, held by parsing the source. Each test lists the offenders."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pwgf

ROOT = Path(pwgf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

LAYERS = [
    {"_version", "errors", "checks", "state", "shown"},
    {"maps", "distances", "storage", "parallel"},
    {"measures", "tangent", "linalg"},
    {"energies"},
    {"integrate"},
    {"schemes", "problems", "posteriors", "oracles"},
    {"run"},
    {"fitting"},
    {"sampling", "filtering", "study", "plots"},
    {"cli"},
    {"__init__", "__main__"},
]
# Imports within a layer, each with its reason.
BESIDE = {
    ("checks", "errors"): "what a check raises",
    ("shown", "checks"): "what is a number",
    ("state", "errors"): "what a step raises that is lost in rounding",
    ("problems", "oracles"): "an exact law that no formula gives",
    ("filtering", "sampling"): "samples of a law with a known density",
    ("plots", "study"): "a figure shows measured errors and compared schemes",
}
LAYER_OF = {part: k for k, parts in enumerate(LAYERS) for part in parts}


# Folders of members of one family. A member imports `base` and helpers (with an underscore) of its folder, and these:
BASES = {
    "energies": {"hessian"},
    "integrate": set(),
    "linalg": set(),
    "maps": {"composed", "convex", "from_module", "residual", "standardised"},
    "measures": {"law", "pushed"},
    "problems": {"langevin"},
    "schemes": {"particles"},
}
CHOOSES = {"integrate/auto.py", "linalg/choice.py", "energies/_posed.py"}  # each knows the other members


def part_of(name: str) -> str:
    """'maps/base.py' → 'maps', 'errors.py' → 'errors'."""
    return name.split("/")[0].removesuffix(".py")


def package_of(name: str) -> list[str]:
    """The package that a module's relative imports start from: 'maps/base.py' and 'maps/__init__.py' → [maps]."""
    return name.split("/")[:-1]


def exists(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(name: str) -> list[tuple[int, list[str]]]:
    """Every module of this package that a module imports, also inside functions: (line, path within the package)."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            inside = [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "pwgf"]
            found += [(node.lineno, parts) for parts in inside]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package_of(name)
                base = base[: len(base) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            elif node.module and node.module.split(".")[0] == "pwgf":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:  # `from . import storage` names a module, `from .errors import X` a member
                target = [*base, alias.name]
                found.append((node.lineno, target if exists(target) else base))
    return found


def outside(name: str) -> set[str]:
    """Top-level names of the other packages that a module imports."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def file_of(parts: list[str]) -> str:
    path = "/".join(parts)
    return f"{path}.py" if f"{path}.py" in TREES else f"{path}/__init__.py".lstrip("/")


def test_the_parser_sees_the_imports():
    assert "run/solve.py" in TREES
    assert ["errors"] in [parts for _, parts in imported("maps/base.py")]
    assert ["maps", "base"] in [parts for _, parts in imported("measures/pushed.py")]
    assert ["storage"] in [parts for _, parts in imported("run/solve.py")]
    assert "torch" in outside("maps/base.py")


def test_every_module_has_a_layer():
    assert [name for name in TREES if part_of(name) not in LAYER_OF] == []


def test_modules_import_only_from_layers_below():
    """Members of one folder may import each other."""
    offenders = []
    for name in TREES:
        mine = part_of(name)
        for line, parts in imported(name):
            other = parts[0] if parts else "__init__"
            if other != mine and LAYER_OF[other] >= LAYER_OF[mine] and (mine, other) not in BESIDE:
                offenders.append(f"{name}:{line} (layer {LAYER_OF[mine]}) imports {other} (layer {LAYER_OF[other]})")
    assert offenders == []


def test_the_top_level_holds_the_layers_and_nothing_else():
    found = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert found == set(LAYER_OF)


def test_members_know_their_base_and_not_each_other():
    """A scheme that is a folder may import all of its own."""
    offenders = []
    for name in TREES:
        folder, *inner = name.removesuffix(".py").split("/")
        if folder not in BASES or inner[-1] == "__init__" or name in CHOOSES:
            continue
        for line, parts in imported(name):
            if parts[:1] != [folder] or len(parts) < 2 or parts[1] == inner[0]:
                continue
            if parts[1] not in BASES[folder] | {"base"} and not parts[1].startswith("_"):
                offenders.append(f"{name}:{line} imports {'/'.join(parts)}")
    assert offenders == []


def test_members_never_import_their_own_folder():
    """A folder's __init__ imports its members; the other way round would be a circle."""
    offenders = [
        f"{name}:{line}"
        for name in TREES
        for line, parts in imported(name)
        if "/" in name and not name.endswith("__init__.py") and parts == package_of(name)
    ]
    assert offenders == []


def test_there_are_no_circles():
    graph = {name: {file_of(parts) for _, parts in imported(name)} - {name} for name in TREES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [" → ".join([*path[path.index(name) :], name])]
        if name in done:
            return []
        circles = [circle for other in sorted(graph[name]) for circle in visit(other, (*path, name))]
        done.add(name)
        return circles

    assert [circle for name in sorted(graph) for circle in visit(name, ())] == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("h5py", ("storage/",)),
        ("torchdiffeq", ("integrate/", "maps/neural_ode.py")),
    ],
)
def test_a_library_has_one_home(library, homes):
    assert [name for name in TREES if library in outside(name) and not name.startswith(homes)] == []


@pytest.mark.parametrize("library", ["pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"])
def test_nothing_is_pickled(library):
    assert [name for name in TREES if library in outside(name)] == []


def test_torch_load_and_save_are_not_used():
    offenders = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("load", "save")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("torch", "np", "numpy")
    ]
    assert offenders == []


def test_no_assert():
    offenders = [
        f"{name}:{n.lineno}" for name, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.Assert)
    ]
    assert offenders == []


def calls(function: str) -> list[str]:
    return [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    ]


def test_no_print_outside_the_command_line():
    assert [where for where in calls("print") if not where.startswith("cli/")] == []


# Modules that import a part of the package by its name, which the layers do not see, each with its reason.
IMPORTS_BY_NAME = {
    "__init__.py": "a name of the package is imported when it is first used",
    "run/pictures.py": "run.plot() and the like are drawn by plots/, above; nothing of it is known before the call",
}


def test_imports_by_name_are_few():
    """The names of other libraries, which are extras, are another matter."""
    calls = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [(name, ast.unparse(node.args[0])) for name, node in calls if "import_module" in ast.unparse(node.func)]
    assert {name for name, what in named if "pwgf" in what or "__name__" in what} == set(IMPORTS_BY_NAME)


@pytest.mark.parametrize("function", ["eval", "exec", "compile", "__import__"])
def test_no_code_is_made_from_text(function):
    assert calls(function) == []


# Handlers of BaseException that do not end in `raise`, each with its reason.
KEEPS_THE_FAILURE = {
    "storage/disk.py": "Stream._attempt: HDF5 crashes the process on an exception; `check` raises it later",
}


def test_no_broad_except():
    """No bare except and no `except Exception`; `except BaseException` only to clean up and raise again."""
    offenders = []
    for name, tree in TREES.items():
        kept = 0
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {c.id for c in caught if isinstance(c, ast.Name)}
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if node.type is None or "Exception" in names:
                offenders.append(f"{name}:{node.lineno}")
            elif "BaseException" in names and not raises_again:
                kept += 1
                if name not in KEEPS_THE_FAILURE or kept > 1:
                    offenders.append(f"{name}:{node.lineno}")
    assert offenders == []


def test_only_errors_of_this_package_are_raised():
    """NotImplementedError and the like would escape `except PWGFError`.

    Inside storage, FileNotFoundError and ValueError are signals between its own functions, which catch them.
    """
    own = {node.name for node in TREES["errors.py"].body if isinstance(node, ast.ClassDef)}
    asked_for_by_python = {"StopIteration", "KeyError", "AttributeError", "SystemExit", "KeyboardInterrupt"}
    offenders = []
    for name, tree in TREES.items():
        allowed = own | asked_for_by_python
        if name.startswith("storage/"):
            allowed |= {"FileNotFoundError", "ValueError"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                raised = node.exc.func.id
                if raised.endswith(("Error", "Exception")) and raised not in allowed:
                    offenders.append(f"{name}:{node.lineno} {raised}")
    assert offenders == []


def test_no_global_random_state_or_defaults():
    """Only the command line, which owns its process, may set the number of threads."""
    settings = ("manual_seed", "seed", "set_default_dtype", "set_default_device", "set_num_threads")
    owners = ("torch", "np.random", "numpy.random", "random", "torch.random", "torch.cuda")
    forbidden = {f"{owner}.{setting}" for owner in owners for setting in settings}
    offenders = [
        f"{name}:{node.lineno} {ast.unparse(node.func)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forbidden
    ]
    assert [where for where in offenders if not where.startswith("cli/run.py")] == []


def test_every_module_has_a_docstring():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def public_definitions(name: str):
    """Public classes and functions of a module and public methods of its public classes: (dotted name, node)."""

    def walk(body, prefix):
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith(
                "_"
            ):
                yield f"{prefix}{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    private_module = name.split("/")[-1].startswith("_") and not name.endswith("__init__.py")
    return [] if private_module else list(walk(TREES[name].body, ""))


def is_overload(node) -> bool:
    return any(ast.unparse(d).endswith(("overload", ".setter")) for d in getattr(node, "decorator_list", []))


def test_every_public_name_has_a_docstring():
    offenders = [
        f"{name}:{node.lineno} {dotted}"
        for name in TREES
        for dotted, node in public_definitions(name)
        if not ast.get_docstring(node) and not is_overload(node)
    ]
    assert offenders == []


def test_files_are_short():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    total = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node):
        total -= node.body[0].end_lineno - node.body[0].lineno + 1
    return total


def test_functions_are_short():
    offenders = [
        f"{name}:{node.lineno} {node.name}: {code_lines(node)} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and code_lines(node) > 50
    ]
    assert offenders == []


def test_few_top_level_names():
    lazy = {name for name in pwgf.__all__ if not name.startswith("_") and not name.endswith("Error")}
    assert (
        len(lazy) <= 29
    )  # five of them integrators and their folder, which replaced six arguments of PWGF; six schemes
    assert [name for name in pwgf.__all__ if not hasattr(pwgf, name)] == []


# Where a scheme is made by its class, each with its reason; all else makes one by `schemes.SCHEMES`.
MAKES_A_SCHEME = {
    "sampling/by_flow.py": "a posterior is sampled by PWGF",
    "filtering/by_flow.py": "between observations the law follows PWGF",
    "fitting/stored.py": "a fit in a file is a run of one row, read as those of maps are",
}
ABOVE_SCHEMES = ("run/", "fitting/", "sampling/", "filtering/", "study/", "plots/", "cli/")
CLASSES = {kind.__name__ for kind in pwgf.schemes.SCHEMES.values()} | {"MapReplay", "ParticleReplay", "JKOReplay"}
ASKS = (ast.Compare, ast.Match)
ASKING_CALLS = {"isinstance", "issubclass", "type", "startswith", "endswith"}


def asks_for_schemes(tree: ast.AST) -> list[int]:
    """Lines that compare with a scheme's name or class, also in isinstance, match and as the key of a dictionary."""
    short = set(pwgf.schemes.SCHEMES)
    lines = []
    for node in ast.walk(tree):
        calls = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ASKING_CALLS
        parts = node.keys if isinstance(node, ast.Dict) else [node] if isinstance(node, ASKS) or calls else []
        texts = CLASSES if isinstance(node, ast.Dict) else CLASSES | short  # a key "pwgf" may be the package's version
        known = {"id": CLASSES, "attr": CLASSES, "value": texts}
        inner = [leaf for part in parts if part is not None for leaf in ast.walk(part)]
        found = [(getattr(leaf, field, None), names) for leaf in inner for field, names in known.items()]
        if any(isinstance(text, str) and text in names for text, names in found):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "line",
    [
        "scheme['name'] == 'PWGF'", "name in ('SWJKO', 'JKOICNN')", "isinstance(reader, schemes.MapReplay)",
        "type(scheme) is PWGF", "settings.scheme != 'particles'", "{'EulerMaruyama': 1}[name]",
        "match name:\n    case 'SWJKO':\n        pass", "name.startswith('PWGF')",
    ],
)  # fmt: skip
def test_a_question_for_a_scheme_is_found(line):
    assert asks_for_schemes(ast.parse(line)) == [1]


def test_nobody_above_the_schemes_asks_which_one_it_is():
    """What one needs to know of a scheme one asks the scheme: `schemes.base.Answers`."""
    offenders = []
    for name, tree in TREES.items():
        if not name.startswith(ABOVE_SCHEMES):
            continue
        offenders += [f"{name}:{line} asks for a scheme" for line in asks_for_schemes(tree)]
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        made = {alias.name for node in imports for alias in node.names} & CLASSES
        made |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & CLASSES
        if made and name not in MAKES_A_SCHEME:
            offenders.append(f"{name} uses {sorted(made)}")
    assert offenders == []
