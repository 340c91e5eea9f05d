"""Who may import whom: a file imports from lower levels only, methods never import each other, no defense sees a trigger."""

import ast
from pathlib import Path

import backdoorbench

PACKAGE = Path(backdoorbench.__file__).parent
LEVELS = {
    0: ["errors", "shapes", "streams", "progress"],
    1: ["config", "cache", "metrics", "catalog", "tensors", "device", "recorded"],
    2: ["data", "models"],
    3: ["training", "adversarial", "triggers"],
    4: ["attacks", "defenses", "evaluation", "trackers"],
    5: ["infections", "plans", "pipeline"],
    6: ["mistakes", "reporting", "job", "launchers", "console", "stock"],
    7: ["housekeeping", "reproduce", "preview", "export", "api", "verbs", "cli", "worker", "__init__", "__main__"],
}
SHARED = {  # inside a folder, what its other files may import
    "data": {"base", "images", "raw", "store", "archive", "holdout"},
    "models": {"base", "surgery", "checkpoint", "resnet"},
    "training": {"recipe", "fit"},
    "triggers": {"base", "patch", "blend", "picture", "hidden"},
    "attacks": {"base", "loop", "hidden", "badnets", "blended"},  # bypass poisons as the last two do
    "defenses": {"base"},
    "reporting": {"record", "table", "picture", "published", "formats", "frame", "report", "plot", "ledger"},
    "tensors": {"augment"},
    "launchers": {"sweep", "compose", "outlook", "pool", "schedule", "link", "board"},
    "trackers": {"base"},
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}


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
    assert top - set(LEVEL) == set()


def test_imports_go_down() -> None:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(file):
            other = name.split(".")
            if LEVEL.get(other[0], -1) > LEVEL[parts[0]]:
                wrong.append(f"{'/'.join(parts)} imports {name}, of a higher level")
            if other[0] == parts[0] in SHARED and len(other) > 1 and other[1] not in SHARED[parts[0]]:
                wrong.append(f"{'/'.join(parts)} imports {name}, a method beside it")
    assert not wrong, "\n".join(wrong)


def test_no_defense_imports_triggers_or_attacks() -> None:
    for file in sorted((PACKAGE / "defenses").glob("*.py")):
        assert not [name for name in imports(file) if name.split(".")[0] in ("triggers", "attacks", "evaluation")], file


def test_only_the_command_line_knows_hydra() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        words = {w for n in ast.walk(ast.parse(file.read_text())) for w in _modules(n)}
        if any(word.split(".")[0] == "hydra" for word in words):
            name = file.relative_to(PACKAGE).as_posix()
            assert name in ("cli.py", "config.py", "mistakes.py") or name.startswith("launchers/"), name


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
