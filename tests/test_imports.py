"""The rooms and what they may import: read from the source, so that a function's own imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import duet_unlearn
from duet_unlearn.config.recipe import METHODS

SOURCE = Path(duet_unlearn.__file__).parent
FLOORS = (
    ("errors", "events", "stats", "tensors", "answers", "redact"),
    ("losses",),
    ("data",),
    ("config", "config.sections"),
    ("models", "runs"),
    ("teacher",),
    ("training",),
    ("evals",),
    ("methods",),
    ("config.recipe",),
    ("config.reading",),
    ("plan",),
    ("attacks.result",),
    ("lab",),
    ("report",),
    ("queries",),
    ("subjects",),
    ("job",),
    ("pipeline",),
    ("attacks", "audit", "export"),
    ("api",),
    ("sweep",),
    ("cli",),
)
"""A room imports from floors above its own in this list, and from its own floor."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WIRING = {"__init__", "__main__"}
"""The package's own door: it names the rooms lazily."""
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
"""File -> its syntax tree."""


def room(file: str) -> str:
    return room_of(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


def room_of(inner: str) -> str:
    """The room of a module, named without the package; those of `config`, which has two floors, are looked up first."""
    parts = inner.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in FLOOR_OF else parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that is imported, anywhere in the file, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def rooms_used(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for module, line in imports(tree):
        package, *inner = module.split(".")
        if package == "duet_unlearn" and inner and inner[0] != "__version__":
            yield room_of(".".join(inner)), line


def packages_used(tree: ast.AST) -> set[str]:
    return {module.split(".")[0] for module, _ in imports(tree)}


def test_every_room_has_a_floor() -> None:
    assert {room(file) for file in TREES} - WIRING - set(FLOOR_OF) == set()


def test_rooms_import_one_way() -> None:
    wrong = [
        f"{file}:{line} imports {used}"
        for file, tree in TREES.items()
        if room(file) not in WIRING
        for used, line in rooms_used(tree)
        if FLOOR_OF[used] > FLOOR_OF[room(file)]
    ]
    assert wrong == []


METHOD_FILES = {file for file in TREES if room(file) == "methods"}
UNION = "config/recipe.py"
"""The one place outside `methods` that lists the methods."""


def classes_of_methods() -> set[str]:
    """Names of the classes in the union."""
    return {kind.__name__ for kind in METHODS}


def test_nobody_outside_methods_asks_which_method_it_is() -> None:
    """No import of a method's class, no isinstance or match on one, no comparison with a method's name, and no question
    for a need that only one method has."""
    names = {kind().name for kind in METHODS}
    lone = {need for kind in METHODS for need in kind.needs if sum(need in other.needs for other in METHODS) == 1}
    wrong = []
    for file, tree in TREES.items():
        if file in METHOD_FILES or file == UNION:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("duet_unlearn.methods"):
                wrong += [f"{file}: imports {one.name}" for one in node.names if one.name in classes_of_methods()]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and "method" in ast.unparse(node):
                said = ast.unparse(node.args[1])
                wrong += [f"{file}: {ast.unparse(node)}" for _ in [0] if said not in ("dict", "Mapping", "str")]
            if isinstance(node, ast.Match) and "method" in ast.unparse(node.subject):
                wrong.append(f"{file}: match {ast.unparse(node.subject)}")
            if isinstance(node, ast.Compare):
                constants = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
                if "method" in ast.unparse(node) and ".name" in ast.unparse(node) and constants & names:
                    wrong.append(f"{file}: {ast.unparse(node)}")
                if ".needs" in ast.unparse(node) and constants & lone:
                    wrong.append(f"{file}: {ast.unparse(node)}")
    assert wrong == []


def test_the_pipeline_is_short() -> None:
    assert len((SOURCE / "pipeline.py").read_text("utf-8").splitlines()) <= 250


def test_the_report_reads_files_and_knows_nothing_of_models() -> None:
    allowed = ("report.", "errors.", "redact.", "stats.", "data.files.", "attacks.result.")
    allowed = tuple(f"duet_unlearn.{room}" for room in allowed)
    for file in (file for file in TREES if room(file) == "report"):
        assert packages_used(TREES[file]).isdisjoint({"torch", "transformers", "peft", "accelerate"}), file
        inner = {module for module, _ in imports(TREES[file]) if module.startswith("duet_unlearn.")}
        assert [module for module in inner if not module.startswith(allowed)] == [], file


def test_a_loss_knows_no_model_no_config_and_no_device() -> None:
    trees = [tree for file, tree in TREES.items() if room(file) == "losses"]
    assert set().union(*map(packages_used, trees)) <= {"__future__", "math", "typing", "torch", "duet_unlearn"}
    assert {used for tree in trees for used, _ in rooms_used(tree)} == {"tensors"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for file, tree in TREES.items():
        yield from ((f"{file}:{n.lineno}", n) for n in ast.walk(tree) if isinstance(n, ast.Call))


def test_no_pickle_and_no_code_of_others() -> None:
    for file, tree in TREES.items():
        assert packages_used(tree).isdisjoint({"pickle", "dill", "cloudpickle", "shelve", "marshal"}), file
    for place, call in calls():
        called = ast.unparse(call.func)
        assert called not in ("torch.load", "torch.save", "eval", "exec", "yaml.load"), place
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert "trust_remote_code" not in given, place
        if called.endswith("ForCausalLM.from_pretrained"):
            assert given.get("use_safetensors") == "True", place


def test_defect_4_no_mask_is_made_by_comparing_ids_with_the_pad_id() -> None:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and not any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
                assert "pad" not in ast.unparse(node), f"{file}:{node.lineno}"
    assert [place for place, call in calls() if ast.unparse(call.func).endswith((".ne", ".not_equal"))] == []


def test_defect_2_no_label_is_minus_100() -> None:
    """Positions say where a label is; a -100 that meets a gather is token V - 100."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-100"), file


@pytest.mark.parametrize(
    "code",
    [
        "import duet_unlearn",
        "from duet_unlearn import UserError",
        "import duet_unlearn.errors, duet_unlearn.events, duet_unlearn.stats",
    ],
)
def test_defect_19_the_door_imports_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'transformers', 'accelerate', 'peft', 'numpy', 'yaml', 'pydantic', 'rich', 'matplotlib'}"
    check = f"import sys\n{code}\nsys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package", ["datasets", "lm_eval", "gradio", "torchao", "vllm", "trackio", "trl", "sklearn", "openai"]
)
def test_defect_19_optional_packages_are_never_imported_at_the_top(package: str) -> None:
    for file, tree in TREES.items():
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert package not in {used for node in top for used in packages_used(node)}, file


def test_every_public_name_of_the_package_is_there() -> None:
    for public in duet_unlearn.__all__:
        assert getattr(duet_unlearn, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'unlern'"):
        duet_unlearn.unlern  # noqa: B018
