"""Export of a trained encoder: a folder of the Hugging Face hub, and ONNX files."""
