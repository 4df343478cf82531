"""Pictures with words in them: the words of a report that count, and the reports that an image finds."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.tasks.base import Cell, Picture
from vlp_bench.tasks.pictures import DPI, heated, rendered, truth
from vlp_bench.tasks.scoring import Scores, pairs, report_tokens
from vlp_bench.types import Tokens

#: How many words are marked (MGCA supplement, table 7), how many reports are shown.
WORDS, BEST = 10, 3
#: Reports that a joint encoder is shown to find in: it reads each pair anew.
JOINT_CANDIDATES = 64
MARK, OWN = "#b3261e", "#1b6e3c"


class Words(NamedTuple):
    """The W words of a text, and the numbers of the words that each of its T pieces is part of (-1 for none)."""

    names: list[str]
    of_piece: np.ndarray

    def sums(self, values: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "W ..."]:
        """Sum over the pieces of each word."""
        out = np.zeros((len(self.names), *values.shape[1:]))
        inner = self.of_piece >= 0
        np.add.at(out, self.of_piece[inner], values[inner])
        return out


def words_of(tokenizer: Tokenizer, tokens: Tokens, item: int) -> Words:
    """The words of a text as its tokenizer knows them; what is not in the vocabulary stays unknown."""
    ids, number = tokens.ids[item].tolist(), tokens.word[item].numpy()
    names = [""] * (int(number.max(initial=-1)) + 1)
    for piece, word in zip(ids, number, strict=True):
        if word >= 0:
            names[word] += tokenizer.vocab[piece].removeprefix("##").replace("\u2581", "")
    return Words(names, number)


@torch.inference_mode()
def important_words(cell: Cell, count: int) -> list[Picture]:
    """The ten words of a report to which the text encoder's [CLS] attends most, and where each is seen in the image.

    The weight of a word is the attention, mean over the heads of the last layer, summed over its pieces. Its map is
    there where the method scores words against patches; encoders that read both together have no such [CLS].
    """
    encoders = cell.encoders
    if encoders.text is None or encoders.aligner is None or count < 1:
        return []
    rows, studies = (part[:count] for part in pairs(cell))
    tokens = report_tokens(cell, studies)
    texts = encoders.text(tokens, saliency=True)
    images = encoders.vision(cell.pixels(rows))
    scores = encoders.token_similarity(images, texts)
    drawn = []
    for i, row in enumerate(rows):
        words = words_of(encoders.text.tokenizer, tokens, i)
        weights = words.sums(texts.saliency[i].numpy())  # type: ignore[index]
        maps = None
        if scores is not None:
            share = np.maximum(words.sums(np.ones(len(words.of_piece))), 1)[:, None]
            maps = (words.sums(scores[i].float().numpy()) / share).reshape(-1, *images.grid)
        gray = cell.pixels(np.array([row]))[0, 0].numpy()
        group = f"{encoders.name}: the ten words that weigh most"
        drawn.append(Picture(_words_picture(gray, words.names, weights, maps), truth(cell, row), group))
    return drawn


def _words_picture(gray: np.ndarray, names: Sequence[str], weights: np.ndarray, maps: np.ndarray | None) -> np.ndarray:
    order = np.argsort(-weights, kind="stable")[:WORDS]
    figure = Figure((9, 2.6 if maps is None else 3.7), DPI, layout="constrained")
    parts: Any = [figure] if maps is None else figure.subfigures(2, 1, height_ratios=[2.6, 1.1])
    image, text = parts[0].subplots(1, 2, width_ratios=[1, 2.6])
    image.imshow(gray, cmap="gray")
    image.set_anchor("N")
    image.axis("off")
    _flow(text, names, {int(i): weights[i] / max(weights[order[0]], 1e-9) for i in order})
    if maps is not None:
        unique = list({names[i]: int(i) for i in reversed(order)}.items())[::-1]
        for (name, i), axis in zip(unique, parts[1].subplots(1, WORDS), strict=False):
            axis.imshow(heated(gray, maps[i])[..., ::-1])
            axis.set_title(name, fontsize=8)
        for axis in parts[1].axes:
            axis.axis("off")
    return rendered(figure)


def _flow(axis: Axes, names: Sequence[str], marked: dict[int, float], width: int = 82, lines: int = 13) -> None:
    """Words in lines of a fixed-width font; those that are marked bold, the stronger the deeper their ground."""
    axis.set(xlim=(0, width), ylim=(lines, 0))
    axis.axis("off")
    column = line = 0
    for i, name in enumerate(names):
        if column + len(name) > width:
            column, line = 0, line + 1
        if line >= lines:
            axis.text(width, lines, "…", family="monospace", fontsize=9)
            break
        style: Any = {"weight": "bold", "color": MARK} if i in marked else {"color": "0.25"}
        box = {"facecolor": MARK, "alpha": 0.28 * marked[i], "edgecolor": "none", "pad": 1.2} if i in marked else None
        axis.text(column, line + 0.7, name, family="monospace", fontsize=9, va="baseline", bbox=box, **style)
        column += len(name) + 1


@torch.inference_mode()
def retrieved(cell: Cell, count: int) -> list[Picture]:
    """The first test images with their own report and the three that they find first."""
    if count < 1:
        return []
    rows, studies = pairs(cell)
    count = min(count, len(rows))
    if cell.encoders.aligner is None:
        rows, studies = rows[:JOINT_CANDIDATES], studies[:JOINT_CANDIDATES]
    scores = Scores(cell, rows, studies).block(0, count)
    group = f"{cell.encoders.name}: reports that an image finds"
    drawn = []
    for i in range(count):
        order = np.argsort(-scores[i], kind="stable")
        place = int(np.flatnonzero(order == i)[0]) + 1
        found = [(_report(cell, studies[j]), float(scores[i, j]), bool(j == i)) for j in order[:BEST]]
        gray = cell.pixels(rows[[i]])[0, 0].numpy()
        caption = f"own report at place {place} of {len(studies)}"
        drawn.append(Picture(_retrieved_picture(gray, _report(cell, studies[i]), found, place), caption, group))
    return drawn


def _report(cell: Cell, study: int) -> str:
    (sentences,) = cell.target.store.sentences(cell.encoders.inputs.form, np.array([study]))
    return ". ".join(s.rstrip(".") for s in sentences) + "."


def _retrieved_picture(
    gray: np.ndarray, own: str, found: Sequence[tuple[str, float, bool]], place: int, width: int = 84, most: int = 5
) -> np.ndarray:
    blocks = [(f"Own report, at place {place}", own, True)]
    blocks += [
        (f"{n}.  score {score:.2f}{',  its own' * mine}", t, mine) for n, (t, score, mine) in enumerate(found, 1)
    ]
    wrapped = [textwrap.wrap(report, width, max_lines=most, placeholder=" …") for _, report, _ in blocks]
    lines = sum(len(part) + 2 for part in wrapped)
    figure = Figure((9, max(2.6, 0.165 * lines)), DPI, layout="constrained")
    image, text = figure.subplots(1, 2, width_ratios=[1, 2.4])
    image.imshow(gray, cmap="gray")
    image.set_anchor("N")
    image.axis("off")
    text.set(xlim=(0, 1), ylim=(max(lines, 2.6 / 0.165), 0))
    text.axis("off")
    line = 0
    for (title, _, mine), part in zip(blocks, wrapped, strict=True):
        colour = OWN if mine else "0.2"
        text.text(0, line, title, fontsize=9, weight="bold", color=colour, va="top")
        text.text(0, line + 1.1, "\n".join(part), fontsize=8.5, color=colour, va="top")
        line += len(part) + 2
    return rendered(figure)
