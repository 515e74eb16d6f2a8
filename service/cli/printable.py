"""What comes from outside (names of files, words of a server) as text that a terminal shows and does not obey."""


def printable(text: str) -> str:
    """The text in one line, with every character that is not printed written as its escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
