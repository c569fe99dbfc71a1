"""The arm64 system that is installed once and used twice: emulated here, and pushed to phones that have no Python.

The rule: it knows neither of its users. What starts on it is theirs; what it holds, and whether it is intact,
is said here.
"""
