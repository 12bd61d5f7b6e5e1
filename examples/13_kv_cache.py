"""What MLA saves: the KV cache of DeepSeek-V3's attention beside the same heads as MHA, GQA and MQA.

And the bound of a decoded token by expert-parallel exchange, as "Insights into DeepSeek-V3" computes it
(https://arxiv.org/abs/2505.09343, section 2.3.2): 14.76 ms over 400 Gbit/s InfiniBand, 0.82 ms over NVLink at 900 GB/s.
"""

from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.inference import Serving, caches, exchange_seconds

model = load_model("deepseek-v3")
for name, ep in (("h800", 256), ("gb200-nvl72", 64)):
    print(f"{name}: 64 requests of 4,096 tokens on each of {ep} GPUs")
    for cache in caches(Serving(model, load_cluster(name), batch=64, context=4096, ep=ep)):
        bounds = ", ".join(f"{part} {1e3 * seconds:.2f}" for part, seconds in cache.decode._asdict().items())
        size, longest = f"{cache.bytes_per_token / 1e3:9.3f} kB a token", f"up to {cache.longest_context:6,} tokens"
        print(f"  {cache.attention:<18} {size}, {longest}; ms: {bounds}")

for rate, published in ((50e9, 14.76), (900e9, 0.82)):
    bound = 61 * 2 * exchange_seconds(tokens=32, copies=9, hidden=7000, element_bytes=1 + 2, bandwidth=rate)
    print(f"{rate / 1e9:g} GB/s, sizes as the paper rounds them: {1e3 * bound:.2f} ms, published {published} ms")
