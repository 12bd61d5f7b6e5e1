"""What a step of DeepSeek-V3 goes to, beside table 4 of "Insights into DeepSeek-V3" (https://arxiv.org/abs/2505.09343).

Phases are means of 16 ranks and add up to the step. The last is from the last backward to the next step's first
forward, and then the same with no gradient and no parameter moving beside a slot.
"""

from pathlib import Path

from simpipe import simulate
from simpipe.simulator import case, report
from simpipe.simulator.phases import Phases, phases
from simpipe.simulator.scenario import Scenario

published = {name: value for name, (value, _) in report.published("deepseek-v3").items()}


def step(**keys: bool) -> Phases:
    made = case.modelled(Scenario.read(Path(__file__).parent / "deepseek_v3.yaml", **keys))
    return phases(simulate(made.program, made.costs))


own = step()
rows = {
    "forwards alone": (own.forwards, published["forwards_alone_s"]),
    "overlapped F&B": (own.overlapped, published["overlapped_slots_s"]),
    "backwards alone": (own.backwards, published["backwards_alone_s"]),
    "bubbles": (own.bubbles, published["bubbles_s"]),
    "between steps": (own.between, published["between_steps_s"]),
    "in all": (sum(own), published["step_time_s"]),
}
print(f"{'seconds':<16}{'here':>7}{'published':>11}")
for name, (seconds, other) in rows.items():
    print(f"{name:<16}{seconds:7.2f}{other:11.2f}")

bare = step(gradient_overlap=False, gather_overlap=False)
print("\nbetween steps, in ms: gradients reduced, norm and update, parameters gathered")
for name, found in (("as far as slots hide", own), ("nothing hidden", bare)):
    parts = (found.reduced, found.updated, found.gathered)
    print(f"{name:<22}" + " + ".join(f"{1e3 * part:.0f}" for part in parts) + f" = {1e3 * found.between:.0f}")
