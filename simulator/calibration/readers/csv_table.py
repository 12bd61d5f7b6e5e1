"""The plain table: a row a timing, with columns operator, shape, format, seconds, and what else COLUMNS names."""

from __future__ import annotations

import io
from pathlib import Path

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, checked

FORMAT = "a .csv or .tsv table with columns operator, shape, format, seconds (`simpipe calibrate --template`)"

TEMPLATE = """\
operator,shape,format,sms,bytes,ranks,seconds
gemm,m=4096 n=7168 k=2048,bf16,,,,0.000171
grouped_gemm,m=31104 n=4096 k=7168 groups=4,fp8_block,112,,,0.001862
attention_forward,batch=1 heads=64 kv_heads=8 queries=4096 keys=4096 head_dim=128 value_dim=128 causal=1,bf16,,,,0.00062
memory_bound,,,,469762048,,0.000178
all_reduce,,,,268435456,8,0.0021
dispatch,tokens=4096 hidden=7168 topk=8 experts=256,fp8,20,,8,0.000492
"""
"""m: rows of all groups. sms: those that the kernel ran on, or held; empty for all of the GPU's. bytes: what a
memory-bound kernel reads and writes, or a collective's whole buffer as nccl-tests counts it. ranks: of a collective."""


def recognises(head: bytes) -> bool:
    first = head.decode("utf-8-sig", "replace").partition("\n")[0].lower()
    names = {name.strip() for name in first.replace("\t", ",").split(",")}
    return {"operator", "seconds"} <= names


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    import pandas as pd

    separator = "\t" if b"\t" in data.partition(b"\n")[0] else ","
    try:
        table = pd.read_csv(io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TimingsError(f"{path}: is no sound table: {' '.join(str(error).split())[:120]}") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    if len(set(table.columns)) < len(table.columns):
        raise TimingsError(f"{path}: two columns have one name; there are {', '.join(table.columns)}")
    if not {"operator", "seconds"} <= set(table.columns):  # a line ended where `recognises` saw none
        raise TimingsError(f"{path}: its columns are {', '.join(table.columns)}; operator and seconds are needed")
    if not len(table):
        raise TimingsError(f"{path}: holds no timing, only a header")
    for name in ("shape", "format", "sms", "bytes", "ranks"):
        if name not in table:
            table[name] = ""
    table["source"] = path.name
    return Timings(checked(table, str(path), first_line=2))
