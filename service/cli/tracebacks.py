"""Where an error arose, without anything that it or the code around it held."""

import traceback


def traceback_of(error: BaseException) -> str:
    """The traceback of an error and of all it came from: places and types.

    Neither local variables nor what the errors say: either may hold a key or the query of a URL.
    """
    lines = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        lines += [traceback_of(before), "which led to:"]
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            lines += [traceback_of(member), "which is one of:"]
    lines += ["".join(traceback.format_tb(error.__traceback__)).rstrip(), type(error).__qualname__]
    return "\n".join(lines)
