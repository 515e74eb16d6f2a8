"""The words of a page, whose HTML is checked on the way."""

from html.parser import HTMLParser

BLOCKS = {"dt", "dd", "td", "th", "li", "p", "h1", "h2", "h3", "rect"}
VOID = {"meta", "link", "input", "rect", "path", "circle"}


class Balanced(HTMLParser):
    """Fails where an element is not closed, or a style or a script is written into the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert "style" not in names
        assert not [name for name in names if name.startswith("on")]
        assert tag != "style"
        assert tag != "script" or names.get("src")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "style" not in dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in BLOCKS:
            self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def text_of(html: str) -> str:
    """The words of a page, with single spaces."""
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return " ".join(parser.text.split())
