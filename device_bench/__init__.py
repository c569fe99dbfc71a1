"""The program that runs on the device: one file, stdlib + numpy + one runtime, never edgeexport."""
