"""Runs packages with ONNX Runtime: pictures, latencies, verification. Never imports torch, diffusers or onnx."""
