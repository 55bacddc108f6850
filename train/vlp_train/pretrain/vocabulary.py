"""Choose the texts that the text tower learns: captions, WordNet nouns, words of CLIP's vocabulary.

The image tower sees few words; the text tower must place many more beside them, so that classes
nobody trained on find their place. Templates vary the sentence around a name; the target never
changes, so that every template means its name.
"""

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_train.pretrain.wordnet import NounLexicon

TEMPLATES = (
    "{}",
    "{}.",
    "a {}.",
    "the {}.",
    "{} icon",
    "an icon of a {}.",
    "an icon of {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a drawing of {}.",
    "a cartoon of a {}.",
    "a sketch of a {}.",
    "clip art of a {}.",
    "an illustration of a {}.",
    "an emoji of a {}.",
    "an image of a {}.",
    "a pictogram showing {}.",
    "a small colourful picture of a {}.",
    "this is a {}.",
)
MAX_WORDS = 3
_FIRST_WORD, _LAST_WORD = 512, 49406


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """Return the alphabetic words of at least three letters that are one token."""
    words = (tokenizer.decode([number]) for number in range(_FIRST_WORD, _LAST_WORD))
    return [
        word.strip()
        for word in words
        if word.endswith(" ")
        and word.strip().isascii()
        and word.strip().isalpha()
        and len(word) > 3
    ]


def texts_to_learn(captions: list[str], lexicon: NounLexicon, tokenizer: Tokenizer) -> list[str]:
    """Return all texts once: captions, short nouns of known words, nouns of one token."""
    words = whole_words(tokenizer)
    known = set(words)
    nouns = (
        lemma
        for lemma in lexicon.concrete_lemmas()
        if len(lemma.split()) <= MAX_WORDS and all(word in known for word in lemma.split())
    )
    common = (word for word in words if lexicon.is_noun(word))
    return list(dict.fromkeys([*captions, *nouns, *common]))
