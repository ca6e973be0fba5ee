"""Which small changes to the code there are: cosmic-ray's, but for those that cannot matter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    *("engine", "base", "data", "training", "evals", "measure", "plan", "question", "study"),
    "analysis",
)
LEFT_OUT = (
    "ReplaceBinaryOperator_BitOr",  # nearly always types (A | B): any import would notice
    "RemoveDecorator",  # the same of dataclass, property and contextmanager
    "ExceptionReplacer",  # needs cosmic-ray at run time
    "Variable",  # needs names to be listed
    *("Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot"),  # equal of None, enums and interned values
)
"""Operators of cosmic-ray that are not used."""
UNJUDGED = ("decorator", "raise_stmt", "assert_stmt")
"""Where nothing is changed: frozen=True and its like, the wording of errors, statements to ourselves."""
SIGNATURES = ("parameters", "param", "lambdef")
"""Where a star or a slash says which arguments have names: cosmic-ray takes it for an operation."""
GUARDS = ("strict", "encoding", "deepcopy", "nullable")
"""Keyword arguments that only guard against what does not happen, as an assertion does, or only save time."""
STATEMENTS = (
    *("file_input", "suite", "simple_stmt", "if_stmt", "for_stmt", "while_stmt", "with_stmt"),
    *("try_stmt", "funcdef", "classdef", "async_stmt", "decorated"),
)
"""Nodes whose children are statements or parts of a statement's head."""
LOOKS = (
    *("linewidth", "linewidths", "alpha", "fontsize", "figsize", "height", "pad", "rotation"),
    *("zorder", "ncols", "markersize", "dpi", "capsize", "elinewidth", "layout", "visible"),
    "indent",
)
"""Keyword arguments that say how thick, pale, large or far apart something is drawn or written, and whether
a grid lies behind it: judged by eye."""
SIZES = ("size", "width", "length", "pad")
"""What the names of matplotlib's settings of the same kind end in."""
PLACING = ("new_figure", "Figure", "set_xlim", "set_ylim", "margins", "MaxNLocator")
"""Functions of a figure's size, of the room around what is drawn, and of how many ticks an axis has."""

ELSEWHERE = {
    ("harness/measure/meter.py", "CudaMeter"): "the allocator of a GPU",
    ("harness/measure/nvml.py", "GpuSampler"): "asks NVIDIA's driver",
    ("harness/measure/nvml.py", "driver_version"): "asks NVIDIA's driver",
    ("harness/measure/nvml.py", "_handle"): "asks NVIDIA's driver",
    ("harness/measure/nvml.py", "_sample"): "asks NVIDIA's driver",
    ("harness/measure/rates.py", "_replayed_seconds"): "replays a graph of CUDA",
}
"""Functions and classes that only a GPU runs, by module and name, with the reason (`make test-gpu`)."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the n-th place in a module where an operator of cosmic-ray applies."""

    module: str
    operator: str
    occurrence: int
    function: str
    """The qualified name of the innermost function around the place; empty outside of functions."""
    lines: tuple[int, ...]
    """Those of the statement, or of its head, that holds the place."""

    def source(self, before: str) -> str:
        """Return the module's source with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed = mutate_code(before, get_operator(self.operator)(), self.occurrence)
        assert changed is not None, self
        return changed


def modules(rooms: Sequence[str], root: Path = ROOT) -> list[str]:
    """Return the modules of the rooms as paths from the root; not what only a GPU runs."""
    directories = [root / ("analysis" if r == "analysis" else f"harness/{r}") for r in rooms]
    files = (file for each in directories for file in sorted(each.rglob("*.py")))
    return [
        str(f.relative_to(root)) for f in files if f.name != "__init__.py" and "cuda" not in f.parts
    ]


def mutants_of(module: str, root: Path = ROOT) -> Iterator[Mutant]:
    """Yield every change to a module, in a fixed order."""
    import parso
    from cosmic_ray.ast import ast_nodes
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = [
        (node, _function(node) if _is_judged(node) else None)
        for node in ast_nodes(parso.parse((root / module).read_text()))
    ]
    for name in sorted(operator_names()):
        if any(part in name for part in LEFT_OUT):
            continue
        operator = get_operator(name)()
        index = 0
        for node, function in nodes:
            for _ in operator.mutation_positions(node):
                if function is not None:
                    yield Mutant(module, name, index, function, _lines(node))
                index += 1


def _is_judged(node: Any) -> bool:
    """Return whether a change here could matter: not in types, errors' words, guards and decorators."""
    child = node
    while child is not None:
        parent = child.parent
        if child.type in UNJUDGED or _is_type(child, parent):
            return False
        if _is_look(child):
            return False
        if child.type == "operator" and parent is not None and parent.type in SIGNATURES:
            return False
        if child.type == "argument" and child.children[0].get_code().strip() in (*GUARDS, *LOOKS):
            return False
        if child.type == "trailer" and child.children[0].value == "(" and _called(child) in PLACING:
            return False
        if child.type == "if_stmt" and child.children[1].get_code().strip() == "TYPE_CHECKING":
            return False
        child = parent
    return True


def _is_look(child: Any) -> bool:
    """Return whether a node is the value of a setting that says how large or thick something is drawn."""
    colon = child.get_previous_sibling()
    if child.parent is None or child.parent.type != "dictorsetmaker" or colon is None:
        return False
    key = colon.get_previous_sibling() if colon.type == "operator" and colon.value == ":" else None
    return key is not None and key.get_code().strip().strip('"').endswith(SIZES)


def _called(arguments: Any) -> str:
    """Return the name of the function that is given these arguments."""
    before = arguments.get_previous_sibling()
    return before.get_code().strip().lstrip(".") if before is not None else ""


def _is_type(child: Any, parent: Any) -> bool:
    """Return whether a node is an annotation."""
    if parent is None:
        return False
    if parent.type in ("annassign", "tfpdef"):
        return child is parent.children[1]
    return parent.type == "funcdef" and child is parent.annotation


def _lines(node: Any) -> tuple[int, ...]:
    """Return the lines of the statement around a node; of a compound one, those of the part of its head."""
    child = node
    while child.parent is not None and child.parent.type not in STATEMENTS:
        child = child.parent
    return tuple(range(child.start_pos[0], child.end_pos[0] + 1))


def _function(node: Any) -> str:
    """Return the qualified name, as code objects have it, of the function whose body holds a node."""
    parts: list[str] = []
    child = node
    while child is not None:
        parent = child.parent
        kind = None if parent is None else parent.type
        if parent is not None and kind in ("funcdef", "classdef") and child is parent.children[-1]:
            is_inner = kind == "funcdef" and parts
            parts = [parent.name.value, *(["<locals>"] if is_inner else []), *parts]
            if kind == "classdef" and len(parts) == 1:
                parts = []  # the body of a class runs when it is imported
        child = parent
    return ".".join(parts)


def only_elsewhere(change: Any) -> str:
    """Return why no test without a GPU can notice a change; empty where one could."""
    return ELSEWHERE.get((change.module, change.function.split(".")[0]), "")
