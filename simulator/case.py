"""Case: one thing to simulate, from what a command line, a file or a spreadsheet row says, and its whole result.

Costs are given by hand (`given`), or follow from a scenario: model, machine and parallel layout (`modelled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpipe import schedules
from simpipe.schedules import ClosedForm
from simpipe.simulator import bubbles
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.errors import CostsError, ScheduleError
from simpipe.simulator.graph import Engine
from simpipe.simulator.program import Program
from simpipe.simulator.summary import Summary, summarize
from simpipe.simulator.trace import Trace, simulate

LONGEST = 10
"""Bubbles that a result names with the task that ends each."""

if TYPE_CHECKING:
    from simpipe.simulator.costs.modelled import ModelledCosts
    from simpipe.simulator.efficiency import Efficiency
    from simpipe.simulator.scenario import Scenario

RANKS, MICROBATCHES = 8, 20
"""The size of a schedule given by name where nothing else says it: the worked example of the DeepSeek-V3 report."""


@dataclass(frozen=True, eq=False)
class Case:
    """A program with its costs. `schedule` is the name or file it is from."""

    schedule: str
    program: Program
    costs: Costs | ModelledCosts


@dataclass(frozen=True, eq=False)
class Figures:
    """What a simulated case comes to; efficiency where costs are modelled, a closed form where they are given."""

    summary: Summary
    critical_path: dict[str, float]
    longest_bubbles: list[dict[str, Any]]
    closed_form: ClosedForm | None
    efficiency: Efficiency | None

    def to_dict(self) -> dict[str, Any]:
        """All figures as one flat object: what `simpipe run --json` prints."""
        figures = self.summary.to_dict() | {
            "critical_path": self.critical_path,
            "longest_bubbles": self.longest_bubbles,
        }
        figures["formula"] = self.closed_form and self.closed_form._asdict()
        if self.efficiency:
            figures |= self.efficiency.to_dict()
            each = zip(figures.pop("exposed_communication_per_rank_s"), figures.pop("memory_per_rank"), strict=True)
            for rank, (exposed, memory) in zip(figures["per_rank"], each, strict=True):
                rank |= {"exposed_communication_s": exposed, "memory": memory}
        return figures


def given(schedule: str, ranks: int | None, microbatches: int | None, chunks: int | None, costs: str) -> Case:
    """A case with costs by hand: `costs` is text such as F=1,I=1 or the path of a .toml file. Raises SimpipeError."""
    name, options = schedules.parse(schedule)
    if not name.lower().endswith(".csv"):
        ranks = RANKS if ranks is None else ranks
        microbatches = MICROBATCHES if microbatches is None else microbatches
    if chunks not in (None, options.get("chunks", chunks)):
        raise ScheduleError(f"{schedule} asks for chunks={options['chunks']}, but --chunks for {chunks}")
    chunks = options.pop("chunks", chunks)
    program = schedules.program(name, ranks, microbatches, chunks, **options)
    ending = Path(costs).suffix.lower()
    if ending and ending[1:].isalpha() and ending != ".toml":
        raise CostsError(f"costs {costs!r} is no .toml file; measured tables (.csv, .parquet) are for `simpipe run`")
    return Case(name, program, Costs.read(costs) if ending == ".toml" else Costs.parse(costs))


def modelled(
    scenario: Scenario,
    program: Callable[..., Program] = schedules.program,
    share: Callable[[ModelledCosts], ModelledCosts] = lambda costs: costs,
) -> Case:
    """The case that a scenario describes. Raises SimpipeError.

    program: makes its order, or remembers it. share: lets its costs know what other costs found.
    """
    from simpipe.simulator import balance
    from simpipe.simulator.costs.modelled import ModelledCosts

    loaded = scenario.load()
    spec, parallel = loaded.schedule, loaded.parallel
    order = program(spec.name, parallel.ranks, parallel.microbatches, spec.chunks, **spec.options)
    speeds = tuple(scenario.stragglers.get(rank, 1.0) for rank in range(parallel.ranks))
    costs = ModelledCosts(loaded.model, loaded.cluster, parallel, speeds, scenario.lengths, loaded.stack)
    return Case(spec.name, order, balance.balanced(share(costs), order))


def simulated(case: Case, engine: Engine = "auto") -> tuple[Trace, Figures]:
    """Run a case and find its figures."""
    trace = simulate(case.program, case.costs, engine)
    return trace, figures_of(trace, case)


def figures_of(trace: Trace, case: Case | None = None) -> Figures:
    """The figures of a trace; those that follow from costs only where its case is known."""
    closed = means = None
    if case and isinstance(case.costs, Costs):
        closed = schedules.closed_form(case.schedule, case.program, case.costs)
    if case and not isinstance(case.costs, Costs):
        from simpipe.simulator.efficiency import efficiency

        means = efficiency(trace, case.costs)
    longest = bubbles.longest(trace, LONGEST)
    return Figures(summarize(trace), trace.critical_seconds, longest, closed, means)
