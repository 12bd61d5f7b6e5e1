"""One slot of a modelled step, as columns: its operations on a lane for each stream, and the legs they make up.

A leg is a run of operations of one family and pass: the blocks of DeepSeek-V3's Figure 4, such as attention F.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from simpipe.simulator.graph import INTERVAL, STREAMS
from simpipe.simulator.kernels import Ints
from simpipe.simulator.plan import END, LAUNCHES
from simpipe.simulator.program import KINDS
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import lanes

if TYPE_CHECKING:
    import pandas as pd

ORDER = ("compute", "expert-parallel", "tensor-parallel", "weight-gradient")
"""Lanes from the top; other streams follow."""

HIDDEN = (END, LAUNCHES)
"""Operations that no view shows."""

FAMILIES = {
    "attention": "attention",
    "mlp": "MLP",
    "shared": "MLP",
    "experts": "MLP",
    "dispatch": "dispatch",
    "combine": "combine",
}
"""What an operation is, by the first word of its name; the rest is `other`."""

OTHER = "other"

ATTENTION_NORMS = ("norms.attention", "norms.q", "norms.k", "norms.kv")

WEIGHTLESS = ("norms.", "recompute."), (".activation", ".core", ".rotary", "permute", "loss")
"""Beginnings and endings of the names of operations that run once a layer in a backward: they have no weights."""

WEIGHTS = "weight-gradient"

ONE = 0.95
"""Share of a leg from which on one operation stands for it, such as a combine for itself and its cast."""

HEAD = 0.45
"""Share of a lane's height that names a leg, above its operations."""


def modelled(trace: Trace) -> bool:
    """Whether slots consist of operations."""
    graph = trace.graph
    return bool((graph.operation[graph.slot >= 0] > 0).any())


def choose(trace: Trace) -> int | None:
    """The median F&B slot of the middle rank, or of its longest kind of slot; None where slots have no operations."""
    if not modelled(trace):
        return None
    by_kind = _by_kind(trace, trace.program.ranks // 2)
    lasts = trace.slot_end - trace.slot_start
    return _median(trace, by_kind.get("F&B") or max(by_kind.values(), key=lambda slots: lasts[_median(trace, slots)]))


def _by_kind(trace: Trace, rank: int) -> dict[str, list[int]]:
    """The slots of a rank by what they run: F&B, or one action of a kind."""
    found: dict[str, list[int]] = {}
    for slot in range(*trace.program.rank_start[rank : rank + 2].tolist()):
        found.setdefault(_kind(trace, slot), []).append(slot)
    return found


def _median(trace: Trace, slots: list[int]) -> int:
    lasts = trace.slot_end - trace.slot_start
    return sorted(slots, key=lambda slot: float(lasts[slot]))[len(slots) // 2]


def _kind(trace: Trace, slot: int) -> str:
    actions = _actions(trace, slot)
    return "F&B" if len(actions) == 2 else KINDS[trace.program.kind[actions[0]]].name


def _actions(trace: Trace, slot: int) -> range:
    return range(*trace.program.slot_start[slot : slot + 2].tolist())


def name(trace: Trace, slot: int) -> str:
    """A slot's actions: `7F94 & 8B26`."""
    return " & ".join(map(trace.program.action_text, _actions(trace, slot)))


def operations(trace: Trace, slot: int) -> pd.DataFrame:
    """A row per operation of a slot and stream that it occupies, lane by lane, in the order it ran.

    Columns: task, operation, action (`7F94`), family, pass (F, I or W; where a backward is one action, told apart by
    name), stream, lane, start and end in seconds since the slot's start, leg, whole (the leg is one operation but
    for trifles), y and height (the whole lane then, else below the leg's name), and text to write in it.
    """
    import pandas as pd

    graph, program = trace.graph, trace.program
    tasks = graph.slot_tasks.items[slice(*graph.slot_tasks.start[slot : slot + 2])]
    tasks = tasks[[graph.operations[code] not in HIDDEN for code in graph.operation[tasks]]]
    occupied = [graph.streams.items[slice(*graph.streams.start[task : task + 2])] for task in tasks]
    each = np.repeat(tasks, [len(streams) for streams in occupied])
    stream = [STREAMS[code] for code in graph.stream_name[np.concatenate(occupied)]]
    words = [graph.operations[code] for code in graph.operation[each]]
    frame = pd.DataFrame(
        {
            "task": each,
            "operation": words,
            "action": [program.action_text(action) for action in graph.action[each].tolist()],
            "family": [family(word) for word in words],
            "kind": [KINDS[kind].name for kind in program.kind[graph.action[each]]],
            "stream": stream,
            "lane": _lanes(stream),
            "start": trace.start[each] - trace.slot_start[slot],
            "end": trace.end[each] - trace.slot_start[slot],
        }
    )
    frame["pass"] = _passes(frame)
    frame = frame.sort_values(["lane", "start", "task"], ignore_index=True)
    frame["leg"] = _numbered_legs(frame)
    seconds = frame["end"] - frame["start"]
    by_leg = seconds.groupby(frame["leg"])
    longest = by_leg.transform("max")
    frame["whole"] = longest >= ONE * by_leg.transform("sum")
    frame["y"] = frame["lane"] + np.where(frame["whole"], 0.0, HEAD * lanes.LANE / 2)
    frame["height"] = np.where(frame["whole"], lanes.LANE, (1 - HEAD) * lanes.LANE)
    names = _leg_names(frame).str.replace(" ", "\n")
    frame["text"] = np.where(frame["whole"] & (seconds == longest), names, frame["operation"])
    return frame.drop(columns="kind")


def idle(trace: Trace, slot: int) -> float:
    """Seconds of a slot in which its compute stream does nothing: communication that computation does not hide."""
    drawn = operations(trace, slot)
    compute = drawn[drawn["stream"] == "compute"]
    lasts = float(trace.slot_end[slot] - trace.slot_start[slot])
    return max(0.0, lasts - float((compute["end"] - compute["start"]).sum() + trace.launch_bound[slot]))


def sentence(trace: Trace, slot: int) -> str:
    """Which slot this is of its kind on its rank, how long it lasts, and how much of it nothing is computed."""
    rank = int(trace.program.slot_rank[slot])
    kind = _kind(trace, slot)
    alike = _by_kind(trace, rank)[kind]
    which = "the median" if slot == _median(trace, alike) else "one"
    start, lasts = float(trace.slot_start[slot]), float(trace.slot_end[slot] - trace.slot_start[slot])
    exposed = idle(trace, slot)
    return (
        f"{name(trace, slot)}, {which} of the {len(alike)} {kind} slots of rank {rank}, starts at "
        f"{lanes.number(start)} s and lasts {1e3 * lasts:.4g} ms. Communication that computation does not hide leaves "
        f"its compute stream idle for {1e3 * exposed:.4g} ms of it ({exposed / lasts if lasts else 0.0:.1%})."
    )


def legs(drawn: pd.DataFrame) -> pd.DataFrame:
    """The legs of more than one operation: family, pass, start, end, text, and where each lies above them."""
    found = drawn.groupby("leg").agg(
        **{column: (column, "first") for column in ("stream", "lane", "family", "pass", "start")},
        end=("end", "last"),
        whole=("whole", "first"),
    )
    found = found[~found["whole"]].reset_index(drop=True)
    found["y"] = found["lane"] - (1 - HEAD) * lanes.LANE / 2
    found["height"] = HEAD * lanes.LANE
    found["text"] = _leg_names(found)
    return found


def _leg_names(frame: pd.DataFrame) -> pd.Series[str]:
    """Short enough to stand in a leg: `attn F`, `MLP I`."""
    return frame["family"].str.replace("attention", "attn") + " " + frame["pass"]


def family(operation: str) -> str:
    """What an operation is part of."""
    plain = operation.removeprefix("recompute.")
    return "attention" if plain in ATTENTION_NORMS else FAMILIES.get(plain.split(".")[0], OTHER)


def _passes(frame: pd.DataFrame) -> list[str]:
    """F, I or W of each operation, rows in task order.

    A trace does not say which operations of a B are for weights. On the compute stream an operation that has weights
    runs twice a layer, first for its input, then for them; an embedding runs for them only.
    """
    apart = set(frame["task"][frame["stream"] == WEIGHTS])
    runs: Counter[str] = Counter()
    found = []
    for task, kind, operation, stream in frame[["task", "kind", "operation", "stream"]].itertuples(index=False):
        if kind != "B":
            found.append(kind)
        elif task in apart or operation.startswith("embedding."):
            found.append("W")
        elif stream == "compute" and not operation.startswith(WEIGHTLESS[0]) and not operation.endswith(WEIGHTLESS[1]):
            found.append("IW"[runs[operation] % 2])
            runs[operation] += 1
        else:
            found.append("I")
    return found


def _lanes(streams: list[str]) -> Ints:
    """The lane of each stream, without gaps."""
    order = dict.fromkeys((*ORDER, *STREAMS))
    used = [stream for stream in order if stream in streams]
    return np.array([used.index(stream) for stream in streams], np.int64)


def _numbered_legs(frame: pd.DataFrame) -> Ints:
    """The number of each operation's leg: one ends where lane, family or pass change, or the stream idles."""
    follows = (frame["start"] - frame["end"].shift()).abs() <= INTERVAL * frame["end"].max()
    for column in ("lane", "family", "pass"):
        follows &= frame[column] == frame[column].shift()
    return np.cumsum(~follows.to_numpy())
