//! ONNX graphs as FastForward module trees.
