"""What scripts/draw-diagrams runs: SVG from a few boxes, arrows and words, readable on light and dark pages."""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
GPU = ("#bfdbfe", "#bbf7d0", "#fde68a", "#fbcfe8")
"""A colour for each GPU."""
PLAIN, DARK, LINE = "#f3f4f6", "#111827", "#4b5563"


class Drawing:
    """
    Args:
        title: what a reader hears who does not see it.
    """

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title = (width, height), title
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, text: str, colour: str = PLAIN) -> None:
        """Lines of text in the middle of a rectangle; the first one is bold if an empty line follows."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{colour}" stroke="{LINE}"/>'
        )
        lines = text.split("\n")
        bold = len(lines) > 1 and not lines[1]
        lines = [line for line in lines if line]
        first = y + height / 2 - 8 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 16 * number, line, bold=bold and not number)

    def text(self, x: float, y: float, text: str, anchor: str = "middle", bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{escape(text)}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float, both: bool = False) -> None:
        start = ' marker-start="url(#head)"' if both else ""
        self.parts.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{LINE}" stroke-width="1.5" '
            f'marker-end="url(#head)"{start}/>'
        )

    def svg(self) -> str:
        width, height = self.size
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{DARK}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<defs>{head}</defs>",
                f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def run_path() -> Drawing:
    """A run's path: what each part does, from the command to the tuned model."""
    drawing = Drawing(720, 430, "From flags and YAML to a tuned model: spec, checks, driver, Ray Train, ranks, export")
    drawing.text(20, 26, "where the command is given", "start", bold=True)
    drawing.box(20, 40, 130, 60, "flags, YAML,\nrecipe")
    drawing.box(180, 40, 130, 60, "spec\n\nchecked, resolved")
    drawing.box(340, 40, 170, 60, "model, plan, data\n\nread, laid out, prepared")
    drawing.box(540, 40, 160, 60, "driver\n\nlaunch.py")
    for x in (150, 310, 510):
        drawing.arrow(x, 70, x + 30, 70)
    drawing.text(20, 146, "the Ray cluster", "start", bold=True)
    drawing.box(540, 160, 160, 60, "Ray Train\n\nplaces and restarts ranks")
    drawing.arrow(620, 100, 620, 160)
    drawing.text(612, 134, "starts", "end")
    for number in range(3):
        rank = number if number < 2 else "N"
        drawing.box(20 + 165 * number, 160, 150, 60, f"rank {rank}\n\nBridge, Megatron", GPU[number])
    drawing.arrow(540, 190, 500, 190)
    drawing.text(20, 262, "the run directory", "start", bold=True)
    drawing.box(20, 276, 150, 60, "checkpoints/\n\nwhole, or not counted")
    drawing.box(185, 276, 150, 60, "metrics.jsonl\n\nevents, logs, failures")
    drawing.box(350, 276, 150, 60, "hf/, adapter/\n\nverified first")
    drawing.arrow(150, 220, 150, 276, both=True)
    drawing.text(158, 252, "save, resume", "start")
    drawing.arrow(280, 220, 280, 276)
    drawing.arrow(425, 220, 425, 276)
    drawing.text(433, 252, "export", "start")
    drawing.box(185, 364, 150, 46, "raymb runs, report")
    drawing.box(350, 364, 150, 46, "raymb generate,\nevaluate")
    drawing.arrow(260, 336, 260, 364)
    drawing.arrow(425, 336, 425, 364)
    return drawing


def data_parallel() -> Drawing:
    drawing = Drawing(640, 190, "Data parallel: each GPU has the whole model and its own rows; gradients are averaged")
    for number in range(4):
        x = 20 + 155 * number
        drawing.text(x + 67, 26, f"GPU {number}", bold=True)
        drawing.box(x, 38, 135, 34, f"rows {4 * number + 1} to {4 * number + 4}", PLAIN)
        drawing.arrow(x + 67, 72, x + 67, 92)
        drawing.box(x, 92, 135, 40, "all layers", GPU[number])
        if number:
            drawing.arrow(x - 20, 112, x, 112, both=True)
    drawing.text(320, 162, "after each step: sum the gradients of all copies")
    return drawing


def tensor_parallel() -> Drawing:
    drawing = Drawing(640, 230, "Tensor parallel: each GPU has a part of every matrix; results are summed")
    for layer in range(3):
        x = 90 + 180 * layer
        drawing.text(x + 70, 26, f"layer {layer + 1}", bold=True)
        for number in range(2):
            drawing.box(x, 40 + 70 * number, 140, 50, "half of each\nmatrix", GPU[number])
        drawing.arrow(x + 70, 90, x + 70, 110, both=True)
        if layer:
            for number in range(2):
                drawing.arrow(x - 40, 65 + 70 * number, x, 65 + 70 * number)
    for number in range(2):
        drawing.text(18, 69 + 70 * number, f"GPU {number}", "start", bold=True)
    drawing.text(320, 194, "in every layer: exchange the results between the GPUs of a group")
    drawing.text(320, 214, "sequence parallel: between the matrices each GPU keeps its part of the row")
    return drawing


def pipeline_parallel() -> Drawing:
    drawing = Drawing(640, 270, "Pipeline parallel: each GPU has some layers; micro-batches follow each other")
    for number in range(3):
        x = 60 + 190 * number
        drawing.text(x + 70, 26, f"GPU {number}", bold=True)
        drawing.box(x, 38, 140, 44, f"layers {8 * number + 1} to {8 * number + 8}", GPU[number])
        if number:
            drawing.arrow(x - 50, 60, x, 60, both=True)
    drawing.text(20, 116, "time, with 4 micro-batches: F is a forward pass, B a backward pass", "start")
    rows = [
        "F1 F2 F3 .. .. B1 F4 B2 .. B3 .. B4",
        ".. F1 F2 .. B1 F3 B2 F4 B3 .. B4 ..",
        ".. .. F1 B1 F2 B2 F3 B3 F4 B4 .. ..",
    ]
    for number, row in enumerate(rows):
        drawing.text(20, 148 + 36 * number, f"GPU {number}", "start")
        for slot, what in enumerate(row.split()):
            if what != "..":
                drawing.box(75 + 45 * slot, 130 + 36 * number, 43, 28, what, GPU[number] if what[0] == "F" else PLAIN)
    drawing.text(320, 258, "the gaps are the bubble: more micro-batches, or virtual stages, make it smaller")
    return drawing


def context_parallel() -> Drawing:
    drawing = Drawing(640, 190, "Context parallel: each GPU has all layers and two pieces of every row")
    for number in range(2):
        x = 40 + 300 * number
        drawing.text(x + 130, 26, f"GPU {number}", bold=True)
        for place, name in enumerate((("first", "last"), ("second", "third"))[number]):
            drawing.box(x + 135 * place, 38, 125, 34, f"{name} quarter", PLAIN)
            drawing.arrow(x + 62 + 135 * place, 72, x + 62 + 135 * place, 92)
        drawing.box(x, 92, 260, 40, "all layers", GPU[number])
    drawing.arrow(300, 112, 340, 112, both=True)
    drawing.text(320, 162, "in every attention: exchange keys and values")
    return drawing


def expert_parallel() -> Drawing:
    drawing = Drawing(640, 250, "Expert parallel: each GPU has some experts; tokens travel to theirs and back")
    for number in range(4):
        x = 20 + 155 * number
        drawing.text(x + 67, 26, f"GPU {number}", bold=True)
        drawing.box(x, 38, 135, 54, "own tokens,\nattention, router", PLAIN)
        drawing.box(x, 146, 135, 44, f"experts {2 * number + 1} and {2 * number + 2}", GPU[number])
        for other in range(4):
            drawing.arrow(x + 67, 92, 20 + 155 * other + 67, 146)
    drawing.text(320, 218, "in every MoE layer: each token goes to its experts, and the results come back")
    drawing.text(320, 238, "the same GPUs are data parallel copies of everything but the experts")
    return drawing


DRAWINGS = {
    "run-path": run_path,
    "data": data_parallel,
    "tensor": tensor_parallel,
    "pipeline": pipeline_parallel,
    "context": context_parallel,
    "expert": expert_parallel,
}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
