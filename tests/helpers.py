"""What several tests need: the command line in this process, and a method of somebody else."""

import sys
from pathlib import Path

from vlp_bench.cli import main

#: A method outside the package, as a user would write it.
FIFTH_METHOD = '''
"""Plain image-report contrast, written by somebody outside the package."""

import torch
import torch.nn.functional as F

from vlp_bench.encoders.aligner import DualEncoderAligner
from vlp_bench.methods.base import VLPMethod


class Fifth(VLPMethod):
    def __init__(self, vision, text, optimizer=None, *, width=32, variant="paper"):
        super().__init__(vision, text, optimizer, loss_weights={"contrast": 1.0}, variant=variant)
        sizes = {"hidden": 64, "outputs": width}
        self.heads = DualEncoderAligner(
            {"inputs": vision.spec.pooled_dim, **sizes}, {"inputs": text.width, **sizes}
        )

    def aligner(self):
        return self.heads

    def losses(self, batch):
        v = self.heads.embed_images(self.vision(batch.frontal))
        t = self.heads.embed_texts(self.text(batch.text))
        logits, own = v @ t.T / 0.1, torch.arange(len(v), device=v.device)
        return {"contrast": F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)}
'''
FIFTH_YAML = """
_target_: {module}.Fifth
name: fifth
variant: paper
inputs: {{sample: image, views: 1}}
width: 32
"""


def write_sentencepiece(path: Path, sentences: list[str], size: int) -> Path:
    """A small SentencePiece model with the special pieces of REFERS' own, of `size` pieces."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[SOS]", "[EOS]", "[MASK]"],
        minloglevel=2,
    )
    return path


def run_cli(*arguments: str) -> int:
    """`vlp-bench ...` in this process; the exit code."""
    before = sys.argv[:]
    sys.argv[:] = ["vlp-bench", *arguments]
    try:
        return main()
    finally:
        sys.argv[:] = before


def write_fifth_method(folder: Path, module: str) -> Path:
    """The module under `folder`, its YAML under folder/conf; the latter."""
    (folder / f"{module}.py").write_text(FIFTH_METHOD)
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "fifth.yaml").write_text(FIFTH_YAML.format(module=module))
    return folder / "conf"


def only(folder: Path, pattern: str) -> Path:
    """The one path that matches."""
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, f"{pattern} in {folder}: {found}"
    return found[0]
