"""What flows between the rooms: frozen, validated plain data. Imports neither torch, onnx nor click."""
