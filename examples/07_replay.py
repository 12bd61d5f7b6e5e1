"""A production run replayed: per-operation times of every stage, micro-batch and worker, and who made the bubble.

`operations.csv` is made up: 1F1B on 4 stages, 8 micro-batches, 2 workers (data-parallel pipelines), of which worker 1
has a slow stage 2. A table of your own has the same columns; from the command line:
`simpipe run --schedule 1f1b --costs examples/operations.csv`.
"""

from pathlib import Path

import simpipe
from simpipe.simulator.costs import measured
from simpipe.simulator.replay import describe, replay

operations = measured.read(Path(__file__).parent / "operations.csv")
program = simpipe.program("1f1b", ranks=operations.stages, microbatches=operations.microbatches)
print("\n".join(describe(replay(program, operations))))
