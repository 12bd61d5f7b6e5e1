"""Processes: one function in several at once, as PyTorch's collectives need it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch import multiprocessing


def together(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """`function(rank, *arguments)` in each of so many processes, which Ctrl-C here ends in silence.

    Raises ProcessRaisedException or ProcessExitedException (torch.multiprocessing) where one fails.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Python would start with a traceback otherwise
    try:
        # daemons, which end with this process: others would be waited for
        context = multiprocessing.spawn(_quiet, (function, *arguments), nprocs=ranks, join=False, daemon=True)
    finally:
        signal.signal(signal.SIGINT, before)
    while not context.join():
        pass


def _quiet(rank: int, function: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # PyTorch's wrapper ends on it without a word
    function(rank, *arguments)
