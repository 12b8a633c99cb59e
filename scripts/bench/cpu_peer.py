"""LayerNorm + Linear in PyTorch on the CPU (oneDNN): what qkvgemm_bench's times stand beside.

    python3 scripts/bench/cpu_peer.py [threads] [K N]...
"""

import sys
import time

import torch

ROWS = (1, 8, 16, 64, 128, 512, 2048)


def fastest_and_median(run):
    """Microseconds of up to 300 runs within half a second, after three that are not counted."""
    for _ in range(3):
        run()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (len(times) < 300 and time.perf_counter() - begin < 0.5):
        start = time.perf_counter()
        run()
        times.append(1e6 * (time.perf_counter() - start))
    times.sort()
    return times[0], times[len(times) // 2]


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    sizes = [int(size) for size in sys.argv[2:]] or [768, 2304, 4096, 12288]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, {threads} threads; microseconds")
    for k, n in zip(sizes[::2], sizes[1::2]):
        for dtype in (torch.bfloat16, torch.float32):
            norm, linear = torch.nn.LayerNorm(k, dtype=dtype), torch.nn.Linear(k, n, dtype=dtype)
            for m in ROWS:
                x = torch.randn(m, k).to(dtype)
                with torch.inference_mode():
                    fastest, median = fastest_and_median(lambda: linear(norm(x)))
                print(f"K={k} N={n} {dtype} M={m}: fastest {fastest:.1f}, median {median:.1f}", flush=True)


main()
