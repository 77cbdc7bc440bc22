"""Networks from and for other programs: Keras, ONNX, SavedModel, NumPy."""
