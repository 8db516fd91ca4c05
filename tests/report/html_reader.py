"""Reads a page as a browser would: tags, attributes and visible text, so tests need not search the source."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr", "base"}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.ids, self.open, self.styles = [], [], [], [], [], []
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def headings(self):
        return [int(tag[1]) for tag in self.tags if re.fullmatch("h[1-6]", tag)]

    @property
    def labels(self):
        return [value for _, name, value in self.attributes if name == "aria-label"]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def assert_safe(page):
    """Nothing that runs, nothing that loads."""
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject", "use"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}>"
        if name in ("href", "xlink:href") and tag != "image":
            assert value.startswith("#"), f"<{tag} {name}={value}>"
        if name == "fill":
            assert re.fullmatch(r"url\(#map\d+-\d+-\d+\)", value), f"<{tag} {name}={value}>"
        if (tag == "image" and "href" in name) or name in ("src", "srcset", "action", "data", "poster", "background"):
            assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", value), f"<{tag} {name}={value[:80]}>"
        if name == "style":
            assert re.fullmatch(r"min-width: [\d.]+rem", value)
    for css in page.styles:
        assert not re.search(r"url\s*\(|@import|expression\s*\(|image-set", css)
