"""Who may import whom: a room from rooms below it, none from a room beside it; methods never import each other, no defense
sees a trigger."""

import ast
from pathlib import Path

import backdoorbench
from backdoorbench.config import catalog
from backdoorbench.config.groups import STAGES

PACKAGE = Path(backdoorbench.__file__).parent
GROUND = (
    "errors",
    "shapes",
    "streams",
    "progress",
    "metrics",
    "device",
    "screen",
)  # loose modules that anybody may use
FLOORS = (  # from the ground up; rooms of one floor do not know each other
    {"config"},
    {"storage", "tensors"},
    {"data", "models"},
    {"training"},
    {"triggers", "detectors", "trackers"},
    {"attacks", "defenses", "after", "reporting"},
    {"pipeline"},
    {"sweeps"},
    {"cli", "api"},
    {"__init__", "__main__"},
)
LEVEL = dict.fromkeys(GROUND, 0) | {room: level for level, rooms in enumerate(FLOORS, 1) for room in rooms}
SHARED = {  # inside a room, what its other files may import, each from those named before it
    "config": ("walk", "reached", "plugins", "groups", "kept", "compose", "build", "catalog", "yamls", "acts", "implied", "origins", "citations"),
    "storage": ("store", "outputs", "record"),
    "tensors": ("augment", "vary"),
    "data": ("images", "base", "pictures", "raw", "spread", "store", "layouts", "archive", "holdout"),
    "models": (
        "recompute", "inputs", "layouts", "base", "surgery", "channels", "lipschitz", "unet", "unpickling", "formats", "reading", "unmerged", "by_names", "by_order",
        "matching", "checkpoint", "outputs", "stems", "heads", "resnet",
    ),
    "training": (
        "recipe", "optimizers", "fit", "forward", "scenario", "adversarial", "statistics", "reversal", "suspicion", "pruning",
        "inversion", "latent",
    ),
    "triggers": ("base", "patch", "picture", "blend", "hidden"),
    "attacks": ("base", "loop", "hidden", "badnets", "blended"),  # bypass poisons as the last two do
    "defenses": ("base",),
    "detectors": ("base",),
    "after": ("base", "retune"),  # what query imitates, and exact joins
    "trackers": ("base",),
    "reporting": (
        "choosing", "picture", "typeset", "separated", "rows", "fragile", "comebacks", "content", "grids", "display", "holdouts", "notes", "published", "formats", "frame", "classes", "ledger", "verdicts", "significance", "contrasts", "report", "features", "plots", "cached",
        "terminal",
    ),
    "pipeline": (
        "costs", "evaluation", "readings", "gates", "switches", "plan", "infections", "own", "infect", "watch", "purify", "detect", "after", "execute", "environment", "job",
        "preview", "share",
    ),
    "sweeps": ("compose", "sweep", "forecast", "listing", "schedule", "link", "board", "job", "pool", "grid", "hydra_errors"),
    "cli": ("flags", "arguments", "theirs", "listing", "hydra_run", "help"),
}  # fmt: skip


def imports(file: Path) -> list[str]:
    """The package's own modules that a file imports, type-checking blocks aside, as dotted names below the package."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "backdoorbench":
            inner = node.module.split(".")[1:]
            for alias in node.names:
                deeper = PACKAGE.joinpath(*inner, alias.name)
                is_module = deeper.with_suffix(".py").is_file() or deeper.is_dir()
                found.append(".".join([*inner, alias.name] if is_module or not inner else inner))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def test_every_file_has_a_level() -> None:
    top = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    assert top == set(LEVEL)
    assert len(list(PACKAGE.glob("*.py"))) <= 10  # loose modules


def test_imports_go_down() -> None:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(file):
            other = name.split(".")
            if other[0] == parts[0]:
                continue
            above, beside = LEVEL[other[0]] > LEVEL[parts[0]], LEVEL[other[0]] == LEVEL[parts[0]] > 0
            if above or beside:
                wrong.append(
                    f"{'/'.join(parts)} imports {name}, {'of a higher floor' if above else 'from the room beside it'}"
                )
    assert not wrong, "\n".join(wrong)


def test_inside_a_room_imports_go_to_what_is_shared() -> None:
    """In one order, so that none runs in a circle."""
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room, *parts = file.relative_to(PACKAGE).with_suffix("").parts
        order = SHARED.get(room, ())
        for name in imports(file):
            other = name.split(".")
            if not parts or other[0] != room or len(other) < 2 or other[1] == parts[0]:
                continue
            known = other[1] in order
            if not known or (parts[0] in order and order.index(other[1]) > order.index(parts[0])):
                wrong.append(
                    f"{room}/{'/'.join(parts)} imports {name}, {'which comes after it' if known else 'a file beside it'}"
                )
    assert not wrong, "\n".join(wrong)


def test_no_defense_and_no_detector_imports_triggers_or_attacks() -> None:
    for room in ("defenses", "detectors"):
        for file in sorted((PACKAGE / room).glob("*.py")):
            assert not [name for name in imports(file) if name.split(".")[0] in ("triggers", "attacks", "pipeline")], (
                file
            )


def test_only_composition_sweeps_and_the_command_line_know_hydra() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        words = {w for n in ast.walk(ast.parse(file.read_text())) for w in _modules(n)}
        if any(word.split(".")[0] == "hydra" for word in words):
            assert file.relative_to(PACKAGE).parts[0] in ("config", "sweeps", "cli"), file


def test_nothing_outside_a_method_knows_its_name() -> None:
    """Options of the groups of methods, as whole texts in code, stand only in the method's own file. `none` and `given` are no methods, and a
    published network is called after its paper (models/)."""
    names = {name for stage in STAGES for name in catalog.names(stage.group)} - {"none", "given"}
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent.name in ("attacks", "defenses", "detectors", "after", "triggers", "models"):
            continue
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        wrong += [
            f"{file.relative_to(PACKAGE)}: {name}" for name in sorted(names & {t for t in texts if isinstance(t, str)})
        ]
    assert not wrong, "\n".join(wrong)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
