"""The CUDA kernels of QKVGemm on PyTorch tensors, through the library of scripts/bench_cuda_abi.cu."""

import ctypes

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
NORMS = {"layer_norm": 0, "rms_norm": 1, "none": 2}

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int
_LONG = ctypes.c_int64


class _Problem(ctypes.Structure):
    _fields_ = (
        [(name, _LONG) for name in ("k", "n", "num_splits")]
        + [("splits", ctypes.POINTER(_LONG))]
        + [(name, ctypes.c_int32) for name in ("type", "weight_type", "vector_type", "norm")]
        + [("epsilon", ctypes.c_float)]
        + [(name, ctypes.c_int32) for name in ("transposed", "activation_quant")]
        + [("scale_groups", _LONG)]
    )


class _Operands(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("input", "weight", "gamma", "beta", "bias", "scale")] + [
        ("y", ctypes.POINTER(_POINTER))
    ]


def load(path):
    """Returns the library, its functions declared."""
    lib = ctypes.CDLL(path)
    operands = ctypes.POINTER(_Operands)
    signatures = {
        "qkvgemm_create": (_POINTER, [ctypes.POINTER(_Problem), _INT]),
        "qkvgemm_destroy": (None, [_POINTER]),
        "qkvgemm_plan_count": (_INT, [_POINTER, _LONG, _INT]),
        "qkvgemm_plan_name": (None, [_POINTER, _LONG, _INT, _INT, ctypes.c_char_p, ctypes.c_size_t]),
        "qkvgemm_packed_bytes": (ctypes.c_size_t, [_POINTER]),
        "qkvgemm_scratch_bytes": (ctypes.c_size_t, [_POINTER, _LONG, _INT, _INT]),
        "qkvgemm_pack": (_INT, [_POINTER, operands, _POINTER, _POINTER]),
        "qkvgemm_run": (_INT, [_POINTER, _LONG, operands, _INT, _INT, _POINTER, _POINTER, _POINTER]),
        "qkvgemm_empty": (_INT, [_POINTER]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _stream():
    return torch.cuda.current_stream().cuda_stream


def empty(lib):
    """Launches a kernel that does nothing."""
    _must(lib.qkvgemm_empty(_stream()), "empty kernel")


def _must(error, what):
    if error != 0:
        raise RuntimeError(f"{what}: CUDA error {error}")


class Op:
    """One node: its attributes and types, shared by any number of weights."""

    def __init__(self, lib, k, n, dtype, norm, splits, weight_dtype=None, epsilon=1e-5, activation_quant=False):
        self.lib = lib
        self.scratch = None
        widths = (_LONG * len(splits))(*splits)
        problem = _Problem(
            k=k,
            n=n,
            num_splits=len(splits),
            splits=widths,
            type=DTYPES[dtype],
            weight_type=DTYPES[weight_dtype or dtype],
            vector_type=DTYPES[dtype],
            norm=NORMS[norm],
            epsilon=epsilon,
            activation_quant=int(activation_quant),
            scale_groups=n,
        )
        self.handle = lib.qkvgemm_create(ctypes.byref(problem), torch.cuda.current_device())
        if not self.handle:
            raise RuntimeError("qkvgemm_create failed: is there a CUDA device?")

    def __del__(self):
        if getattr(self, "handle", None):
            self.lib.qkvgemm_destroy(self.handle)

    def plans(self, x):
        """The names of all plans for the rows of x; the first is taken where nothing is timed."""
        m, aligned = x.shape[0], int(x.data_ptr() % 16 == 0)
        names = []
        for i in range(self.lib.qkvgemm_plan_count(self.handle, m, aligned)):
            name = ctypes.create_string_buffer(256)
            self.lib.qkvgemm_plan_name(self.handle, m, aligned, i, name, len(name))
            names.append(name.value.decode())
        return names

    def pack(self, operands):
        """Packed weights of `operands`: a dict with weight and, where they are there, gamma, beta, bias, scale."""
        size = self.lib.qkvgemm_packed_bytes(self.handle)
        packed = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        self._check_aligned(packed)
        c = self._operands(operands)
        _must(self.lib.qkvgemm_pack(self.handle, ctypes.byref(c), packed.data_ptr(), _stream()), "pack")
        return packed

    def call(self, x, operands, packed, outputs, plan=0):
        """A function that runs the op on the current stream with all pointers fixed, as a CUDA graph wants it."""
        m, aligned = x.shape[0], int(x.data_ptr() % 16 == 0)
        scratch = self._scratch(self.lib.qkvgemm_scratch_bytes(self.handle, m, aligned, plan))
        pointers = (_POINTER * len(outputs))(*[y.data_ptr() for y in outputs])
        c = self._operands(operands, x, pointers)
        tensors = x, operands, outputs, pointers  # alive as long as the function is

        def run():
            at = packed.data_ptr(), scratch.data_ptr(), _stream()
            error = self.lib.qkvgemm_run(self.handle, m, ctypes.byref(c), aligned, plan, *at)
            _must(error, f"run of {len(tensors[2])} outputs")

        return run

    def _scratch(self, size):
        """Shared by all calls, as a session's allocator would hand the same memory out again."""
        if self.scratch is None or self.scratch.numel() < size:
            self.scratch = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
            self._check_aligned(self.scratch)
        return self.scratch

    @staticmethod
    def _check_aligned(tensor):
        if tensor.data_ptr() % 256 != 0:
            raise RuntimeError("the caching allocator's blocks are no longer 256-byte aligned")

    @staticmethod
    def _operands(tensors, x=None, outputs=None):
        c = _Operands()
        for name, tensor in tensors.items():
            setattr(c, name, tensor.data_ptr())
        if x is not None:
            c.input = x.data_ptr()
        if outputs is not None:
            c.y = outputs
        return c
