"""tune: how communication kernels should run."""

from __future__ import annotations

from pathlib import Path

from simpipe.commands.options import (
    Cp,
    Ep,
    File,
    GlobalBatch,
    Gpus,
    Hardware,
    Json,
    MicrobatchSize,
    ModelName,
    Outs,
    Precision,
    Ranks,
    Schedule,
    Sequence,
    Sets,
    Tp,
    modelled_flags,
    print_json,
    scenario_of,
    told,
)


def tune_comm(
    scenario: File = None,
    schedule: Schedule = None,
    model: ModelName = None,
    hardware: Hardware = None,
    ep: Ep = None,
    ranks: Ranks = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    precision: Precision = None,
    set: Sets = None,
    json: Json = False,
    out: Outs = None,
) -> None:
    """Search SMs, warps and chunk size of dispatch and combine together for the shortest overlapped slot.

    Of a schedule without overlapped slots, such as 1f1b, it is for the shortest slots that it has. `--out` writes the
    scenario with the setting found (.yaml), or the landscape (.html, .png, .svg, .pdf). A model whose training is
    published (deepseek-v3) is tuned in that layout; else what options leave open is as in that training, on as few GPUs
    as they allow.
    """
    from simpipe.simulator import tuning, views
    from simpipe.simulator.scenario import published
    from simpipe.simulator.views import landscape

    flags = modelled_flags(locals())
    views.check_endings(out or [], (".yaml", *landscape.ENDINGS_OF_MAPS))
    outs = [Path(path) for path in out or []]
    path = scenario or (published(model) if model else None)
    found = tuning.tune(scenario_of(path, schedule, None, None, flags, set or [], tuning.completed), _heard)
    for path in outs:
        if path.suffix.lower() == ".yaml":
            found.tuned.write(path)
        else:
            landscape.write_landscape(found, path)
    if json:
        print_json(tuning.to_dict(found))
    else:
        print("\n".join([*landscape.text(found), *(f"wrote {path}" for path in outs)]))


def _heard(done: int, total: int) -> None:
    told(f"tried {done} of {total} settings", last=done == total)
