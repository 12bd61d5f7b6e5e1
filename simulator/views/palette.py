"""One palette for every view. Blocks: Paul Tol's "light" scheme, made for filled cells with dark text.

https://personal.sron.nl/~pault/ - distinct under the common kinds of colour blindness.
"""

from __future__ import annotations

KINDS = {
    "F": "#EEDD88",
    "I": "#99DDFF",
    "W": "#77AADD",
    "B": "#44BB99",
    "optimizer": "#FFAABB",
}
"""Fill of each kind of block, near the figures of DeepSeek-V3's report: yellow forwards, green and blue backwards."""

LABELS = {
    "F": "F forward",
    "I": "I backward for input",
    "W": "W backward for weights",
    "B": "B full backward",
    "optimizer": "optimizer step",
    "F&B": "F&B overlapped",
}
"""What a legend calls each kind."""

CAUSES = {
    "warm_up": "#E4E4E4",
    "cool_down": "#CFCFCF",
    "waits_for_forward": "#F8F1CF",
    "waits_for_gradient": "#B4E4D6",
    "waits_for_transfer": "#D9CDEB",
    "blocked_by_order": "#F3DDE9",
    "barrier": "#B5B5B5",
    "late_start": "#C9C4B0",
}
"""Fill of a bubble by its main cause."""

CAUSE_WORDS = {
    "warm_up": "warm-up",
    "cool_down": "cool-down",
    "waits_for_forward": "waits for a forward",
    "waits_for_gradient": "waits for a gradient",
    "waits_for_transfer": "waits for a transfer",
    "blocked_by_order": "blocked by the order",
    "barrier": "barrier",
    "late_start": "starts late",
}
"""What a cause is called."""

FAMILIES = {
    "attention": ("#99DDFF", "#5B9BD5"),
    "MLP": ("#EEDD99", "#C2A83E"),
    "dispatch": ("#F4B6C2", "#D9738A"),
    "combine": ("#D8C3E6", "#A987C9"),
    "other": ("#E2E2E2", "#B4B4B4"),
}
"""Fills of a slot's operations by what they are part of: of a forward, and of a backward."""

PASSES = {"F": "forward", "I": "backward for input", "W": "backward for weights"}
"""What a legend calls the passes of an operation; those for weights are hatched."""

EXPOSED = "#DDDDDD"
"""Fill of communication inside slots that computation does not hide."""

INK = "#1B1B1B"
"""Text, and the border that encloses an overlapped F&B."""

EDGE = "#FFFFFF"
"""What separates neighbouring blocks."""
