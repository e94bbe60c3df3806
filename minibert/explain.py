"""python -m minibert explain: what in a text or window moved a run's answer, in the terminal or as a page."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minibert.attribution import STEPS, attention_weights, attribute
from minibert.classifier import Classifier
from minibert.data import chosen_rows, read_table
from minibert.data.table import Layout
from minibert.errors import InputError
from minibert.files import write_output
from minibert.lines import cell, fold, has_colours, lacks
from minibert.pages import check_page, escaped, page, shade, table
from minibert.predict import KINDS, PORTION, STDIN, read_inputs
from minibert.tokenizer import Span
from minibert.training.folder import read_run

HALF = 22  # columns of a bar to either side
LARGE = 0.05  # a gap of so much of the difference is told what helps
BLUE, ORANGE = 34, 33  # a terminal's, for and against


@dataclass(frozen=True)
class Word:
    """A word, or a window's number, and what it moved. Its letters are `start` to `end` of text 0 or 1."""

    word: str
    value: float
    text: int
    start: int
    end: int


@dataclass(frozen=True)
class Explanation:
    """What each word added to the score of `label`: its logit less the mean of all logits.

    The baseline is the same text with [PAD] in place of every token but [CLS] and [SEP], which so get nothing.

    Attributes:
        texts: the text, and the second one where the run has pairs; a window as the text that it became.
        label, probability: the class that is asked about; predicted: the answer; true: what the data say, or None.
        steps: of integrated gradients; 0: gradient x input.
        difference: the score of the text less that of the baseline; gap: the sum of all words less that.
        cut: whether the text was longer than the model reads.
        channels: of a window: what each row of its numbers is; None: it is a text.
    """

    texts: list[str]
    words: list[Word]
    label: str
    probability: float
    predicted: str
    steps: int
    difference: float
    gap: float
    cut: bool = False
    true: str | None = None
    channels: list[str] | None = None

    @property
    def method(self) -> str:
        return f"integrated gradients, {self.steps} steps" if self.steps else "gradient x input"

    def answer(self) -> str:
        asked = "" if self.label == self.predicted else f"; asked about {self.label!r}, which has"
        true = "" if self.true is None else f"; the data say {self.true!r}"
        return f"predicted {self.predicted!r}{asked} {self.probability:.3f}{true}"

    def balance(self) -> str:
        """How complete the attribution is, and what helps where it is not."""
        total = self.difference + self.gap
        line = f"sum {total:+.3f}, difference from the baseline {self.difference:+.3f}: gap {self.gap:+.3f}"
        if self.steps and abs(self.gap) > LARGE * abs(self.difference):
            return f"{line}; --steps {4 * self.steps} may close it"
        return line if self.steps else f"{line} (gradient x input is not complete)"

    def grid(self) -> list[list[Word | None]]:
        """A window's numbers, a row a channel; None where the text was cut."""
        rows = len(self.channels or [])
        steps = len(self.texts[0].split(" ")) // rows
        by_place = {self.texts[0].count(" ", 0, word.start): word for word in self.words}
        return [[by_place.get(row * steps + step) for step in range(steps)] for row in range(rows)]

    def _repr_html_(self) -> str:
        return html_of(self)


def explain(
    run: str | Path | Classifier,
    inputs: Any,
    pairs: Sequence[str] | None = None,
    label: str | None = None,
    steps: int = STEPS,
) -> list[Explanation]:
    """What each word moved, in float32.

    Args:
        run: a run's folder, or its Classifier.
        inputs: n texts or windows (n, steps, channels); pairs: n second texts: as Classifier.predict.
        label: the class that is asked about; None: of each text the predicted one.
        steps: gradients a text; 0: gradient x input.

    Raises:
        InputError: as Classifier.predict; no such class.
    """
    path, head = (run.path, run.head) if isinstance(run, Classifier) else (Path(run), None)
    classifier = Classifier(path, head, precision="fp32")
    if label is not None and label not in classifier.labels:
        raise InputError(f"no class {label!r}; the run has {', '.join(classifier.labels)}")
    if steps < 0:
        raise InputError(f"steps is {steps}; it must be at least 0")
    texts, pairs = classifier.texts(inputs, pairs)
    model, encoding = classifier.network.model, classifier.encoding
    channels = None
    if encoding is not None:
        channels = [",".join(encoding.names)] if encoding.kind == "grid" else encoding.names
    made = []
    for i, text in enumerate(texts):
        both = [text] if pairs is None else [text, pairs[i]]
        ids, types = (part.to(model.bert.embeddings.word.weight.device) for part in tensors(classifier, both))
        spans, cut = classifier.tokenizer.spans(text, both[1] if both[1:] else None, classifier.max_length)
        with torch.no_grad():
            p = model(ids, None, types)[0].double().softmax(dim=0)
        predicted = int(p.argmax())
        asked = predicted if label is None else classifier.labels.index(label)
        baseline = ids.clone()
        baseline[0, [span is not None for span in spans]] = model.config.pad_token_id
        found = attribute(model, ids, baseline, ids.new_tensor([asked]), None, types, steps)
        made.append(
            Explanation(
                both,
                words_of(both, spans, found.tokens[0].tolist(), by_space=channels is not None),
                classifier.labels[asked],
                float(p[asked]),
                classifier.labels[predicted],
                steps,
                float(found.difference),
                float(found.gap),
                cut,
                channels=channels,
            )
        )
    return made


def tensors(classifier: Classifier, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and token types (1, S) of a text, or of a text and its second one."""
    ids, types, _ = classifier.tokenizer.encode(texts[:1], texts[1:] or None, classifier.max_length)
    return torch.tensor(ids), torch.tensor(types)


def words_of(texts: list[str], spans: list[Span | None], values: list[float], by_space: bool) -> list[Word]:
    """Pieces joined to words, as BERT's tokenizer tells these apart (don ' t); `by_space`: as blanks do (0.98)."""
    words: dict[tuple[int, int], list[tuple[Span, float]]] = {}
    for span, value in zip(spans, values):
        if span is not None:
            place = texts[0].count(" ", 0, span.start) if by_space else span.word
            words.setdefault((span.text, place), []).append((span, value))
    made = []
    for (text, _), pieces in words.items():
        start, end = pieces[0][0].start, pieces[-1][0].end
        made.append(Word(texts[text][start:end], sum(value for _, value in pieces), text, start, end))
    return made


# The terminal


def in_terminal(explanation: Explanation, colours: bool = False, plain: bool = False) -> list[str]:
    """Lines of at most 80 columns: a word, what it moved, and a bar; of a window, a number a step.

    Args:
        colours: blue for the class, orange against it.
        plain: ASCII alone.
    """
    lines = [explanation.answer(), f"{explanation.method}: what each moved towards {explanation.label!r}"]
    if explanation.cut:
        lines.append("longer than the model reads: the end was cut")
    lines = [fold(line) for line in lines]
    most = max((abs(word.value) for word in explanation.words), default=0.0)

    def paint(text: str, value: float) -> str:
        return f"\x1b[{BLUE if value > 0 else ORANGE}m{text}\x1b[0m" if colours and text.strip() else text

    if explanation.channels is None:
        for i, word in enumerate(explanation.words):
            if word.text and not explanation.words[i - 1].text:
                lines.append("second text")
            bar = bar_of(word.value, most, plain)
            lines.append(f"  {cell(word.word, 20)} {word.value:+9.3f}  {paint(bar, word.value)}".rstrip())
    else:
        lines += window_lines(explanation, most, paint)
    return [*lines, fold(explanation.balance())]


def bar_of(value: float, most: float, plain: bool) -> str:
    """To the right of the middle for the class, to the left against it; half a column is the least that is seen."""
    full, half_right, half_left, middle = "##=|" if plain else "█▌▐│"
    if plain:
        half_right = half_left = "="
    halves = round(2 * HALF * abs(value) / most) if most else 0
    bar, rest = full * (halves // 2), halves % 2
    if value > 0:
        return " " * HALF + middle + bar + half_right * rest
    return f"{half_left * rest + bar:>{HALF}}{middle}"


def window_lines(explanation: Explanation, most: float, paint: Callable[[str, float], str]) -> list[str]:
    """A row a channel, a number a step; so many steps a line as there is room for."""
    rows, names, room = explanation.grid(), explanation.channels or [], 16
    lines = ["scaled so that the largest is 99"]
    for start in range(0, len(rows[0]), room):
        steps = range(start, min(start + room, len(rows[0])))
        lines.append(f"  {'step':<9}" + "".join(f"{step + 1:>4}" for step in steps))
        for name, row in zip(names, rows):
            numbers = (
                "   -" if word is None else paint(f"{round(99 * word.value / most) if most else 0:>4}", word.value)
                for word in row[start : start + room]
            )
            lines.append(f"  {cell(name, 9)}{''.join(numbers)}")
    sums = [f"{name} {sum(word.value for word in row if word):+.3f}" for name, row in zip(names, rows)]
    return [*lines, fold(f"by channel: {', '.join(sums)}")]


# The page


def html_of(explanation: Explanation) -> str:
    """A part of a page, or what a notebook shows: the text with its words shaded, or a window as squares."""
    most = max((abs(word.value) for word in explanation.words), default=0.0)
    parts = [f"<p><strong>{escaped(explanation.answer())}</strong><br>{escaped(explanation.method)}:"
             f" {key(explanation.label)}</p>"]  # fmt: skip
    if explanation.channels is None:
        for place, text in enumerate(explanation.texts):
            words = [word for word in explanation.words if word.text == place]
            parts.append(f'<p style="line-height: 2; white-space: pre-wrap">{shaded(text, words, most)}</p>')
        rows = [(word.word, word.value) for word in sorted(explanation.words, key=lambda word: -abs(word.value))]
        parts.append(f"<details><summary>all {len(rows)} words, the largest first</summary>"
                     f"{table(['word', 'moved'], rows)}</details>")  # fmt: skip
    else:
        parts.append(squares(explanation, most))
    if explanation.cut:
        parts.append("<p>Longer than the model reads: the end was cut.</p>")
    parts.append(f'<p style="opacity: 0.75">{escaped(explanation.balance())}</p>')
    return f"<div>{''.join(parts)}</div>"


def key(label: str) -> str:
    patches = ((1.0, f"towards {label!r}"), (-1.0, "against it"))
    return ", ".join(
        f'<span style="background: {shade(sign, 1.0)}; padding: 0 0.3em; border-radius: 3px">{escaped(words)}</span>'
        for sign, words in patches
    )


def shaded(text: str, words: list[Word], most: float) -> str:
    """All of `text`, each word with its colour behind it and its number as a tip."""
    parts, at = [], 0
    for word in words:
        parts.append(escaped(text[at : word.start]))
        parts.append(
            f'<span style="background: {shade(word.value, most)}; padding: 0.15em 0; border-radius: 3px"'
            f' title="{word.value:+.3f}">{escaped(text[word.start : word.end])}</span>'
        )
        at = word.end
    return "".join(parts) + f'<span style="opacity: 0.5">{escaped(text[at:])}</span>'


def squares(explanation: Explanation, most: float) -> str:
    """A window as an SVG: a row a channel, a square a step, the number that the model read in it."""
    rows, names = explanation.grid(), explanation.channels or []
    side, high = max(28, 9 + 7 * max(len(word.word) for row in rows for word in row if word)), 28
    left = 12 + 7 * max(map(len, names))
    width, height = left + side * len(rows[0]), 18 + high * len(rows)
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" font-size="11" font-family="sans-serif"'
             ' fill="currentColor" style="max-width: 100%; height: auto">',
             "<title>What each step of each channel moved</title>"]  # fmt: skip
    for step in range(len(rows[0])):
        parts.append(f'<text x="{left + side * (step + 0.5):.0f}" y="11" text-anchor="middle">{step + 1}</text>')
    for y, (name, row) in enumerate(zip(names, rows)):
        middle = 18 + high * y + 18
        parts.append(f'<text x="{left - 6}" y="{middle}" text-anchor="end">{escaped(name)}</text>')
        for step, word in enumerate(row):
            if word is not None:
                x, centre = left + side * step, left + side * (step + 0.5) - 1
                parts.append(
                    f'<g><title>{word.value:+.3f}</title><rect x="{x}" y="{18 + high * y}" width="{side - 2}"'
                    f' height="{high - 2}" rx="3" fill="{shade(word.value, most)}"/>'
                    f'<text x="{centre:.0f}" y="{middle}" text-anchor="middle">{escaped(word.word)}</text></g>'
                )
    return "".join(parts) + "</svg>"


# The command


@dataclass(frozen=True)
class Request:
    """What is asked: inputs and second texts as Classifier.predict takes them, and true labels where the data say."""

    inputs: Any
    pairs: list[str] | None
    true: list[str | None]


def read_request(
    classifier: Classifier,
    source: str | None,
    pair: str | None,
    row: int | None,
    charset: str,
    columns: Mapping[str, str] | None = None,
) -> Request:
    """A file or standard input as predict reads them, else the text itself; or a row of the validation data.

    Raises:
        InputError: none of them or two; as predict; not a row of the validation data.
    """
    if row is not None and source is None:
        return validation_row(classifier, row)
    if source is None or row is not None:
        raise InputError("give a text, a file, or - for standard input; or --row N, of the validation data")
    if pair is not None:
        return Request([source], [pair], [None])
    path = Path(source)
    looks_like_a_file = path.suffix.lower() in KINDS and not any(c.isspace() for c in source)
    if source == STDIN or looks_like_a_file or (len(source) < 256 and path.is_file()):
        if source != STDIN and not path.is_file():
            raise InputError(f"{source}: no such file; a text that ends so must have a blank in it")
        names: dict[str, Any] = dict(columns or {})
        layout = Layout.of(replace(classifier.config, **names))
        portions = read_inputs(classifier, source, charset, layout)
        inputs, pairs = next(portions)
        if next(portions, None) is not None:
            raise InputError(f"{source}: more than {PORTION:,} texts; explain some of them")
        return Request(inputs, pairs, [None] * len(inputs))
    if classifier.encoding is not None:
        raise InputError(f"{classifier.path} was trained on windows: give an .npz with x, or --row N")
    if classifier.pairs:
        raise InputError(f"{classifier.path} was trained on pairs of texts: give --text-b TEXT, or a file")
    return Request([source], None, [None])


def validation_row(classifier: Classifier, row: int) -> Request:
    """Row `row` of the run's data, from 0, as the predictions of eval.py count; of the validation split alone."""
    config, content = read_run(classifier.path)
    data = read_table(config)
    if data.sha256 != content["dataset"]["sha256"]:
        raise InputError(f"{config.data} changed since {classifier.path} was trained")
    val = chosen_rows(config, data)["val"].tolist()
    if row not in val:
        some = ", ".join(map(str, val[:5]))
        raise InputError(f"--row {row}: not a validation row; {len(val):,} are: {some}, ... (eval.py --predictions)")
    pick = slice(row, row + 1)
    if data.windows is not None:
        return Request(data.windows[pick], None, [data.labels[row]])
    assert data.texts is not None  # a table has windows or texts
    return Request(data.texts[pick], None if data.pairs is None else list(data.pairs[pick]), [data.labels[row]])


def explain_command(
    run: Path,
    source: str | None = None,
    *,
    pair: str | None = None,
    row: int | None = None,
    label: str | None = None,
    steps: int = STEPS,
    attention: str | None = None,
    out: Path | None = None,
    charset: str = "utf-8",
    columns: Mapping[str, str] | None = None,
) -> None:
    """Print what moved each answer, or write it as a page; or draw a layer's attention.

    Args:
        source: a text, a file as predict reads it, or "-"; pair: the second text; row: of the validation data.
        charset, columns: of a file, as predict_file.
        attention: LAYER or LAYER.HEAD, counted from 1; needs `out`, .svg or .html.

    Raises:
        InputError: as explain and read_request; no such layer or head; `out` cannot be written.
    """
    if out is None and attention is not None:
        raise InputError("--attention draws a picture: give --out FILE.svg or FILE.html")
    if out is not None:
        check_page(out, (".html",) if attention is None else (".svg", ".html"))
    classifier = Classifier(run, precision="fp32")
    request = read_request(classifier, source, pair, row, charset, columns)
    if attention is not None and out is not None:
        text = attention_picture(classifier, request, attention, out.suffix.lower())
    else:
        found = explain(classifier, request.inputs, request.pairs, label, steps)
        found = [replace(each, true=true) for each, true in zip(found, request.true)]
        if out is None:
            colours, plain = has_colours(sys.stdout), lacks(sys.stdout, "█▌▐│")
            print("\n\n".join("\n".join(in_terminal(each, colours, plain)) for each in found))
            return
        text = page(f"What moved the answers of {run.resolve().name}", "\n<hr>\n".join(map(html_of, found)))
    write_output(out, lambda beside: beside.write_text(text, encoding="utf-8"))
    print(out)


def attention_picture(classifier: Classifier, request: Request, which: str, suffix: str) -> str:
    """An SVG, or a page around it: of one head, or of all of a layer, what share each token gives to each."""
    from minibert.lab import drawing
    from minibert.lab.pictures import attention

    drawing.check_matplotlib()
    model = classifier.network.model
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    numbers = re.fullmatch(r"(\d{1,4})(?:\.(\d{1,4}))?", which)
    layer, head = (int(numbers[1]), int(numbers[2] or 0)) if numbers else (0, 0)
    if not 1 <= layer <= layers or not (head or not (numbers and numbers[2])) or head > heads:
        raise InputError(f"--attention {which}: give LAYER or LAYER.HEAD, layers 1 to {layers}, heads 1 to {heads}")
    texts, pairs = classifier.texts(request.inputs, request.pairs)
    if len(texts) != 1:
        raise InputError(f"--attention draws one text; got {len(texts)}")
    ids, types = tensors(classifier, texts + (pairs or []))
    device = model.bert.embeddings.word.weight.device
    weights = attention_weights(model.bert, ids.to(device), None, types.to(device))[layer - 1][0].cpu().numpy()
    tokens = [str(classifier.tokenizer.backend.id_to_token(i)) for i in ids[0].tolist()]
    shown = range(1, heads + 1) if not head else [head]
    title = f"Attention, layer {layer}" + (f", head {head}" if head else "")
    svg = attention(title, {f"head {number}": weights[number - 1] for number in shown}, tokens)
    if suffix == ".svg":
        return svg
    wide = 1.35 * float(svg.split('width="')[1].split("pt")[0])  # a little larger than on paper
    figure = drawing.inline(svg, "attention", title)
    return page(
        f"{title}: {classifier.path.resolve().name}",
        f'<figure style="margin: 0; max-width: {wide:.0f}px">{figure}</figure>',
    )
