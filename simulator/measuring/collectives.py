"""Collectives: how long torch.distributed takes for them by size, in a process a GPU (NCCL) or on the CPU (gloo)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, multiprocessing

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.measuring import processes
from simpipe.simulator.measuring.kernels import LEAST, Timing, timed

OPERATORS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")

SMALLEST = 1 << 12
LARGEST = {"cuda": 1 << 30, "cpu": 1 << 24}
"""Bytes of the whole buffer, as nccl-tests counts it; each size is four times the one before."""

ELEMENT = 2


class Sized(NamedTuple):
    """A timing of a buffer of so many bytes."""

    bytes: int
    timing: Timing


def sizes(device: str) -> list[int]:
    """Bytes that each collective is timed with."""
    found = [SMALLEST]
    while found[-1] * 4 <= LARGEST[device]:
        found.append(found[-1] * 4)
    return found


def measure(operator: str, ranks: int, device: str) -> list[Sized]:
    """One of OPERATORS among as many processes; the slowest of them counts. Raises SimpipeError where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            processes.together(_rank, (operator, ranks, device, folder), ranks)
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            why = str(error).strip().splitlines()[-1][:200]
            raise SimpipeError(f"{operator} among {ranks} processes failed: {why}") from None
        found: list[list[tuple[int, float, int]]] = [
            torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(ranks)
        ]
    return [
        Sized(parts[0][0], Timing(max(part[1] for part in parts), parts[0][2])) for parts in zip(*found, strict=True)
    ]


def _rank(rank: int, operator: str, ranks: int, device: str, folder: str) -> None:
    torch.set_num_threads(1)
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    store = distributed.FileStore(f"{folder}/store", ranks)
    backend = "nccl" if device == "cuda" else "gloo"
    bound = here if device == "cuda" else None
    distributed.init_process_group(backend, rank=rank, world_size=ranks, store=store, device_id=bound)
    try:
        found = []
        for size in sizes(device):
            call = _call(operator, rank, ranks, size // ELEMENT // ranks * ranks, here)
            # every rank repeats as often, whatever its clock says
            timing = timed(call, here, repeats=LEAST * 2)
            found.append((size, timing.seconds, timing.repeats))
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def _call(operator: str, rank: int, ranks: int, elements: int, device: torch.device) -> Callable[[], Any]:
    """The collective over a buffer of so many elements; shards are a part of it for each rank."""
    whole = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    shard = torch.zeros(elements // ranks, dtype=torch.bfloat16, device=device)
    match operator:  # PyTorch 2.13 renames two of them
        case "all_reduce":
            return lambda: distributed.all_reduce(whole)
        case "all_gather":
            gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
            return lambda: gather(whole, shard)
        case "reduce_scatter":
            scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
            return lambda: scatter(shard, whole)
        case "all_to_all":
            return lambda: distributed.all_to_all_single(torch.empty_like(whole), whole)
        case "broadcast":
            return lambda: distributed.broadcast(whole, 0)
    return lambda: _around(rank, ranks, whole)


def _around(rank: int, ranks: int, whole: torch.Tensor) -> None:
    """Every rank sends to the next and receives from the one before."""
    taken = torch.empty_like(whole)
    works = distributed.batch_isend_irecv(
        [
            distributed.P2POp(distributed.isend, whole, (rank + 1) % ranks),
            distributed.P2POp(distributed.irecv, taken, (rank - 1) % ranks),
        ]
    )
    for work in works:
        work.wait()
