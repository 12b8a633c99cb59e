"""The tables that BENCHMARKS.md has of a CUDA device: what differs from the command line's defaults, one entry a table."""

_LARGE, *_OTHERS = _SHAPES = ["4096x12288", "4096x6144", "8192x10240", "768x2304"]
_ROWS = [1, 8, 16, 64, 512, 4096]
_FEW_TOO = [1, 8, 16, 32, 64, 128, 512, 4096]
# torch.compile takes seconds for each.
_COMPILED = [1, 16, 64, 512, 4096]


def _table(shape, m=_ROWS, **options):
    return {"shape": shape, "m": m, "no_compile": True} | options


TABLES = [
    _table(_LARGE, [1 << i for i in range(14)], no_compile=False, compiled=_COMPILED),
    _table(_LARGE, dtype="bfloat16"),
    _table(_LARGE, norm="rms_norm"),
    _table(_LARGE, dtype="bfloat16", norm="rms_norm"),
    *(_table(shape, _FEW_TOO) for shape in _OTHERS[:2]),
    _table(_OTHERS[2], [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], no_compile=False, compiled=_COMPILED),
    _table("2048x3072", [1, 16, 64, 128, 256, 512, 1024]),
    # Few columns, of whose K blocks share out parts.
    *(_table(shape, [1, 16, 32, 64, 128]) for shape in ("3072x768", "4096x1024", "4096x4096", "3584x4608")),
    *(_table(shape, _FEW_TOO, int8=True) for shape in _SHAPES),
    *(_table(shape, [16, 64, 512, 4096], int8=True, activation_quant=True) for shape in _SHAPES),
]
