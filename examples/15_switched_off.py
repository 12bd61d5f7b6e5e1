"""DeepSeek-V3's training with each of its techniques switched off, one at a time: what that costs a step.

A short step of 32 micro-batches, so that it runs in seconds; `simpipe ablate deepseek-v3` takes the whole one. Balance
needs a study of experts, see 12_expert_balance.py.
"""

from pathlib import Path

from simpipe.simulator import ablation
from simpipe.simulator.scenario import Scenario

scenario = Scenario.read(Path(__file__).parent / "deepseek_v3.yaml", global_batch=4096)
for row in ablation.to_dict(ablation.table(scenario, balance=None)):
    memory = f"{row['peak_bytes'] / 1e9:.0f} GB" + ("" if row["fits"] else ", too much")
    step = f"{row['step_time_s']:.1f} s {row['costs']:+5.0%}"
    print(f"{row['off'] or 'nothing':<21} {row['instead']:<52} {step}  {memory}")
