"""What torch and torch-pruning raise when a removal does not fit the code of `forward`."""

from edgeexport.errors import ModelError

MISFIT = (RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError, ModelError)


def told(error: Exception) -> str:
    """Return the first line of a message, or what kind of error it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]
