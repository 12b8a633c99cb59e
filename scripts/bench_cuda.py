"""The fused CUDA kernels against PyTorch's on this machine's GPU: verified first, then timed by graph replay.

    cmake -S . -B build -DQKVGEMM_CUDA=ON && cmake --build build --target qkvgemm_cuda_abi
    python3 scripts/bench_cuda.py --shapes 4096x12288 768x2304 --dtype float16 --m 1 8 64 512 4096
    python3 scripts/bench_cuda.py --int8 --plans --best 5
    python3 scripts/bench_cuda.py --page --rounds 3  # all tables of BENCHMARKS.md, in six minutes
"""

import argparse
import re
import sys

import torch
import torch.nn.functional as F

from bench import cuda_op, cuda_page, cuda_plot, cuda_timing
from bench.cuda_timing import Timed

# In the mean over a whole result the fused form may lose this much more than the unfused one: room for chance alone.
ERROR_LIMIT = 1.2
EPSILON = 1e-5
_LONGEST_PLAN = len("hopper 192x128, clusters of 2x2, rows normalised, shared statistics")


class Weights:
    """One projection's operands, and as many copies of W as keep it out of the L2 cache."""

    def __init__(self, args, dtype):
        k, n = args.k, args.n
        generator = torch.Generator(device="cuda").manual_seed(args.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, device="cuda")

        layer_norm = args.norm == "layer_norm"
        self.gamma = (1 + 0.3 * normal(k)).to(dtype) if args.norm != "none" else None
        self.beta = (0.1 * normal(k)).to(dtype) if layer_norm else None
        self.bias = normal(n).to(dtype)
        self.scale = None
        w = normal(k, n) * k**-0.5
        if args.int8:
            self.scale = w.abs().amax(0) / 127
            quantised = (w / self.scale).round().to(torch.int8)
            self.exact = quantised.double() * self.scale.double()
            self.fused = self._copies(quantised)
        else:
            self.exact = w.to(dtype).double()
        # What the peers multiply by; the same values where they are not int8.
        self.peers = self._copies(self.exact.to(dtype))
        if not args.int8:
            self.fused = self.peers
        self.splits = split(n, args.splits)
        self.parts = [tuple(p.contiguous() for p in w.split(self.splits, 1)) for w in self.peers]
        self.biases = self.bias.split(self.splits)

    @staticmethod
    def _copies(w):
        return [w.clone() for _ in range(cuda_timing.copies(w.numel() * w.element_size()))]

    def operands(self, weight):
        named = {"gamma": self.gamma, "beta": self.beta, "bias": self.bias, "scale": self.scale}
        return {"weight": weight} | {name: t for name, t in named.items() if t is not None}


def split(n, count):
    """Widths of `count` outputs, all but the last a multiple of 64."""
    width = n // count // 64 * 64
    return [n] if count == 1 or width == 0 else [width] * (count - 1) + [n - width * (count - 1)]


def normalised(args, weights, x):
    """norm(x) as PyTorch computes it in x's type."""
    if args.norm == "layer_norm":
        return F.layer_norm(x, (args.k,), weights.gamma, weights.beta, EPSILON)
    return F.rms_norm(x, (args.k,), weights.gamma, EPSILON) if args.norm == "rms_norm" else x


def reference(args, weights, x, quantised=False):
    """The formula in float64; with rows rounded to int8 where that is asked for."""
    v = x.double()
    if args.norm == "layer_norm":
        v = F.layer_norm(v, (args.k,), weights.gamma.double(), weights.beta.double(), EPSILON)
    elif args.norm == "rms_norm":
        v = v * (v.pow(2).mean(1, keepdim=True) + EPSILON).rsqrt() * weights.gamma.double()
    if quantised:
        step = v.abs().amax(1, keepdim=True) / 127
        v = torch.where(step > 0, (v / step).round() * step, v)
    return v @ weights.exact + weights.bias.double()


def rms(error):
    return error.pow(2).mean().sqrt().item()


def verify(args, weights, x, fused, outputs):
    """The fused form's RMS error relative to the unfused one's, and whether it is within the limit."""
    exact = reference(args, weights, x)
    if args.activation_quant:  # PyTorch has no such graph; quantised in float64, it loses what it must
        unfused = reference(args, weights, x, quantised=True).to(x.dtype)
    else:
        unfused = torch.addmm(weights.bias, normalised(args, weights, x), weights.peers[0])
    for y in outputs:
        y.fill_(float("nan"))
    fused()
    torch.cuda.synchronize()
    ratio = rms(torch.cat(outputs, 1).double() - exact) / rms(unfused.double() - exact)
    return ratio, ratio <= ERROR_LIMIT  # NaN is not


def compiled_peer(args, weights, x):
    """The unfused form through torch.compile: one call for each copy of W; None where it does not work."""
    try:
        torch._dynamo.reset()

        @torch.compile(dynamic=False)
        def unfused(v, w):
            return torch.addmm(weights.bias, normalised(args, weights, v), w)

        unfused(x, weights.peers[0])
        return Timed([lambda w=w: unfused(x, w) for w in weights.peers])
    except Exception as error:  # whatever is missing there: a C compiler, Triton
        if not compiled_peer.said:
            print(f"torch.compile is left out: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        compiled_peer.said = True
        torch.cuda.synchronize()
        return None


compiled_peer.said = False


def peers(args, weights, x):
    """What the fused form is compared to, by name."""
    h = normalised(args, weights, x)
    y = torch.empty(x.shape[0], args.n, dtype=x.dtype, device="cuda")
    all_parts = list(weights.parts)

    def stock_graph(parts):
        v = normalised(args, weights, x)
        return [torch.add(torch.mm(v, w), b) for w, b in zip(parts, weights.biases)]

    timed = {
        "cuBLAS": Timed([lambda w=w: torch.mm(h, w, out=y) for w in weights.peers]),
        "cuBLAS + bias": Timed([lambda w=w: torch.addmm(weights.bias, h, w, out=y) for w in weights.peers]),
        "norm + addmm": Timed(
            [lambda w=w: torch.addmm(weights.bias, normalised(args, weights, x), w, out=y) for w in weights.peers]
        ),
        "stock graph": Timed([lambda p=p: stock_graph(p) for p in all_parts]),
    }
    wanted = not args.no_compile and (args.compiled is None or x.shape[0] in args.compiled)
    compiled = compiled_peer(args, weights, x) if wanted else None
    if compiled is not None:
        timed["torch.compile"] = compiled
    return timed


def short(plan):
    """A plan's name as tables have it: family, columns x rows of a tile, tiles of a cluster or blocks that share out K."""
    name = re.sub(r", rows \w+|, shared statistics", "", plan).replace(", clusters of", ",").replace(", parts of K:", ", K /")
    return re.sub(r"(\d)x(\d)", r"\1 x \2", name)


def measure(args, lib, op, weights, packed, m, bandwidth):
    """One line of the table for each plan that was asked for."""
    dtype = weights.bias.dtype
    x = (torch.randn(m, args.k, device="cuda") + 0.5).to(dtype)
    outputs = [torch.empty(m, width, dtype=dtype, device="cuda") for width in weights.splits]
    plans, lines = {}, []
    timed = {"empty": Timed([lambda: cuda_op.empty(lib)])} | peers(args, weights, x)
    names = op.plans(x)
    for i, name in enumerate(names):
        if i > 0 and (args.plans is None or args.plans not in name):
            continue
        calls = [op.call(x, weights.operands(w), p, outputs, i) for w, p in zip(weights.fused, packed)]
        error, good = verify(args, weights, x, calls[0], outputs)
        plans[name] = error, good
        timed[f"fused {name}"] = Timed(calls)
    # With few rows no device is at its power limit.
    milliseconds = args.milliseconds or (15 if m <= 64 else 50)
    cuda_timing.race(timed, args.rounds, milliseconds * 1e3)
    w = weights.fused[0]
    moved = w.numel() * w.element_size() + (m * args.k + m * args.n) * x.element_size()
    others = {name: t.median() for name, t in timed.items() if not name.startswith("fused ")}
    empty = others.pop("empty")
    for name, (error, good) in plans.items():
        t = timed[f"fused {name}"]
        us = t.median()
        line = {"M": str(m), "tile": short(name) if args.table and args.plans is None else name, "fused": f"{us:.2f}"}
        line["P10-P90"] = "{:.2f}-{:.2f}".format(*t.spread())
        line |= {peer: f"{time:.2f}" for peer, time in others.items()}
        if not args.no_compile:
            line.setdefault("torch.compile", "-")
        line["fused - empty"] = f"{us - empty:.2f}"
        line["fused / cuBLAS"] = f"{us / others['cuBLAS']:.3f}"
        line["fused / (cuBLAS + bias)"] = f"{us / others['cuBLAS + bias']:.3f}"
        line["fused / floor"] = f"{us / (moved / bandwidth):.2f}"
        line["TFLOP/s"] = f"{2 * m * args.k * args.n / us / 1e6:.1f}"
        line["error / unfused"] = f"{error:.3f}" + ("" if good else " WRONG")
        lines.append(line)
    if args.plans is not None:
        chosen = lines[0]
        lines = sorted(lines, key=lambda line: float(line["fused"]))[: args.best]
        if chosen not in lines:
            lines.append(chosen)
    medians = others | {"empty": empty, "fused": min(float(line["fused"]) for line in lines)}
    return lines, medians, all(good for _, good in plans.values())


def show(lines, markdown, headed):
    """Prints the lines, the first under a heading."""
    if markdown:
        if not headed:
            print("| " + " | ".join(lines[0]) + " |\n|" + " --- |" * len(lines[0]))
        for line in lines:
            print("| " + " | ".join(line.values()) + " |", flush=True)
        return
    widths = {name: max(len(name), 11) for name in lines[0]} | {"tile": _LONGEST_PLAN, "P10-P90": 17}
    if not headed:
        print("  ".join(name.rjust(widths[name]) for name in lines[0]))
    for line in lines:
        print("  ".join(value.rjust(widths[name]) for name, value in line.items()), flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", default="build/libqkvgemm_cuda_abi.so", help="the built library")
    parser.add_argument("--shapes", nargs="+", default=["4096x12288"], metavar="KxN", help="sizes of W")
    parser.add_argument("--m", type=int, nargs="+", help="rows (default 1 8 16 64 256 512 4096)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    parser.add_argument("--norm", choices=list(cuda_op.NORMS), default="layer_norm")
    parser.add_argument("--splits", type=int, default=3, help="outputs of the fused op (default 3)")
    parser.add_argument("--int8", action="store_true", help="int8 weights, one scale a column")
    parser.add_argument("--activation-quant", action="store_true", help="rows in int8 as well; with --int8")
    parser.add_argument(
        "--plans", nargs="?", const="", metavar="TEXT", help="also time each plan whose name has the text; best first"
    )
    parser.add_argument("--best", type=int, help="of those, print so many and the one that is chosen")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=11, help="how often each graph is timed, in turn")
    parser.add_argument(
        "--milliseconds",
        type=float,
        help="how long each time, after three times as long of itself (15 up to 64 rows, else 50)",
    )
    parser.add_argument("--table", action="store_true", help="print a markdown table")
    parser.add_argument("--svg", metavar="FILE", help="plot the times there; rows are 1 to 8192 in powers of two by default")
    parser.add_argument("--page", action="store_true", help="print all tables of BENCHMARKS.md instead")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.best is not None and (args.plans is None or args.best < 1):
        parser.error("--best counts the plans that --plans times, from 1 on")
    own = ("shapes", "m", "dtype", "norm", "int8", "activation_quant", "plans", "no_compile")
    chosen = [name for name in own if getattr(args, name) != parser.get_default(name)]
    if args.page and chosen:
        parser.error(f"--page has its own {', '.join(chosen)}")
    if args.m is None:
        args.m = [1 << i for i in range(14)] if args.svg else [1, 8, 16, 64, 256, 512, 4096]
    if args.activation_quant and not args.int8:
        parser.error("--activation-quant needs --int8")
    if args.svg and len(args.shapes) > 1:
        parser.error("--svg plots one shape")
    args.compiled = None  # rows for which torch.compile is a peer: all
    for shape in args.shapes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
            parser.error(f"--shapes: expected KxN, found '{shape}'")
    return args


def bench(args, lib, bandwidth):
    """The table of one shape; whether all results were right."""
    args.k, args.n = map(int, args.shape.split("x"))
    dtype = getattr(torch, args.dtype)
    weights = Weights(args, dtype)
    op = cuda_op.Op(
        lib,
        args.k,
        args.n,
        dtype,
        args.norm,
        weights.splits,
        torch.int8 if args.int8 else dtype,
        EPSILON,
        args.activation_quant,
    )
    packed = [op.pack(weights.operands(w)) for w in weights.fused]
    torch.cuda.synchronize()
    kind = ("int8 x int8" if args.activation_quant else "int8") if args.int8 else args.dtype
    print(
        f"\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, copy {bandwidth / 1e6:.2f} TB/s; K={args.k} "
        f"N={args.n} {args.dtype}, weights {kind}, {args.norm}, {len(weights.fused)} copies of W; microseconds, median "
        f"of {args.rounds} rounds\n",
        flush=True,
    )
    good, series = True, {}
    for i, m in enumerate(args.m):
        lines, medians, right = measure(args, lib, op, weights, packed, m, bandwidth)
        show(lines, args.table, headed=i > 0)
        good = good and right
        for name, us in medians.items():
            series.setdefault(name, [None] * len(args.m))[i] = us
    if args.svg:
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(cuda_plot.svg(f"K={args.k} N={args.n} {kind} {args.norm}", args.m, series))
        print(f"\nwrote {args.svg}")
    return good


def main():
    args = parse()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = True  # as ONNX Runtime's CUDA provider does, and the fused form
    lib = cuda_op.load(args.lib)
    bandwidth = cuda_timing.copy_bandwidth()
    tables = cuda_page.TABLES if args.page else [{"shape": shape} for shape in args.shapes]
    if args.page:
        # The first is plotted.
        tables = [table | {"table": True, "svg": args.svg if i == 0 else None} for i, table in enumerate(tables)]
    good = [bench(argparse.Namespace(**vars(args) | table), lib, bandwidth) for table in tables]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
