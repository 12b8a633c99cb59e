"""What ONNX Runtime's and onnxscript's own tools make of a model."""
import onnx
import onnxruntime as ort


def optimised(level):
    def make(source, target):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return make


def transformers_optimised(fp16):
    def make(source, target):
        from onnxruntime.transformers.optimizer import optimize_model

        model = optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
        if fp16:
            model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(target))

    return make


def half(keep_io_types):
    def make(source, target):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = onnx.shape_inference.infer_shapes(onnx.load(source))
        onnx.save(convert_float_to_float16(model, keep_io_types=keep_io_types), target)

    return make


def dynamic_int8(source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)


def dynamic_uint8_per_channel(source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), weight_type=QuantType.QUInt8, per_channel=True, reduce_range=True)


def weight_only_qdq(source, target):
    """Each constant weight of a MatMul or Gemm as int8 with a scale for each output column, behind DequantizeLinear."""
    import numpy as np

    model = onnx.load(source)
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    nodes = []
    done = {}
    for node in graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        if node.op_type in ("MatMul", "Gemm") and name in weights and len(weights[name].dims) == 2:
            axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
            if (name, axis) not in done:
                values = onnx.numpy_helper.to_array(weights[name])
                scale = (np.abs(values).max(axis=1 - axis) / 127).astype(np.float32)
                scale[scale == 0] = 1
                q = np.rint(values / (scale[None, :] if axis == 1 else scale[:, None])).astype(np.int8)
                stem = f"{name}.{axis}"
                graph.initializer.append(onnx.numpy_helper.from_array(q, f"{stem}.q"))
                graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{stem}.scale"))
                nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{stem}.q", f"{stem}.scale"], [f"{stem}.dq"], axis=axis))
                done[name, axis] = f"{stem}.dq"
            node.input[1] = done[name, axis]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.save(model, target)


def nbits(bits):
    def make(source, target):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, block_size=16, is_symmetric=False)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))

    return make


def onnxscript_optimised(source, target):
    import onnx_ir
    import onnxscript.optimizer

    model = onnx_ir.load(source)
    onnxscript.optimizer.optimize(model)
    onnx_ir.save(model, target)


def onnxscript_rewritten(source, target):
    import onnx_ir
    import onnxscript.optimizer
    import onnxscript.rewriter

    model = onnx_ir.load(source)
    onnxscript.optimizer.optimize(model)
    onnx_ir.save(onnxscript.rewriter.rewrite(model), target)


def onnxscript_ort(source, target):
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = onnx_ir.load(source)
    result = optimize_for_ort(model)
    onnx_ir.save(result[0] if isinstance(result, tuple) else result, target)


def external(source, target):
    onnx.save(
        onnx.load(source), target, save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data",
        size_threshold=64,
    )


def shapes_inferred(source, target):
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source), data_prop=True), target)


LEVELS = ort.GraphOptimizationLevel
VARIANTS = {
    "ort_basic": optimised(LEVELS.ORT_ENABLE_BASIC),
    "ort_ext": optimised(LEVELS.ORT_ENABLE_EXTENDED),
    "ort_all": optimised(LEVELS.ORT_ENABLE_ALL),
    "tfopt": transformers_optimised(False),
    "tfopt16": transformers_optimised(True),
    "fp16": half(False),
    "fp16io": half(True),
    "dynint8": dynamic_int8,
    "dynuint8": dynamic_uint8_per_channel,
    "qdqw8": weight_only_qdq,
    "nbits8": nbits(8),
    "nbits4": nbits(4),
    "script": onnxscript_optimised,
    "rewritten": onnxscript_rewritten,
    "script_ort": onnxscript_ort,
    "external": external,
    "shapes": shapes_inferred,
}
