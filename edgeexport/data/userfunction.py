"""A function of the user's that edgeexport calls, and the name it goes by when something is wrong with it.

The rule: what is wrong with user code is told as the user's: which function, which file, which line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from edgeexport.data.usercode import UserCode
from edgeexport.errors import RequestError


@dataclass(frozen=True)
class UserFunction:
    """A callable whose exceptions leave it as RequestErrors. name: what to call it, such as "the loss 'mine:f1'"."""

    name: str
    function: Callable[..., Any]
    folder: Path | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function. Raises RequestError if it does not take these arguments, or raises."""
        self._check_takes(arguments)
        with UserCode(self.name, self._home()):
            return self.function(*arguments)

    @property
    def where(self) -> str:
        """The name, and "(file:line)" of the definition where Python knows it."""
        code = self._code()
        return self.name if code is None else f"{self.name} ({code.co_filename}:{code.co_firstlineno})"

    def _check_takes(self, arguments: tuple[Any, ...]) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # builtins may have none to look at
            return
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise RequestError(
                f"{self.where} takes {signature}, and is called with {len(arguments)} arguments: {error}"
            ) from error

    def _home(self) -> Path | None:
        """The folder whose lines are the user's: the recipe's, or where a live function was written."""
        if self.folder is not None:
            return self.folder
        code = self._code()
        return None if code is None else Path(code.co_filename).parent

    def _code(self) -> CodeType | None:
        function = inspect.unwrap(self.function)
        found = getattr(function, "__code__", None) or getattr(vars(type(function)).get("__call__"), "__code__", None)
        return found if isinstance(found, CodeType) else None
