//! ONNX Runtime as a processor.
