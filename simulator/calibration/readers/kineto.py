"""PyTorch profiler (Kineto) traces, .json or .json.gz.

Old traces carry absolute microseconds; new ones relative ones beside `baseTimeNanoseconds`, which only moves the
origin. `pid` and `tid` may be text. Kernels carry their stream, grid and the correlation of the call that launched
them; named ranges are the launching threads'. Only the fields below are decoded, whatever else an event holds.
"""

from __future__ import annotations

import gc
import math
import re
from pathlib import Path
from typing import Any

from simpipe.simulator.calibration import trace
from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, library

FORMAT = "a PyTorch profiler trace (.json, .json.gz)"

LAUNCHES = ("cuda_runtime", "cuda_driver", "hip_runtime")


def recognises(head: bytes) -> bool:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{") and re.search(rb'"(traceEvents|schemaVersion|deviceProperties)"', head) is not None


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    document = _decode(path, data)
    data.clear()  # events hold what they need
    launches: dict[int, float] = {}
    operators: dict[int, Any] = {}
    ranges, kernels = [], []
    for event in document.traceEvents:
        kind = event.cat
        if kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            kernels.append(event)
        elif kind in LAUNCHES and event.args and isinstance(event.args.correlation, int):
            launches[event.args.correlation] = _number(path, event, "ts") * 1e-6
        elif kind == "user_annotation":
            start = _number(path, event, "ts") * 1e-6
            ranges.append(trace.Range(event.name, start, start + _number(path, event, "dur") * 1e-6))
        elif kind == "cpu_op" and event.args and event.args.dims and isinstance(event.args.external, int):
            operators[event.args.external] = event
    properties = document.deviceProperties
    del document
    if not kernels:
        raise TimingsError(f"{path}: holds no kernel of a GPU; record with ProfilerActivity.CUDA")
    origin = min(_number(path, kernel, "ts") for kernel in kernels)
    ranges = [trace.Range(name, start - origin * 1e-6, end - origin * 1e-6) for name, start, end in ranges]
    events = [_event(path, kernel, origin, launches, operators) for kernel in kernels]
    device = kernels[0].args.device if kernels[0].args else 0
    sms, gpu = _gpu(path, properties, device)
    return trace.timings(trace.of(events, ranges, classes, path.name, sms, gpu), events)


def ranges(path: Path, data: bytearray) -> tuple[int | None, list[tuple[str, int, int]]]:
    """The rank that a trace says it is of, and its named ranges, (name, start, end) in whole nanoseconds of the clock.

    As they ran on the GPU where the trace has them there, on the stream with most of them; else as they were launched.
    """
    document = _decode(path, data)
    data.clear()
    base = document.baseTimeNanoseconds
    base = base if isinstance(base, int) and not isinstance(base, bool) and abs(base) < 2**63 else 0
    found: dict[str, list[tuple[str, int, int]]] = {}
    for event in document.traceEvents:
        if event.cat in ("user_annotation", "gpu_user_annotation") and event.ts is not None:
            start = base + round(_number(path, event, "ts") * 1e3)
            stream = f"{event.cat} {event.tid}" if event.cat == "gpu_user_annotation" else ""
            found.setdefault(stream, []).append((event.name, start, start + round(_number(path, event, "dur") * 1e3)))
    rank = document.distributedInfo.get("rank") if isinstance(document.distributedInfo, dict) else None
    on_gpu = [stream for stream in found if stream]
    chosen = max(on_gpu, key=lambda stream: sum(end - start for _, start, end in found[stream])) if on_gpu else ""
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else None, found.get(chosen, [])


def _decode(path: Path, data: bytearray) -> Any:
    msgspec = library("msgspec")
    fields = {"correlation": "correlation", "external": "External id", "stream": "stream", "grid": "grid"}
    fields |= {"device": "device", "dims": "Input Dims", "types": "Input type"}
    args = msgspec.defstruct("Args", [(name, Any, None) for name in fields], rename=fields, gc=False, module=__name__)
    event: Any = msgspec.defstruct(
        "Event",
        [
            ("name", str, ""),
            ("cat", str | None, None),
            ("ts", Any, None),
            ("dur", Any, None),
            ("tid", Any, None),
            ("args", args | None, None),
        ],
        gc=False,
        module=__name__,
    )
    document: Any = msgspec.defstruct(
        "Document",
        [
            ("traceEvents", list[event]),
            ("deviceProperties", Any, None),
            ("distributedInfo", Any, None),
            ("baseTimeNanoseconds", Any, None),
        ],
    )
    gc.disable()
    try:
        return msgspec.json.decode(data, type=document)
    except msgspec.ValidationError as error:
        raise TimingsError(f"{path}: is no sound trace: {error}") from None
    except msgspec.DecodeError as error:
        raise TimingsError(f"{path}: is truncated or no JSON: {error}") from None
    except RecursionError:
        raise TimingsError(f"{path}: is nested deeper than any trace") from None
    finally:
        gc.enable()


def _number(path: Path, event: Any, name: str) -> float:
    """A time of an event in microseconds: finite, and a duration not negative."""
    value = getattr(event, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e19:
        raise TimingsError(
            f"{path}: {name} of event {event.name[:60]!r} is a number of microseconds, not {value!r:.60}"
        )
    if name == "dur" and value < 0:
        raise TimingsError(f"{path}: dur of event {event.name[:60]!r} is 0 or more, not {value}")
    return value


def _event(
    path: Path, kernel: Any, origin: float, launches: dict[int, float], operators: dict[int, Any]
) -> trace.Event:
    args = kernel.args
    start = (_number(path, kernel, "ts") - origin) * 1e-6
    seconds = _number(path, kernel, "dur") * 1e-6
    grid = args.grid if args and isinstance(args.grid, list) else []
    if not all(isinstance(size, int) and 0 <= size < 2**31 for size in grid):
        raise TimingsError(f"{path}: grid of kernel {kernel.name[:60]!r} is three whole numbers, not {grid!r:.60}")
    stream = args.stream if args and isinstance(args.stream, int) and abs(args.stream) < 2**62 else 0
    launched = launches.get(args.correlation) if args and isinstance(args.correlation, int) else None
    launched = start if launched is None else launched - origin * 1e-6
    operator = operators.get(args.external) if args and isinstance(args.external, int) else None
    told: tuple[Any, ...] = ()
    if operator is not None:
        dims = [size for size in operator.args.dims if _is_shape(size)] if isinstance(operator.args.dims, list) else []
        types = operator.args.types if isinstance(operator.args.types, list) else []
        told = operator.name, tuple(map(tuple, dims)), tuple(map(str, filter(None, types)))
    return trace.Event(kernel.name, stream, start, seconds, math.prod(grid), launched, *told)


def _is_shape(size: Any) -> bool:
    return isinstance(size, list) and bool(size) and all(isinstance(n, int) and 0 < n < 2**31 for n in size)


def _gpu(path: Path, properties: Any, device: Any) -> tuple[int, str]:
    """SMs and name of the GPU that a trace is of; 0 where it does not say."""
    for gpu in properties if isinstance(properties, list) else []:
        if isinstance(gpu, dict) and gpu.get("id") == device:
            sms = gpu.get("numSms", 0)
            if not isinstance(sms, int) or not 0 <= sms < 10_000:
                raise TimingsError(f"{path}: numSms of GPU {device} is a whole number, not {sms!r:.60}")
            return sms, str(gpu.get("name", ""))
    return 0, ""
