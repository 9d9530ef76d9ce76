"""Every error a user can meet.

    UimError
    ├── UsageError            exit 2   the call or the config is off
    │   ├── UnknownNameError           a name that nobody has; the nearest is named
    │   └── ConfigError                a key, a type or a value in a config
    ├── DataError             exit 3   what was read cannot be used
    │   ├── MissingFileError
    │   ├── MalformedRowError          the file and its line number
    │   ├── NonFiniteError             NaN or infinity in parameters, data or results
    │   ├── ShapeError                 shapes or dtypes that do not fit
    │   ├── MismatchError              an artefact made from other parameters, data or choices
    │   └── UnsupportedModelError      a checkpoint that is not opened, or not built, here
    ├── CorruptError          exit 4   bytes on disk are not the bytes that were written
    ├── OutputError           exit 5   the output folder cannot be written
    │   └── NoRoomError                the machine's memory or disk is too small; the largest that fits is named
    ├── LostProcessError      exit 75  another process of the job is gone; start it again
    └── TapError              exit 6   the user's loss cannot be followed
        ├── CoverageError              a parameter's gradient is not accounted for
        └── BudgetError                a dense per-example gradient would not fit

Each message says what arrived, what was wanted, the likely cure and, where there is one, the next command.
"""

import difflib
from collections.abc import Iterable


class UimError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(UimError):
    exit_code = 2


class UnknownNameError(UsageError):
    """An unknown name; the message lists the known ones and names the nearest."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")


class ConfigError(UsageError):
    pass


class DataError(UimError):
    exit_code = 3


class MissingFileError(DataError):
    pass


class MalformedRowError(DataError):
    def __init__(self, path: object, line: int, why: str):
        super().__init__(f"{path}, line {line}: {why}. Mend or remove that line, then run the command again.")


class NonFiniteError(DataError):
    pass


class ShapeError(DataError):
    pass


class MismatchError(DataError):
    pass


class UnsupportedModelError(DataError):
    pass


class CorruptError(UimError):
    exit_code = 4


class OutputError(UimError):
    exit_code = 5


class NoRoomError(OutputError):
    pass


class LostProcessError(UimError):
    exit_code = 75

    def __init__(self, index: int, count: int, what: str):
        super().__init__(
            f"process {index} of {count} {what}. What was finished is kept: start the job again, on any number of "
            "processes, and it goes on."
        )


class TapError(UimError):
    exit_code = 6


class CoverageError(TapError):
    pass


class BudgetError(TapError):
    pass
