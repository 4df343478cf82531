"""REFERS: radiograph representations supervised by free-text reports (Zhou et al., Nature Machine Intelligence 2022).

One vision transformer encodes the views of a study, which are fused and supervised by the report in two ways:

    report generation   a decoder writes the report from the fused patches: L = -sum_t log p(c_t | c_<t, study)
    consistency         the fused feature v of a study finds its report's feature t over the batch: cos(v, t) / tau

`variant=paper` follows the paper; where it is silent (size of the decoder, temperature, head of the report's feature)
it takes the value of the authors' code. The width of the fusion network is ours, as that code has none.
`variant=official` does what the code does. Every difference:

    |                          | paper                       | official                           | source of paper   |
    |--------------------------|-----------------------------|------------------------------------|-------------------|
    | recurrent concatenation  | [CLS] beside every patch    | [CLS] added to every patch         | transformer       |
    | view fusion              | network, softmax over the   | one linear layer a view, sigmoid;  | cross-supervision |
    |                          | views; one weight a view    | a gate for each patch of each view |                   |
    | feature of a study       | fused                       | [CLS] of the views, not fused      | cross-supervision |
    | fewer than V images      | all, then one of them again | V draws with replacement           | cross-supervision |
    | more than V images       | V of them                   | V draws with replacement           | cross-supervision |
    | consistency              | image to report             | 0.75 image to report, and 0.25     | cross-supervision |
    |                          |                             | report to image as a number        |                   |
    |                          |                             | without gradient                   |                   |
    | contrast over            | all processes               | one process                        | implied           |
    | mean of the words' loss  | over all processes          | over one process                   | implied           |
    | [UNK] in a report        | a word                      | padding: not read, not predicted   | implied           |
    | learning rate of decoder | that of the text encoder    | that of the image encoder          | training          |
    | decay of BERT's norms    | no                          | yes                                | training          |
    | Lookahead                | no                          | 5 steps, 0.5                       | training          |

    Sources are the paper's methods: Radiograph Transformer, Cross-supervised Learning, Training and testing.
    Both: the decoder is given the true words before a token; the paper's formula conditions on those it predicted,
    and its text says nothing else of them. In validation and with `eval()` views come in order and the first is the one
    that is repeated.
    Over which processes: `across_processes`, where it is given.
    In the presets, not here: rate, batch, steps, clipping, the epoch that is kept, image weights, ReLU, dropout of the
    image encoder; of the code, left and right swapped as letters ("bright"; `inputs.swap`), long reports for the
    decoder that lose their end (`inputs.caption_end`).
    Alike by another name: a position that is concatenated to a patch before a linear layer is one that is added.
    Not here: rotation, brightness and contrast of the paper; of the code, crops of 5 to 100 %, colour, mirroring of
    single views while the report follows the first, BERT's pre-trained pooler.
    An option here: the decoder's own vocabulary of 10,000 SentencePieces (`inputs.sentencepiece`); without it the
    decoder reads the text encoder's word pieces.

Options that the paper ablates (table 3): `vision=resnet101`, `recurrent`, `fusion`, `loss_weights`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.distributed import gather, mean_count, rank_and_world
from vlp_bench.encoders.decoders import ReportDecoder, caption_tokenizer
from vlp_bench.encoders.study import StudyAligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.contrastive import info_nce, negatives, retrieval_accuracy
from vlp_bench.losses.language import next_words, reverse_words, word_loss
from vlp_bench.losses.precision import unit
from vlp_bench.methods.base import VLPMethod
from vlp_bench.optim import parameter_groups
from vlp_bench.types import StudyBatch, Tokens


class REFERS(VLPMethod):
    """Report generation and study-report consistency over the views of a study.

    Args:
        vision: the image encoder.
        text: the text encoder; the decoder reads its word pieces, unless it has its own.
        optimizer: see VLPMethod.
        temperature: tau of the consistency; a constant.
        views: V, how many views are fused; a batch may bring more to choose from.
        recurrent: bring the [CLS] of a view to its patches; None does so where the network has one.
        fusion: weigh the views; without it they count alike.
        bidirectional: also generate the report from its end (in the authors' code, though not in what they ran).
        decoder: `width`, `heads`, `feedforward`, `layers` and `dropout` of the decoder.
        max_tokens: longest report.
        sentencepiece: path of a SentencePiece model whose pieces, the batch's `caption`, the decoder reads; None for
            the text encoder's word pieces.
        text_lr_scale: learning rate of the text side as a share of that of the image side.
        **common: see VLPMethod; loss_weights are of `report` and of `consistency`.

    Raises:
        UserError: `recurrent` of a network without [CLS], or a decoder that cannot be built.
    """

    official = "vlp_bench.methods.refers_official:REFERSOfficial"
    #: whether the decoder learns at the rate of the text encoder
    decoder_with_text: ClassVar[bool] = True
    study_aligner: ClassVar[type[StudyAligner]] = StudyAligner
    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        decoder: Mapping[str, Any],
        temperature: float = 0.1,
        views: int = 3,
        recurrent: bool | None = None,
        fusion: bool = True,
        bidirectional: bool = False,
        max_tokens: int = 100,
        sentencepiece: str | None = None,
        text_lr_scale: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(vision, text, optimizer, **common)
        if recurrent and not vision.is_vit:
            raise UserError(
                f"method.recurrent=true needs the [CLS] of a vision transformer and {vision.spec.name} has none. "
                "Choose vision=vit_b16, or method.recurrent=false."
            )
        if decoder.get("width", 1024) % decoder.get("heads", 16):
            raise UserError(
                f"method.decoder.width={decoder.get('width', 1024)} is no multiple of "
                f"method.decoder.heads={decoder.get('heads', 16)}."
            )
        self.temperature, self.views, self.text_lr_scale = temperature, views, text_lr_scale
        self.studies = self.study_aligner(
            views=views,
            pooled=vision.spec.pooled_dim,
            token=vision.spec.token_dim,
            text=text.width,
            fusion=fusion,
            recurrent=vision.is_vit if recurrent is None else recurrent,
        )
        tokenizer = caption_tokenizer(text, sentencepiece)
        self.decoder_unknown = tokenizer.unk
        self.decoder = ReportDecoder(
            vocabulary=len(tokenizer),
            pad=tokenizer.pad,
            memory=self.studies.memory_dim,
            max_tokens=max_tokens,
            bidirectional=bidirectional,
            **decoder,
        )

    def aligner(self) -> StudyAligner:
        """Fusion of the views, and the head of the report."""
        return self.studies

    def parts(self) -> dict[str, nn.Module]:
        """With the decoder."""
        return {**super().parts(), "decoder": self.decoder}

    def parameter_groups(self) -> list[dict]:
        """The image side at the optimiser's rate, the text side at its share of it."""
        image: list[nn.Module] = [self.vision, *([self.studies.fusion] if self.studies.fusion is not None else [])]
        text: list[nn.Module] = [self.text, self.studies.text]
        (text if self.decoder_with_text else image).append(self.decoder)
        slow = parameter_groups(text, self.weight_decay, self.decay_all)
        return [
            *parameter_groups(image, self.weight_decay, self.decay_all),
            *({**group, "lr_scale": self.text_lr_scale} for group in slow),
        ]

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """Report generation and consistency."""
        pooled, tokens = self.encode_views(batch)
        v, t = self.studies.feature(pooled), self.studies.text(self.text(batch.text).pooled)
        near = {f"top{k}": retrieval_accuracy(unit(v), unit(t), k) for k in (1, 5)}
        self.note(len(batch), **near, negatives=negatives(v))
        memory = self.studies.memory(pooled, tokens)
        caption = batch.text if batch.caption is None else batch.caption
        return {
            "report": torch.stack(self.report_terms(memory, self.words(caption), caption.mask)).sum(),
            "consistency": self.consistency(v, t),
        }

    def encode_views(self, batch: StudyBatch) -> tuple[Float[Tensor, "B V D"], Float[Tensor, "B V P Dt"]]:
        """Pooled features and tokens of the V views of each study; an image that is drawn twice is encoded once."""
        chosen = self.draw_views(batch.view_mask)
        used = torch.zeros_like(batch.view_mask).scatter(1, chosen, True)
        number = (used.flatten().cumsum(0) - 1).view(used.shape).gather(1, chosen)
        features = self.vision(batch.image[used])
        return features.pooled[number], features.tokens[number]

    def draw_views(self, mask: Bool[Tensor, "B N"]) -> Int[Tensor, "B V"]:
        """Which of its N images are the views of each study; `mask` is True on those that are there."""
        rank = (
            torch.rand(mask.shape, device=mask.device) if self.training else torch.zeros_like(mask, dtype=torch.float)
        )
        order = rank.masked_fill(~mask, 2.0).argsort(dim=1, stable=True)
        return order.gather(1, self.draw_places(mask.sum(1, keepdim=True)))

    def draw_places(self, count: Int[Tensor, "B 1"]) -> Int[Tensor, "B V"]:
        """Places among the `count` images, in random order, of each study: each once, then any of them."""
        place = torch.arange(self.views, device=count.device).expand(len(count), -1)
        return place.where(place < count, self.any_places(count))

    def any_places(self, count: Int[Tensor, "B 1"]) -> Int[Tensor, "B V"]:
        """Places drawn with replacement in training, the first otherwise."""
        drawn = torch.rand(len(count), self.views, device=count.device) if self.training else count.new_zeros(1, 1)
        return (drawn * count).long().expand(-1, self.views)

    def words(self, caption: Tokens) -> Int[Tensor, "B T"]:
        """What the decoder reads."""
        return caption.ids

    def report_terms(
        self, memory: Float[Tensor, "B M Dm"], ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Tensor, ...]:
        """The loss of writing the report, and of writing it from its end where that is asked for."""
        if self.decoder.backward_layers is None:
            return (self.report_term(memory, ids, mask),)
        return (
            self.report_term(memory, ids, mask),
            self.report_term(memory, reverse_words(ids, mask), mask, from_end=True),
        )

    def report_term(
        self,
        memory: Float[Tensor, "B M Dm"],
        ids: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        from_end: bool = False,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of every word after the first, in reading order; padding is not predicted."""
        hidden, target = next_words(self.decoder(memory, ids, mask, from_end=from_end), ids, ids != self.decoder.pad)
        return word_loss(self.decoder.logits(hidden), target, mean_count)

    def consistency(self, v: Float[Tensor, "B E"], t: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
        """Contrast of each study with the reports of the batch."""
        return info_nce(unit(v), gather(unit(t)), self.temperature, rank_and_world()[0] * len(v))
