"""Communication kernels: what DeepSeek-V3's dispatch and combine reach by SMs and warps, and one channel at work.

20 SMs are 10 channels. A channel's warps send over InfiniBand, forward over NVLink and receive, chunk by chunk; a
combine goes the other way and adds up. Static warps are a third for each task, dynamic ones go where the work is.
"""

from simpipe import simulate
from simpipe.simulator.costs import exchange_kernels
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.collectives import expert_spread, network_bandwidth, nvlink_bandwidth, token_bytes
from simpipe.simulator.costs.exchange_kernels import ChannelCosts, KernelSetting, Run, channel_program, times

H800 = load_cluster("h800")
TOKENS, HIDDEN = 4096, 7168


def run(way: str, sms: int, warps: str, chunk: int = 8) -> Run:
    """A micro-batch over 8 nodes, each token to 8 of 256 experts on at most 4 nodes."""
    payload = token_bytes(HIDDEN, 1.0 if way == "dispatch" else 2.0)
    links, setting = (network_bandwidth(H800), nvlink_bandwidth(H800)), KernelSetting(sms, warps, chunk)
    spread = expert_spread(256, 8, 64, 8, 4)
    return exchange_kernels.run(H800.exchange, way, links, TOKENS, payload, spread, setting)


print(f"{'':<6}{'dispatch, ms':>20}{'combine, ms':>20}{'GB/s over InfiniBand':>28}")
print(f"{'SMs':<6}" + f"{'static':>10}{'dynamic':>10}" * 2 + f"{'dispatch':>18}{'combine':>10}")
for sms in (4, 8, 12, 20):
    runs = [run(way, sms, warps) for way in ("dispatch", "combine") for warps in ("static", "dynamic")]
    seconds = times(runs)
    reached = [TOKENS * sum(task.network for task in runs[i].tasks) / seconds[i] / 1e9 for i in (1, 3)]
    print(f"{sms:<6}" + "".join(f"{each * 1e3:>10.2f}" for each in seconds) + f"{reached[0]:>18.1f}{reached[1]:>10.1f}")

CHUNKS = (1, 4, 16, 64, 256)
by_chunk = times([run("dispatch", 20, "dynamic", chunk) for chunk in CHUNKS])
found = (f"{chunk}: {seconds * 1e3:.2f} ms" for chunk, seconds in zip(CHUNKS, by_chunk, strict=True))
print(f"\ndispatch on 20 SMs by tokens of a chunk: {', '.join(found)}")

print("\none channel's first chunks on 8 SMs, dynamic warps, us")
frame = simulate(channel_program(), ChannelCosts(run("combine", 8, "dynamic"), 4)).to_frame()
for task in ("send", "forward", "receive"):
    own = frame[frame["stream"] == task]
    spans = zip(own["start"] * 1e6, own["end"] * 1e6, strict=True)
    print(f"{task:<9}" + "  ".join(f"{start:5.1f} to {end:5.1f}" for start, end in spans))
