"""A float model to a quantised one by ONNX Runtime's own tools: QDQ, calibrated on a network's inputs."""

import logging

import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

ACTIVATIONS = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


class Calibration(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


def quantise(network, target, activation="uint8", per_channel=True, n_pictures=2):
    """Writes the quantised network: int8 weights, transposed convolutions included."""
    prepared = target.with_suffix(".prepared.onnx")
    logging.disable(logging.WARNING)  # Its advice to prepare the model, which is done here.
    # Without this, batch normalisations stay and most convolutions remain in float. Symbolic inference needs sympy.
    quant_pre_process(str(network.path), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    if model.opset_import[0].version < 13:  # Below, DequantizeLinear has no axis, and the tool writes it all the same.
        model = onnx.version_converter.convert_version(model, 17)
        model.ir_version = max(model.ir_version, 8)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, prepared)
    quantize_static(
        str(prepared),
        str(target),
        Calibration(network.feeds(i) for i in range(n_pictures)),
        quant_format=QuantFormat.QDQ,
        activation_type=ACTIVATIONS[activation],
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "LeakyRelu", "Clip", "Sigmoid", "MaxPool", "GlobalAveragePool"],
    )
    logging.disable(logging.NOTSET)
    prepared.unlink()
