"""What pages are asked, with a browser and without."""

import html.parser

# Text on its ground, as WCAG 2 counts: the lowest ratio of luminances, and where it is.
CONTRAST = """() => {
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const rgba = text => text.match(/[\\d.]+/g).map(Number);
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = [Infinity, ""];
  for (const node of document.body.querySelectorAll("*")) {
    const hasText = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility() || node.closest("script, noscript")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(rgba(node instanceof SVGElement ? style.fill : style.color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, `${node.tagName} ${node.textContent}`];
  }
  return [...lowest, rgba(getComputedStyle(document.body).backgroundColor)];
}"""


class Reader(html.parser.HTMLParser):
    """Collects tags with attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data
