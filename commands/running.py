"""run and compare: simulate steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simpipe.commands.options import (
    Chunks,
    CostsText,
    Cp,
    Draws,
    Engine,
    Ep,
    File,
    GlobalBatch,
    Gpus,
    Hardware,
    Json,
    Microbatches,
    MicrobatchSize,
    ModelName,
    Outs,
    Precision,
    Predict,
    Ranks,
    Recompute,
    Schedule,
    Schedules,
    Seed,
    Sequence,
    Sets,
    Step,
    Tp,
    Width,
    Worker,
    Zero,
    check_draws,
    engine_of,
    modelled_flags,
    overlaps,
    print_json,
    refuse_flags,
    scenario_of,
    words,
)
from simpipe.simulator.errors import CostsError, ParallelError, ScheduleError, SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.case import Case
    from simpipe.simulator.trace import Trace


def run(
    scenario: File = None,
    schedule: Schedule = None,
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    costs: CostsText = None,
    model: ModelName = None,
    hardware: Hardware = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    ep: Ep = None,
    zero: Zero = None,
    recompute: Recompute = None,
    precision: Precision = None,
    set: Sets = None,
    step: Step = None,
    worker: Worker = None,
    predict: Predict = None,
    draws: Draws = None,
    seed: Seed = 0,
    engine: Engine = "auto",
    json: Json = False,
    out: Outs = None,
    width: Width = None,
) -> None:
    """Simulate one step: its timeline, its bubbles and their causes, its memory.

    Costs are given by hand (--costs), or follow from a model on a machine (--model and the options below it, or a
    scenario file). A table of measured operations is replayed, or its later steps predicted (--predict).
    """
    flags = modelled_flags(locals())
    measured = Path(costs or "").suffix.lower() in (".parquet", ".csv")
    if measured:
        modelled = flags | {"scenario": scenario, "set": set, "draws": draws, "ranks": None, "chunks": None}
        stray = [name for name, value in modelled.items() if value is not None]
        if stray:
            name = "a scenario" if stray[0] == "scenario" else f"--{stray[0].replace('_', '-')}"
            raise SimpipeError(f"{name} is for modelled steps; --costs {costs} is replayed as it was measured")
    name = "dualpipe" if schedule is None else schedule
    if predict is not None:
        if not measured or step is not None or worker is not None or out or width is not None:
            raise SimpipeError("--predict takes a measured table as --costs, and no --step, --worker, --out or --width")
        prediction(name, ranks, microbatches, chunks, str(costs), predict, seed, engine, json)
        return
    if measured:
        replay(name, ranks, microbatches, chunks, str(costs), step, worker, engine, json, out or [], width)
        return
    if step is not None or worker is not None:
        raise SimpipeError("--step and --worker choose from a table of measured operations; give one with --costs")
    from simpipe.simulator import case as cases
    from simpipe.simulator import views
    from simpipe.simulator.files import check_apart
    from simpipe.simulator.views import console

    views.check(out or [], width)
    check_apart(out or [], filter(None, (scenario, model, schedule, costs)))
    check_draws(draws)
    if scenario or model:
        case = cases.modelled(scenario_of(scenario, schedule, costs, microbatches, flags, set or []))
    else:
        refuse_flags(flags | {"draws": draws}, set or [])
        case = cases.given(name, ranks, microbatches, chunks, costs or "")
    trace, figures = cases.simulated(case, engine_of(engine))
    sure = uncertainty(trace, case, draws, seed)
    program = case.program
    if not json and not out:
        out = [f"{program.name}-{program.ranks}x{program.microbatches}.html"]
    written = [path for target in out or [] for path in views.write(trace, target, width)]
    if json:
        print_json(figures.to_dict() | sure)
    else:
        print("\n".join([*console.run(figures), *console.uncertainty(sure), *(f"wrote {path}" for path in written)]))


def uncertainty(trace: Trace, case: Case, draws: int | None, seed: int) -> dict[str, Any]:
    """How far off a modelled step may be, and which curves are used beyond their fits; nothing of given costs."""
    from simpipe.simulator.costs.given import Costs

    if isinstance(case.costs, Costs):
        return {}
    from simpipe.simulator import uncertainty

    count = uncertainty.default_draws(trace) if draws is None else draws
    found = uncertainty.interval(trace, case.costs, count, seed)
    return {
        "fitted": uncertainty.is_known(case.costs),
        "step_time_interval_s": found and found._asdict(),
        "extrapolated": uncertainty.extrapolated(trace, case.costs),
    }


def _first(given: int | None, known: int) -> int:
    """What an option gives, 0 too, or else what the file says."""
    return known if given is None else given


def replay(
    schedule: str, ranks: int | None, microbatches: int | None, chunks: int | None,
    table: str, step: int | None, worker: int | None, engine: str, json: bool, out: list[str], width: float | None,
) -> None:  # fmt: skip
    """`run` over measured operations: every step and worker pipeline of the table, or the chosen ones."""
    from simpipe.simulator import case as cases
    from simpipe.simulator import comparison, recorded, views
    from simpipe.simulator import replay as replays
    from simpipe.simulator.costs import measured
    from simpipe.simulator.files import check_apart
    from simpipe.simulator.trace import simulate

    views.check(out, width)
    check_apart(out, (table, schedule))
    if out and (step is None or worker is None):
        raise SimpipeError("--out draws one run of a measured table; choose it with --step and --worker")
    operations = measured.read(table)
    program = cases.given(
        schedule, _first(ranks, operations.stages), _first(microbatches, operations.microbatches), chunks, ""
    ).program
    steps, workers = (None if chosen is None else [chosen] for chosen in (step, worker))
    result = replays.replay(program, operations, steps, workers, engine_of(engine))
    written: list[Path] = []
    if step is not None and worker is not None:
        trace = simulate(program, operations.costs(step, worker), engine_of(engine))
        for target in out:
            if target.lower().endswith(".html"):  # the page shows the measured run beside its replay
                both = {
                    f"measured (step {step}, dp_rank {worker})": recorded.of_operations(
                        operations, step, worker, program
                    ).trace,
                    "simulated": trace,
                }
                entries = [comparison.Entry(label, cases.figures_of(run)) for label, run in both.items()]
                views.write_comparison([entry.row(1) for entry in entries], both, target)
                written.append(Path(target))
            else:
                written += views.write(trace, target, width)
    if json:
        print_json(result.to_dict())
    else:
        print("\n".join(replays.describe(result) + [f"wrote {path}" for path in written]))


def prediction(
    schedule: str, ranks: int | None, microbatches: int | None, chunks: int | None,
    table: str, later: str, seed: int, engine: str, json: bool,
) -> None:  # fmt: skip
    """`run` over measured operations that predicts their second half, or a later table, from those before."""
    from simpipe.simulator import case as cases
    from simpipe.simulator import prediction
    from simpipe.simulator.costs import measured

    operations = measured.read(table)
    predicted = None if later == "second-half" else measured.read(later)
    program = cases.given(
        schedule, _first(ranks, operations.stages), _first(microbatches, operations.microbatches), chunks, ""
    ).program
    found = prediction.predict(program, operations, predicted, seed, engine_of(engine))
    print_json(found.to_dict()) if json else print("\n".join(prediction.describe(found)))


def compare(
    scenario: File = None,
    schedule: Schedules = None,
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    costs: CostsText = None,
    model: ModelName = None,
    hardware: Hardware = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    ep: Ep = None,
    zero: Zero = None,
    recompute: Recompute = None,
    precision: Precision = None,
    set: Sets = None,
    trace: Annotated[
        list[str] | None,
        words(
            "A recorded run, as for `import-trace`, to lay beside; alone, beside its own replay. Repeatable.", "FILE"
        ),
    ] = None,
    engine: Engine = "auto",
    json: Json = False,
    out: Annotated[
        list[str] | None, words("Where to write, as .html, .csv, .png, .svg or .pdf; repeatable.", "PATH")
    ] = None,
    width: Width = None,
) -> None:
    """Compare schedules on one basis: equal ranks, micro-batches and layers; or equal model, GPUs and global batch.

    Modelled steps are run twice, with slots other than F&B as chains and overlapped within, unless --set overlap=...
    says which.
    """
    flags = modelled_flags(locals())
    from simpipe import schedules
    from simpipe.simulator import case as cases
    from simpipe.simulator import comparison, recorded, views
    from simpipe.simulator.files import check_apart
    from simpipe.simulator.views import console

    views.check_comparison(out or [], width)
    check_apart(out or [], filter(None, (scenario, model, costs, *(schedule or []), *recorded.files_of(trace or []))))
    wanted: dict[str, Callable[[], Case]] = {}
    traces: dict[str, Trace] = {}
    for path in trace or []:
        found = recorded.read([path])
        traces[Path(path).name] = found.trace
        measured = found.trace.program
        ranks, microbatches = _first(ranks, measured.ranks), _first(microbatches, measured.microbatches)
        if not schedule:
            traces[f"{Path(path).name}, replayed"] = found.replayed()
    for text in schedule or ([] if trace else schedules.catalogue()):
        if not (scenario or model):
            refuse_flags(flags, set or [])
            wanted[text] = partial(cases.given, text, ranks, microbatches, None, costs or "")
            continue
        for suffix, overlap in overlaps(set or []):
            build = partial(scenario_of, scenario, text, costs, microbatches, flags, [*(set or []), *overlap])
            wanted[text + suffix] = lambda build=build: cases.modelled(build())  # type: ignore[misc]
    entries = [comparison.Entry(name, cases.figures_of(each)) for name, each in traces.items()]
    refused = []
    for label, build_case in wanted.items():
        try:
            simulated, figures = cases.simulated(build_case(), engine_of(engine))
        except (ScheduleError, CostsError, ParallelError) as error:
            if schedule:
                raise type(error)(f"{label}: {error}") from None
            refused.append(f"{label}: {error}")
            continue
        entries.append(comparison.Entry(label, figures))
        if out:  # many large traces would not fit into memory together
            traces[label] = simulated
    if not entries:
        raise SimpipeError(f"there is nothing to compare: {refused[0]}")
    ordered, rows = comparison.rank(entries)
    for path in out or []:
        views.write_comparison(rows, {entry.label: traces[entry.label] for entry in ordered}, path, width)
    if json:
        print_json({"schedules": rows, "refused": refused})
    else:
        print("\n".join([*console.comparison(rows, refused), *(f"wrote {path}" for path in out or [])]))
