"""What a bank of sentence prototypes does to sentences, and images that are drawn back from their patches."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from vlp_bench.data.store import lies_in
from vlp_bench.encoders.decoders import ImageDecoder
from vlp_bench.encoders.sentence_aligner import SentenceAligner
from vlp_bench.tasks.base import Cell, Picture
from vlp_bench.tasks.pictures import DPI, enlarged, rendered, side_by_side, truth
from vlp_bench.tasks.scoring import pairs, report_tokens

#: Two sentences that say the same, and one that says the opposite.
SENTENCES = (
    "no pleural effusion is seen",
    "there is no effusion",
    "a pleural effusion is present",
    "no pneumothorax is seen",
    "there is no evidence of pneumothorax",
    "a pneumothorax is present",
    "the heart is enlarged",
    "there is cardiomegaly",
    "the heart size is normal",
)
#: What a sentence is about, by the first word that it has of these, and what says that it is not so.
ABOUT = {
    "effusion": r"effusion",
    "pneumothorax": r"pneumothora",
    "heart": r"heart|cardi",
    "edema": r"edema|congest",
    "fracture": r"fractur",
    "nodule or mass": r"nodul|mass|lesion",
    "atelectasis": r"atelecta",
    "opacity": r"opaci|consolid|pneumonia",
    "device": r"tube|line|cathet|pacemaker|device|picc",
}
ABSENT = r"\b(?:no|not|without|normal|free|clear|absent|negative)\b|within"
#: Sentences that are laid out, and images that are drawn.
LAID_OUT, PAIRS = 400, 4
#: Prototypes that have a column of their own, at most, and the weight from which they do.
TOLD_APART, LEAST = 16, 0.02


def bank_of(cell: Cell) -> SentenceAligner | None:
    """The aligner, if it draws sentences from a bank of prototypes that was trained."""
    aligner = cell.encoders.aligner
    return aligner if isinstance(aligner, SentenceAligner) and bool(aligner.bank.in_use) else None


@torch.inference_mode()
def prototypes(cell: Cell) -> list[Picture]:
    """Which prototypes sentences take (PRIOR supplement, figure 2), and where they lie (figure 1)."""
    aligner = bank_of(cell)
    if aligner is None:
        return []
    name = cell.encoders.name
    taken = _weights(aligner, _vectors(cell, aligner, SENTENCES))
    pictures = [
        Picture(_queries(SENTENCES, taken.numpy()), "weights of the prototypes", f"{name}: what sentences query")
    ]
    sentences = _sentences(cell)
    if len(sentences) >= 10:
        raw = _vectors(cell, aligner, sentences)
        known = _weights(aligner, raw) @ aligner.bank.vectors
        laid = {"without prototypes": _layout(raw), "as prototypes": _layout(known)}
        caption = f"t-SNE of {len(sentences)} sentences; filled: present, hollow: absent"
        pictures.append(Picture(_scatter(sentences, laid), caption, f"{name}: sentences with and without prototypes"))
    return pictures


def _vectors(cell: Cell, aligner: SentenceAligner, sentences: Sequence[str]) -> Float[Tensor, "N D"]:
    """Each sentence as a report of its own, without prototypes."""
    found = aligner.sentences(cell.encoders.encode_texts(sentences))
    return found.vectors[:, 0]


def _weights(aligner: SentenceAligner, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
    return (aligner.bank.logits(vectors[None])[0] / aligner.bank.temperature).softmax(-1)


def _queries(sentences: Sequence[str], weights: Float[np.ndarray, "N K"]) -> np.ndarray:
    """The prototypes that any sentence takes most of, each a column; the rest of the weight in the last one."""
    shown = np.argsort(-weights.max(0), kind="stable")[:TOLD_APART]
    shown = shown[weights[:, shown].max(0) >= LEAST]
    shown = shown[np.argsort(weights[:, shown].argmax(0), kind="stable")]
    table = np.concatenate([weights[:, shown], 1 - weights[:, shown].sum(1, keepdims=True)], axis=1)
    figure = Figure((9, 3.8), DPI, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(shown) + 1), [*map(str, shown), "others"], fontsize=8, rotation=60)
    axis.set_yticks(range(len(sentences)), sentences, fontsize=9)
    axis.set_xlabel(f"prototype, of {weights.shape[1]}", fontsize=9)
    axis.hlines(np.arange(3, len(sentences), 3) - 0.5, -0.5, table.shape[1] - 0.5, color="white", linewidth=3)
    figure.colorbar(image, label="weight", pad=0.01)
    return rendered(figure)


def _sentences(cell: Cell) -> list[str]:
    """Different sentences of the split's reports that are about something in ABOUT, drawn at random."""
    store, form = cell.target.store, cell.encoders.inputs.form
    texts = store.sentences(form, np.flatnonzero(lies_in(store.studies["split"], cell.split)))
    found = sorted({s for text in texts for s in text if about(s)})
    drawn = np.random.default_rng(cell.seed).permutation(len(found))[:LAID_OUT]
    return [found[i] for i in np.sort(drawn)]


def about(sentence: str) -> tuple[str, bool] | None:
    """What a sentence is about, and whether it says that it is there.

    >>> about("There is no pleural effusion."), about("Mild edema"), about("Unchanged since yesterday.")
    (('effusion', False), ('edema', True), None)
    """
    places = {name: re.search(pattern, sentence, re.IGNORECASE) for name, pattern in ABOUT.items()}
    found = {name: match.start() for name, match in places.items() if match}
    if not found:
        return None
    return min(found, key=lambda name: found[name]), re.search(ABSENT, sentence, re.IGNORECASE) is None


def _layout(vectors: Float[Tensor, "N D"]) -> Float[np.ndarray, "N 2"]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(vectors.numpy())


def _scatter(sentences: Sequence[str], laid: dict[str, np.ndarray]) -> np.ndarray:
    figure = Figure((9, 4.6), DPI, layout="constrained")
    says = [about(s) or ("", True) for s in sentences]
    for axis, (title, places) in zip(figure.subplots(1, 2), laid.items(), strict=True):
        for number, name in enumerate(ABOUT):
            colour = f"C{number}"
            for there, face in ((True, colour), (False, "none")):
                chosen = np.array([s == (name, there) for s in says])
                label = name if there else None
                axis.scatter(
                    *places[chosen].T, s=18, facecolors=face, edgecolors=colour, linewidths=0.9, alpha=0.7, label=label
                )
        axis.set(title=title, xticks=[], yticks=[])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return rendered(figure)


@torch.inference_mode()
def reconstructions(cell: Cell) -> list[Picture]:
    """Test images, each with what the decoder draws from all of its patches and what they gathered from its report."""
    aligner, decoder = cell.encoders.aligner, cell.encoders.parts.get("image_decoder")
    if not isinstance(aligner, SentenceAligner) or not isinstance(decoder, ImageDecoder) or not _trained(decoder):
        return []
    rows, studies = (part[:PAIRS] for part in pairs(cell))
    vision, pixels = cell.encoders.vision, cell.pixels(rows)
    images = vision(pixels)
    texts = cell.encoders.text(report_tokens(cell, studies))  # type: ignore[misc]
    patches = aligner.embed_patches(images)
    gathered = aligner.attention(patches, *aligner.known(texts)).of_patches
    maps = [x.transpose(1, 2).unflatten(2, images.grid) for x in (patches, gathered)]
    drawn = decoder(*maps) * vision.std[:, :1] + vision.mean[:, :1]
    grey = (drawn.clamp(0, 1) * 255).to(torch.uint8)
    shown = [side_by_side(*(enlarged(part[i, 0].numpy()) for part in (pixels, grey))) for i in range(len(rows))]
    group = f"{cell.encoders.name}: images drawn from their patches and reports"
    captions = [f"input and reconstruction; {truth(cell, row)}" for row in rows]
    return [Picture(image, caption, group) for image, caption in zip(shown, captions, strict=True)]


def _trained(decoder: ImageDecoder) -> bool:
    """Whether any batch went through it in training: before its stage of pre-training it is as it was drawn."""
    return all(bool(n > 0) for name, n in decoder.named_buffers() if name.endswith("num_batches_tracked"))
