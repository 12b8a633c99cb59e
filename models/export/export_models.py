"""Exports small models with random weights from the architectures of Hugging Face transformers, by several paths.

What comes out is in ONNX's backend-test layout, OUT/FAMILY.PATH/model.onnx with test_data_set_0/input_N.pb, which
test/rewrite.breadth.test.ts reads. Sizes are tiny; layouts of heads, norms and weights are those of the real ones. All
parameters are random, also scales and biases, which would be ones and zeros in a fresh model.

    python3 -m venv venv && venv/bin/pip install -r models/export/requirements.txt
    venv/bin/python models/export/export_models.py OUT [--only REGEX]
    QKVGEMM_MODELS=OUT npm test -- test/rewrite.breadth.test.ts
"""
import argparse
import json
import pathlib
import re
import shutil
import sys
import traceback
import warnings

import numpy as np
import onnx
import torch
from architectures import ARCHITECTURES
from variants import VARIANTS

warnings.filterwarnings("ignore")


def randomise(model):
    """Weights as large as trained ones relative to their input, scales near 1, biases near 0, none of them special."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)
        if parameter.dim() < 2:
            parameter.data = parameter.data.clone().add_(noise * 0.2)
        else:
            parameter.data = noise * (1.5 / parameter[0].numel() ** 0.5)


class Wrapped(torch.nn.Module):
    """The tensors of a model's answer, as a tuple."""

    def __init__(self, model, run):
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs):
        return self.run(self.model, *inputs)


def export(arch, path, file):
    model, run, inputs, dynamic = arch()
    randomise(model)
    wrapped = Wrapped(model, run).eval()
    names = list(inputs)
    args = tuple(inputs.values())
    low = torch.float16 if "half" in path else torch.bfloat16 if "bf16" in path else None
    if low is not None:
        wrapped = wrapped.to(low)
        args = tuple(value.to(low) if value.is_floating_point() else value for value in args)
    opset = int(re.search(r"\d+", path).group())
    static = "static" in path
    with torch.no_grad():
        if path.startswith("ts"):
            axes = {} if static else {n: d for n, d in dynamic.items() if d}
            torch.onnx.export(
                wrapped, args, file, dynamo=False, opset_version=opset, input_names=names,
                dynamic_axes=axes, do_constant_folding="nofold" not in path,
            )
        else:
            shapes = None
            if not static:
                shapes = (tuple({i: torch.export.Dim.DYNAMIC for i in dynamic.get(n, {})} for n in names),)
            program = torch.onnx.export(
                wrapped, args, dynamo=True, opset_version=opset, input_names=names, dynamic_shapes=shapes,
                optimize="raw" not in path, verbose=False, external_data=False,
            )
            program.save(file)
    return args


def write_inputs(folder, args):
    data = folder / "test_data_set_0"
    data.mkdir(exist_ok=True)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != len(args):
        raise RuntimeError(f"the graph has inputs {inputs}, {len(args)} were given")
    for i, value in enumerate(args):
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value.numpy()), inputs[i])
        (data / f"input_{i}.pb").write_bytes(tensor.SerializeToString())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="regular expression on FAMILY.PATH[.VARIANT]")
    parser.add_argument("--strip", action="store_true", help="leave out what is not needed to run: texts and metadata")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--redo", action="store_true")
    options = parser.parse_args()
    failures = {}

    def attempt(folder, make):
        """What `make` gives; None, with the folder gone and the error kept, where it fails: the others are made all the same."""
        try:
            made = make()
            print(folder.name, (folder / "model.onnx").stat().st_size, flush=True)
            return made
        except Exception as error:
            failures[folder.name] = f"{type(error).__name__}: {str(error)[:300]}"
            print("FAILED", folder.name, failures[folder.name], flush=True)
            if options.verbose:
                traceback.print_exc()
            shutil.rmtree(folder, ignore_errors=True)
            return None

    for family, (arch, paths) in ARCHITECTURES.items():
        for spec in paths.split():
            path, *variants = spec.split("+")
            base = options.out / f"{family}.{path}"
            wanted = [n for n in [base.name, *(f"{base.name}.{v}" for v in variants)] if re.search(options.only, n)]
            if not wanted or (not options.redo and all((options.out / n / "model.onnx").exists() for n in wanted)):
                continue

            def make_base():
                base.mkdir(parents=True, exist_ok=True)
                args = export(arch, path, str(base / "model.onnx"))
                write_inputs(base, args)
                return args

            args = attempt(base, make_base)
            if args is None:
                continue
            for variant in variants:
                folder = options.out / f"{base.name}.{variant}"

                def make_variant():
                    folder.mkdir(exist_ok=True)
                    VARIANTS[variant](base / "model.onnx", folder / "model.onnx")
                    write_inputs(folder, args)
                    if variant == "fp16":
                        halve_inputs(folder)
                    return args

                attempt(folder, make_variant)
    if options.strip:
        for file in options.out.glob("*/model.onnx"):
            strip(file)
    print(json.dumps(failures, indent=1))


def strip(file):
    model = onnx.load(file)
    del model.metadata_props[:]
    graph = model.graph
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    onnx.save(model, file)


def halve_inputs(folder):
    """Float inputs of a model whose own inputs became float16."""
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.load(folder / "model.onnx").graph.input}
    for file in (folder / "test_data_set_0").glob("input_*.pb"):
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        if types.get(tensor.name) == onnx.TensorProto.FLOAT16:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            file.write_bytes(onnx.numpy_helper.from_array(values, tensor.name).SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
