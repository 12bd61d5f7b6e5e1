"""Chrome trace for Perfetto (https://ui.perfetto.dev): ranks as processes, streams as threads.

Times are microseconds, rounded to the nanosecond that Perfetto keeps. An overlapped F&B is two slices: they
do not nest, so its B has a thread of its own. A message is a flow from the slice that makes it to the one that
takes it. Counters of each rank: live activations, and the bytes/s on each of its links. Bubbles are slices on a thread
of their own, named by their main cause, and how many ranks idle is a counter of the run as a whole.

Where slots consist of operations, each stream is a thread of its operations, one that occupies several on its first;
slots are slices on a thread of their own, an F&B as one, and flows go from slot to slot.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from simpipe.simulator import bubbles, links
from simpipe.simulator.graph import STREAMS, WORDS
from simpipe.simulator.kernels import Ints
from simpipe.simulator.program import Kind
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import detail, lanes, palette

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".json", ".json.gz")

COMPUTE, PAIRED = 0, 1
"""Threads of a rank: its compute stream, and the B of its overlapped slots."""

BUBBLES = 99
"""A rank's thread of bubbles, below its streams."""

SLOTS, FIRST_STREAM = 0, 1
"""Threads of a rank whose slots consist of operations: its slots, and from there on the streams in their order."""

CHUNK = 50_000
"""Events turned into text at a time."""


def write(trace: Trace, path: Path) -> None:
    """Write the events of a run as .json or .json.gz."""
    with _text(path) as file:
        head = json.dumps(lanes.title(trace)).replace("<", "\\u003c")
        file.write(f'{{"displayTimeUnit":"ms","otherData":{{"run":{head}}},"traceEvents":[\n')
        file.write(",\n".join(_names(trace)))
        for lines in _events(trace):
            file.write(",\n" + ",\n".join(lines))
        file.write("\n]}\n")


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A text file, compressed without a date or name where the ending asks for it."""
    with open(path, "wb") as raw:
        if path.name.lower().endswith(".gz"):
            with (
                gzip.GzipFile("", "wb", 5, raw, mtime=0) as packed,
                io.TextIOWrapper(packed, "utf-8", newline="\n") as file,
            ):
                yield file
        else:
            with io.TextIOWrapper(raw, "utf-8", newline="\n") as file:
                yield file


def _names(trace: Trace) -> Iterator[str]:
    """Names and order of processes and threads."""
    threads = _threads(trace)
    for rank in range(trace.program.ranks):
        yield _meta(rank, None, "process_name", {"name": f"Rank {rank}"})
        yield _meta(rank, None, "process_sort_index", {"sort_index": rank})
        for thread, name in threads.items():
            yield _meta(rank, thread, "thread_name", {"name": name})
            yield _meta(rank, thread, "thread_sort_index", {"sort_index": thread})
    yield _meta(trace.program.ranks, None, "process_name", {"name": "all ranks"})
    yield _meta(trace.program.ranks, None, "process_sort_index", {"sort_index": -1})


def _threads(trace: Trace) -> dict[int, str]:
    if detail.modelled(trace):
        streams = np.unique(trace.graph.stream_name).tolist()
        named = {FIRST_STREAM + stream: STREAMS[stream] for stream in streams}
        return {SLOTS: "slots"} | named | {BUBBLES: "bubbles"}
    paired = bool((np.diff(trace.program.slot_start) == 2).any())
    return {COMPUTE: "compute"} | ({PAIRED: "compute, B of F&B"} if paired else {}) | {BUBBLES: "bubbles"}


def _meta(rank: int, thread: int | None, name: str, args: dict[str, Any]) -> str:
    where = {"ph": "M", "pid": rank} | ({} if thread is None else {"tid": thread})
    return json.dumps(where | {"name": name, "args": args}, separators=(",", ":"))


def _events(trace: Trace) -> Iterator[list[str]]:
    """Slices, flows and counters, a chunk of lines at a time."""
    if detail.modelled(trace):
        yield from _chunks(_slots(trace))
        yield from _chunks(_operations(trace))
    else:
        drawn = lanes.blocks(trace)
        second = (drawn["paired"] & (drawn["kind"] == "B")).to_numpy()
        drawn["thread"] = np.where(second, PAIRED, COMPUTE)
        yield from _chunks(_slices(drawn))
    yield from _chunks(_flows(trace))
    yield from _chunks(_bubbles(trace))
    yield from _chunks(_link_use(trace))
    steps, unit = lanes.memory(trace)
    columns = zip(steps.rank.tolist(), _micro(steps.time), steps.value.tolist(), strict=True)
    name = f'"name":"live activations ({unit})"'
    yield from _chunks(
        f'{{"ph":"C","pid":{rank},"ts":{time},{name},"args":{{"live":{value}}}}}' for rank, time, value in columns
    )


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    lines = iter(lines)
    while chunk := list(islice(lines, CHUNK)):
        yield chunk


def _slices(drawn: pd.DataFrame) -> Iterator[str]:
    start, end = _nano(drawn["start"]), _nano(drawn["end"])
    kind = drawn["kind"].astype(str)
    named = drawn["stage"].astype(str) + kind + drawn["microbatch"].astype(str)
    texts = (named.where(drawn["microbatch"] >= 0, kind).tolist(), kind.tolist())
    times = ((start / 1e3).tolist(), ((end - start) / 1e3).tolist())
    others = (drawn[column].tolist() for column in ("rank", "thread", "stage", "microbatch", "slot", "slack"))
    columns = zip(*texts, *times, *others, strict=True)
    for name, category, time, length, rank, thread, stage, microbatch, slot, slack in columns:
        yield (
            f'{{"ph":"X","pid":{rank},"tid":{thread},"ts":{time},"dur":{length},"name":"{name}","cat":"{category}",'
            f'"args":{{"stage":{stage},"microbatch":{microbatch},"slot":{slot},"slack_s":{slack}}}}}'
        )


def _slots(trace: Trace) -> Iterator[str]:
    """A slice a slot, an optimizer step too: what an F&B runs side by side is one."""
    rows = trace.slots()
    start, end = _nano(trace.slot_start), _nano(trace.slot_end)
    first = rows.drop_duplicates("slot")
    paired = first["paired"].to_numpy()
    kinds = np.where(paired, "F&B", first["kind"].astype(str)).tolist()
    named = [detail.name(trace, slot) if slot < trace.program.slots else "optimizer" for slot in first["slot"]]
    columns = (first["rank"].tolist(), (start / 1e3).tolist(), ((end - start) / 1e3).tolist(), first["slack"].tolist())
    for slot, (name, kind, rank, time, length, slack) in enumerate(zip(named, kinds, *columns, strict=True)):
        yield (
            f'{{"ph":"X","pid":{rank},"tid":{SLOTS},"ts":{time},"dur":{length},"name":"{name}","cat":"{kind}",'
            f'"args":{{"slot":{slot},"slack_s":{slack}}}}}'
        )


def _operations(trace: Trace) -> Iterator[str]:
    """A slice an operation, synchronisation or optimizer step, on its stream's thread."""
    rows = trace.to_frame()
    rows = rows[(rows["slot"] >= 0) | (rows["kind"] == "sync")]
    start, end = _nano(rows["start"]), _nano(rows["end"])
    named = rows["operation"].astype(str)
    names = named.where(named != "", rows["kind"].astype(str)).tolist()
    thread = FIRST_STREAM + rows["stream"].cat.codes
    every = [trace.program.action_text(action) for action in range(len(trace.program.kind))]
    actions = [every[action] if action >= 0 else "" for action in trace.graph.action[rows["task"]].tolist()]
    columns = zip(
        rows["rank"].tolist(), thread.tolist(), (start / 1e3).tolist(), ((end - start) / 1e3).tolist(), names,
        rows["kind"].tolist(), actions, rows["slot"].tolist(), rows["slack"].round(9).tolist(), strict=True,
    )  # fmt: skip
    for rank, stream, time, length, name, kind, action, slot, slack in columns:
        yield (
            f'{{"ph":"X","pid":{rank},"tid":{stream},"ts":{time},"dur":{length},"name":"{name}","cat":"{kind}",'
            f'"args":{{"action":"{action}","slot":{slot},"slack_s":{slack}}}}}'
        )


def _flows(trace: Trace) -> Iterator[str]:
    """An arrow a message: from the last nanosecond of the slice that makes it to the start of its taker's."""
    graph, program = trace.graph, trace.program
    message = np.flatnonzero(graph.message)
    maker, taker = graph.action[message], graph.partner[message]
    made = program.action_slot[maker]
    began, ended = _nano(trace.slot_start[made]), _nano(trace.slot_end[made])
    left = (np.maximum(began, ended - 1) / 1e3).tolist()
    taken = _micro(trace.slot_start[program.action_slot[taker]])
    ends = (program.action_rank[maker], _thread(trace, maker), program.action_rank[taker], _thread(trace, taker))
    words = np.array(WORDS)[graph.word[message]]
    columns = zip(message.tolist(), words.tolist(), left, taken, *(end.tolist() for end in ends), strict=True)
    for task, word, departs, arrives, sender, thread, receiver, other in columns:
        same = f'"id":{task},"name":"{word}","cat":"message"}}'
        yield f'{{"ph":"s","pid":{sender},"tid":{thread},"ts":{departs},{same}'
        yield f'{{"ph":"f","bp":"e","pid":{receiver},"tid":{other},"ts":{arrives},{same}'


def _bubbles(trace: Trace) -> Iterator[str]:
    """A slice a bubble, by its main cause and with the task that ends it; and how many ranks idle at each moment."""
    found = bubbles.find(trace)
    start, end = _nano(found.start), _nano(found.end)
    words = [palette.CAUSE_WORDS[cause] for cause in bubbles.CAUSES]
    main = found.causes.argmax(axis=1).tolist()
    times = ((start / 1e3).tolist(), ((end - start) / 1e3).tolist())
    columns = (found.rank.tolist(), main, *times, found.causes.tolist(), found.ended_by.tolist())
    for rank, cause, time, length, seconds, task in zip(*columns, strict=True):
        args: dict[str, Any] = {f"{words[c]} (s)": part for c, part in enumerate(seconds) if part > 0}
        if task >= 0:
            args["ended by"] = trace.graph.describe(task)
        yield (
            f'{{"ph":"X","pid":{rank},"tid":{BUBBLES},"ts":{time},"dur":{length},"name":"{words[cause]}",'
            f'"cat":"bubble","args":{json.dumps(args)}}}'
        )
    times_of = np.concatenate([start, end])
    when, which = np.unique(times_of, return_inverse=True)
    change = np.bincount(which, np.repeat([1.0, -1.0], len(start)), len(when))
    for time, idle in zip((when / 1e3).tolist(), np.cumsum(change).astype(int).tolist(), strict=True):
        yield f'{{"ph":"C","pid":{trace.program.ranks},"ts":{time},"name":"idle ranks","args":{{"ranks":{idle}}}}}'


def _link_use(trace: Trace) -> Iterator[str]:
    found, names = links.use(trace), trace.graph.link_names
    columns = (found.link.tolist(), _micro(found.time), (found.rate / 1e9).round(6).tolist())
    for link, time, rate in zip(*columns, strict=True):
        rank, kind = divmod(link, len(names))
        name = f"{names[kind]} (GB/s)"
        yield f'{{"ph":"C","pid":{rank},"ts":{time},"name":"{name}","args":{{"rate":{rate}}}}}'


def _thread(trace: Trace, actions: Ints) -> Ints:
    """The thread that shows each of some actions, or its slot."""
    program = trace.program
    if detail.modelled(trace):
        return np.full(len(actions), SLOTS)
    paired = np.diff(program.slot_start)[program.action_slot[actions]] == 2
    return np.where(paired & (program.kind[actions] == Kind.B), PAIRED, COMPUTE)


def _nano(seconds: Any) -> Ints:
    return np.asarray(np.rint(np.asarray(seconds) * 1e9))


def _micro(seconds: Any) -> list[float]:
    times: list[float] = (_nano(seconds) / 1e3).tolist()
    return times
