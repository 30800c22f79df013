"""Prepared rows for people: samples with their trained tokens marked, numbers, and how long the samples are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from raymb.data.explaining import Shown, Stretch, explained, stretches_of
from raymb.data.locate import Located
from raymb.data.parallel import in_a_process
from raymb.data.prepare import Prepared, encoder_settings
from raymb.data.samples import samples_in
from raymb.data.store import RowFile
from raymb.errors import DataError, SpecError
from raymb.model.initial import model_path
from raymb.spec import RunSpec

TRAINED = "bold green"
_BAR = 40


def check_part(prepared: Prepared, part: str) -> None:
    """Raises DataError if there are no such rows."""
    parts = list(prepared.manifest["parts"])
    if part not in parts:
        raise DataError(f"--part {part}: there are no such rows", f"there are rows for {', '.join(parts)}")


def print_inspection(prepared: Prepared, spec: RunSpec, part: str, samples: int, ids: bool) -> None:
    """Print to standard output.

    Args:
        samples: how many rows' samples to show.
        ids: show token ids, too.
    """
    console = Console(highlight=False)
    numbers = prepared.manifest["parts"][part]
    _print_samples(console, prepared, spec, part, samples, ids)
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _number_rows(prepared, numbers):
        table.add_row(name, value)
    console.print(table)
    console.print("\ntokens in a sample")
    for line in _histogram_lines(numbers["length_histogram"]):
        console.print(line)
    for note in prepared.manifest["notes"]:
        console.print(f"warning: {note}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"\n{prepared.path}", markup=False, soft_wrap=True)


def _print_samples(console: Console, prepared: Prepared, spec: RunSpec, part: str, count: int, ids: bool) -> None:
    if not count:
        return
    console.print(Text.assemble("trained tokens are ", ("marked", TRAINED), "; [[ ]] where colours are not shown"))
    samples = list(islice(samples_in(RowFile(prepared.path / f"{part}.arrow")), count))
    origins = prepared.manifest["origins"][part][:count]
    origins += [""] * (len(samples) - len(origins))
    raws = rows_at(prepared.located, {*origins} - {""})
    shown = [
        Shown(stretches_of(sample.ids, sample.trained), raws.get(origin))
        for sample, origin in zip(samples, origins, strict=True)
    ]
    answers = in_a_process(explained, encoder_settings(spec, model_path(spec)), shown)
    for sample, origin, one, (texts, turns) in zip(samples, origins, shown, answers, strict=True):
        where = f"row {sample.row}" + (f", sample {sample.index} of {sample.count}" if sample.count > 1 else "")
        title = f"{where}, {len(sample.ids)} tokens" + (f", {origin}" if origin else "")
        console.print(Panel(_marked(one.stretches, texts, console, ids), title=Text(title), title_align="left"))
        for line in turns:
            console.print(f"  {line}", markup=False)


def _marked(stretches: list[Stretch], texts: list[str], console: Console, show_ids: bool) -> Text:
    """The decoded sample; stretches of trained tokens in colour, in double brackets where there is none."""
    text = Text()
    plain = not console.is_terminal or console.no_color
    for stretch, piece in zip(stretches, texts, strict=True):
        if show_ids:
            piece += f" {stretch.ids} "
        marked = f"[[{piece}]]" if plain and stretch.trained else piece
        text.append(marked, style=TRAINED if stretch.trained else "dim")
    return text


def rows_at(located: Sequence[Located], places: set[str]) -> dict[str, Any]:
    """The raw rows at these places ("rows.jsonl line 3"), read again."""
    found: dict[str, Any] = {}
    names = {place.rpartition(" ")[0] for place in places}
    for source in (source for one in located for sources in one.parts.values() for source in sources):
        for batch in source.batches():
            if len(found) == len(places):
                return found
            if batch.where in names:
                numbered = zip(batch.numbers, batch.rows, strict=True)
                found |= {place: row for number, row in numbered if (place := f"{batch.where} {number}") in places}
    return found


def _number_rows(prepared: Prepared, numbers: dict[str, Any]) -> list[tuple[str, str]]:
    length, rows = prepared.manifest["seq_length"], numbers["packed_rows"]
    room = rows * length
    found = [
        ("samples", f"{numbers['rows']:,}, {numbers['shortest']} to {numbers['longest']} tokens long"),
        ("rows of a batch", f"{rows:,} of {length:,} tokens" + (", packed" if prepared.manifest["packing"] else "")),
        ("tokens", f"{numbers['tokens']:,}: {numbers['packing_efficiency']:.1%} of the rows' room"),
        ("  trained", f"{numbers['trained_tokens']:,}: {numbers['trained_tokens'] / room:.1%} of the room"),
        ("  padding", f"{room - numbers['tokens']:,}: {1 - numbers['packing_efficiency']:.1%} of the room"),
        ("duplicates", f"{numbers['duplicate_rows']:,} samples occur before"),
    ]
    found += [
        ("truncated", f"{numbers['truncated_rows']:,} samples, {_share(numbers)} of all tokens"),
        ("left out", f"{numbers['dropped_rows']:,} rows, {numbers['empty_answers']:,} of them with empty answers"),
    ]
    sources = prepared.manifest["sources"]
    return found + [("from" if not i else "", _source(one)) for i, one in enumerate(sources)]


def _share(numbers: dict[str, Any]) -> str:
    cut = numbers["truncated_tokens"]
    return f"{cut / (cut + numbers['tokens']):.1%}"


def _source(one: dict[str, Any]) -> str:
    return f"{one['dataset']}: {one['used']:,} of {one['rows']:,} samples"


def _histogram_lines(histogram: dict[str, list[Any]]) -> list[str]:
    """A bar a bin."""
    edges, counts = histogram["edges"], histogram["rows"]
    most = max(counts)
    width = len(f"{edges[-1]:.0f}")
    return [
        f"{low:>{width}.0f} to {high:>{width}.0f}  {'#' * round(_BAR * count / most):<{_BAR}} {count:,}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def write_plot(prepared: Prepared, file: Path) -> None:
    """Histograms of the samples' lengths, a panel for each part, as PNG, SVG or PDF.

    Raises:
        SpecError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    parts = prepared.manifest["parts"]
    figure = Figure(figsize=(7, 2.6 * len(parts)), layout="constrained")
    for index, (part, numbers) in enumerate(parts.items()):
        axes = figure.add_subplot(len(parts), 1, index + 1)
        axes.stairs(numbers["length_histogram"]["rows"], numbers["length_histogram"]["edges"], fill=True)
        axes.set_ylabel("samples")
        axes.set_title(f"{part}: {numbers['rows']:,} samples, {numbers['tokens']:,} tokens", fontsize=10)
        axes.axvline(prepared.manifest["seq_length"], color="tab:red", linewidth=1, label="--seq_length")
        axes.legend(fontsize=8)
    axes.set_xlabel("tokens in a sample")
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise SpecError(f"--plot {file}: cannot be written ({error})") from None
