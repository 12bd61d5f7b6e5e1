"""What DeepSeek-V3 saves memory by, one saving after another, and what each costs a step.

A short step of 32 micro-batches, so that it runs in seconds; `simpipe savings --model deepseek-v3` takes the whole one.
"""

from pathlib import Path

from simpipe.simulator import savings
from simpipe.simulator.scenario import Scenario

scenario = Scenario.read(Path(__file__).parent / "deepseek_v3.yaml", global_batch=4096)
for row in savings.to_dict(savings.table(scenario)):
    peak, saved = row["peak_bytes"] / 1e9, row["saved_bytes"] / 1e9
    host = f", {row['host_bytes'] / 1e9:.1f} GB on the host" if row["host_bytes"] else ""
    print(f"{row['saving']:<32} {peak:4.0f} GB  {saved:5.1f} GB less, a step takes {row['step_time_s']:.1f} s{host}")
