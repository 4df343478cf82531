"""The shipped WordPiece vocabulary: how it was made, and where it lies."""

import string
from collections.abc import Iterable
from pathlib import Path

SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = Path(__file__).resolve().parents[1] / "assets" / "vocab.txt"

_CHARACTERS = string.ascii_lowercase + string.digits
_LEXICON = (
    "abdomen abnormality acute aeration airspace airway anterior apex apical appearance asymmetric azygos basal "
    "base bilateral blunting bone bronchial bronchogram bullous calcification calcified cardiac cardiopulmonary "
    "carina cavitary changes chronic clavicle collapse congestion contour contusion costophrenic cough density "
    "diaphragm diffuse dyspnea elevated elevation emphysema engorgement fever fibrosis fissure focal granuloma "
    "hemidiaphragm hemithorax hernia hilar hilum hyperinflation infection infiltrate interstitial interval "
    "intubated kyphosis lateral layering lingula loculated lucency lymphadenopathy malignancy mediastinum "
    "metastatic nodular osseous osteopenia overload parenchymal perihilar pericardial peribronchial picc pleura "
    "pneumonectomy pneumomediastinum posterior prominence pulmonary reticular retrocardiac sternotomy sternal "
    "subcutaneous superimposed supine thoracic tortuosity tracheostomy vascular vasculature venous ventricle "
    "vertebral"
)


def train_vocabulary(reports: Iterable[str], size: int) -> list[str]:
    """Train a lower-case BERT WordPiece vocabulary.

    Args:
        reports: Raw report texts.
        size: The most pieces to make; there are fewer when the texts hold no more.

    Returns:
        The pieces in the order of their ids: the five special tokens first, then every letter, digit and punctuation
        mark, at the beginning and inside of words, so that no ASCII word is ever unknown.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # slow to import, seldom needed

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    single = [*_CHARACTERS, *string.punctuation]
    inside = [f"##{character}" for character in _CHARACTERS]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size - len(inside), 0),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=single,
        show_progress=False,
    )
    # Words of the trade that the synthetic reports lack, once each, so that real reports split into fewer pieces.
    tokenizer.train_from_iterator([*reports, _LEXICON], trainer)
    ids = tokenizer.get_vocab()
    learnt = sorted(ids, key=ids.__getitem__)
    return list(dict.fromkeys([*SPECIAL_TOKENS, *single, *inside, *learnt]))
