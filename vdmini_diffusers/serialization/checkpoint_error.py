"""How files that cannot be used are refused."""

from reprlib import Repr


# For messages: what is quoted from an untrusted file may be millions of characters long.
_short = Repr()
_short.maxstring = _short.maxother = 100
short_repr = _short.repr


def short_message(error: BaseException) -> str:
    """The message of another library's error on one line, cut: some repeat all that they were given."""
    text = " ".join(str(error)[:4000].split())[:1000]
    return text.encode("utf-8", "backslashreplace").decode()  # half a character cannot be printed


class CheckpointError(ValueError):
    """Weights that cannot be used; the message names the file and, where there is one, the tensor."""
