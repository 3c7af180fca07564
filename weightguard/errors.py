"""Every error weightguard raises on purpose, and the exit code each one ends in.

    WeightguardError
      GateFailed        1   the gate says no (only that)
      UsageError        2   options that do not fit together, values out of range
      InputError        3   an input is missing, damaged or does not match
        CheckpointError       a model or adapter directory, a shard, a header, a config
        MismatchError         two inputs that must agree do not
        DataError             calibration or evaluation data
      OutputError       4   the output exists, or another run holds it
      SystemFailure     5   the operating system or the network failed
      UnsupportedError  6   architecture, quantised weights, adapter kind
      UndecidedError    7   no answer could be reached; never a pass

A message is one line: what was found, what was needed, what to do, with tensor and file.
"""


class WeightguardError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 70


class GateFailed(WeightguardError):
    exit_code = 1


class UsageError(WeightguardError):
    exit_code = 2


class InputError(WeightguardError):
    exit_code = 3


class CheckpointError(InputError):
    pass


class MismatchError(InputError):
    pass


class DataError(InputError):
    pass


class OutputError(WeightguardError):
    exit_code = 4


class SystemFailure(WeightguardError):
    exit_code = 5


class UnsupportedError(WeightguardError):
    exit_code = 6


class UndecidedError(WeightguardError):
    exit_code = 7


# What Python, torch, the kernel and the loader of shared objects say where there is no memory left.
_NO_MEMORY = ("allocate memory", "failed to map segment", "cannot map zero-fill pages", "out of memory interning")


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that there is no memory left, in whatever words."""
    while error is not None:
        words = isinstance(error, RuntimeError | ImportError) and str(error).lower()
        if isinstance(error, MemoryError) or (words and any(each in words for each in _NO_MEMORY)):
            return True
        error = error.__cause__ or error.__context__
    return False
