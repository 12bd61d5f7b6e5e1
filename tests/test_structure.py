"""The one-way flow: imports point along it, engines and views know no schedule, heavy imports come late."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("simulator", "schedules", "commands")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))])

LAYERS = [
    "simulator.errors",
    "simulator.yaml_file",
    "simulator.kernels",
    "simulator.program",
    "simulator.graph",
    "simulator.plan",
    "simulator.lower",
    "simulator.engines",
    "simulator.costs.given",
    "schedules",
    "simulator.costs.model",
    "simulator.costs.model_files",
    "simulator.costs.profile",
    "simulator.costs.cluster",
    "simulator.costs.stack",
    "simulator.costs.parallel",
    "simulator.costs.exchange_kernels",
    "simulator.costs.collectives",
    "simulator.costs.offload",
    "simulator.costs.memory",
    "simulator.costs.share",
    "simulator.costs.operators",
    "simulator.costs.overlap",
    "simulator.costs.step",
    "simulator.costs.modelled",
    "simulator.trace",
    "simulator.slots",
    "simulator.balance",
    "simulator.links",
    "simulator.bubbles",
    "simulator.summary",
    "simulator.phases",
    "simulator.efficiency",
    "simulator.uncertainty",
    "simulator.costs.measured",
    "simulator.replay",
    "simulator.prediction",
    "simulator.files",
    "simulator.scenario",
    "simulator.case",
    "simulator.tuning",
    "simulator.comparison",
    "simulator.planning.tables",
    "simulator.planning.evaluation",
    "simulator.planning.assumptions",
    "simulator.planning.template",
    "simulator.planning.execution",
    "simulator.planning.jobs",
    "simulator.planning.constraints",
    "simulator.planning.sweep",
    "simulator.planning.search",
    "simulator.planning.advice",
    "simulator.planning",
    "simulator.inference",
    "simulator.savings",
    "simulator.experts.routing",
    "simulator.experts.placement",
    "simulator.experts.balance",
    "simulator.experts.recorded",
    "simulator.experts.study",
    "simulator.experts",
    "simulator.ablation",
    "simulator.report",
    "simulator.views",
    "simulator.calibration",
    "simulator.recorded",
    "simulator.measuring",
    "simulator.validation",
    "commands.options",
    "commands",
    "cli",
    "__main__",
]
"""From the bottom up: a module imports only from its own layer and those above it in this list."""


SHOWN_BY = ("simulator.views.picture", "simulator.views.notebook")
"""What a Trace shows itself with in a notebook, the one step against the flow; loaded when it is asked to."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    fitting = [i for i, name in enumerate(LAYERS) if module == name or module.startswith(name + ".")]
    return max(fitting, default=-1)


def imports(path: Path) -> Iterator[str]:
    """The simpipe modules that a file imports, names resolved to modules where they are one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("simpipe"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix("simpipe.")
                file = ROOT / full.replace(".", "/")
                is_module = file.with_suffix(".py").exists() or (file / "__init__.py").exists()
                yield full if is_module else node.module.removeprefix("simpipe").removeprefix(".")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_along_the_flow(path: Path) -> None:
    module = name_of(path)
    if module in ("__init__", "simulator.costs"):
        return
    for used in filter(None, imports(path)):
        if module == "simulator.trace" and used in SHOWN_BY:
            continue
        assert 0 <= layer(used) <= layer(module), f"{module} imports {used}, which lies further along the flow"


@pytest.mark.parametrize("path", [p for p in SOURCES if "schedules" not in p.parts], ids=name_of)
def test_only_schedules_know_a_schedules_name(path: Path) -> None:
    """No comparison with a name such as "dualpipe"; defaults and documentation may mention one."""
    from simpipe.schedules import catalogue

    names = set(catalogue())
    compared = [
        constant.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    ]
    assert not names & {value for value in compared if isinstance(value, str)}


def test_only_the_reference_engine_imports_simpy() -> None:
    users = [path.name for path in SOURCES if re.search(r"^ *import simpy$", path.read_text(), re.MULTILINE)]
    assert users == ["simpy_engine.py"]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('numpy', 'pandas', 'plotly', 'matplotlib', 'numba', 'simpy', 'scipy', 'msgspec')\n"
        "atexit.register(lambda: print('LOADED', sorted(set(heavy) & set(sys.modules))))\n"
        f"sys.argv = ['simpipe', *{arguments!r}]\n"
        "from simpipe.cli import main\nmain()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_small_runs_do_not_load_the_compiler() -> None:
    code = (
        "import sys, simpipe\n"
        "simpipe.summarize(simpipe.simulate(simpipe.program('dualpipe', ranks=8, microbatches=20)))\n"
        "print(sorted({'numba', 'pandas', 'plotly', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
