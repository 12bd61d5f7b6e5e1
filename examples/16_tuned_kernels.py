"""What SMs, warps and chunk size make an overlapped slot of DeepSeek-V3 shortest, and what of it is an assumption.

`simpipe tune comm --model deepseek-v3` is the same, with maps of all settings and a scenario with the best one.
"""

from pathlib import Path

from simpipe.simulator import tuning
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.views import landscape

found = tuning.tune(Scenario.read(Path(__file__).parent / "deepseek_v3.yaml"))
named = {"shortest slot": found.best, "fastest exchange": found.fastest, "as in the scenario": found.given}
for name, (setting, slot, communication) in named.items():
    sms, warps, chunk = setting
    print(f"{name:<19} {sms:>2} SMs, {warps} warps, chunks of {chunk}: slot {slot * 1e3:.1f} ms,", end=" ")
    print(f"a layer's dispatch and combine alone {communication * 1e3:.2f} ms")

tried = {each.setting: each.slot for each in found.tried}
print("\nslot in ms by SMs, chunks of 8: dynamic and static warps")
for sms in (4, 8, 12, 20, 32):
    print(f"{sms:>3}", *(f"{tried[tuning.KernelSetting(sms, warps, 8)] * 1e3:6.1f}" for warps in tuning.WARPS))
print("", *landscape.caveat(found), sep="\n")
