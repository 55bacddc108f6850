"""From the class buffers of a checkpoint to class names, and to the sentence they stood in.

`token_suffix` holds, for every class, copies of the token embeddings behind the learned tokens:
fixed words of the sentence if any, the class name, the full stop, end of text. Looked up in the
base model's table they give the token ids back, and ids spell words.

Legend: K classes, m learned tokens, L context length, d text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.class_list import read_class_list
from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import END_OF_TEXT, Tokenizer
from vlp_deploy.errors import CheckpointError, ClassListError
from vlp_deploy.formats.architecture import TextLayout
from vlp_deploy.formats.weights import Floats
from vlp_train.importing.reader import OfficialFile

SUFFIXES = ("token_suffix", "prompt_learner.token_suffix")
PLACEHOLDER = "X"
OFFICIAL_WORDS = "a photo of a"  # of which fewer learned tokens than four leave some as text
FULL_STOP = "."
# of a row's length: PromptSRC averages these copies too, in half precision, epoch after epoch
AVERAGED = 1e-2

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What surrounds a class name: m placeholders, words that stay as they are, a full stop."""

    template: str
    fixed: str


def recover_tokens(
    file: OfficialFile, embedding: Floats, *, learned: int, context_length: int
) -> tuple[Tokens, ...] | None:
    """Every class's tokens between the learned ones and end of text; None without such a buffer.

    Raises CheckpointError if the buffer does not fit `learned`, or rows are no token embeddings.
    """
    stored = next((file.state[name] for name in SUFFIXES if name in file.state), None)
    if stored is None:
        return None
    suffix = stored.read().astype(np.float16)  # (K, L - 1 - m, d)
    if suffix.shape[1] != context_length - 1 - learned:
        raise CheckpointError(
            f"{file.path}: token_suffix has {suffix.shape[1]} tokens a class, which leaves "
            f"{context_length - 1 - suffix.shape[1]} for the prompts; they are {learned}. The file "
            "contradicts itself"
        )
    tokens = _Vocabulary(embedding)
    return tuple(_until_end(rows, tokens, file.path) for rows in suffix)


class _Vocabulary:
    """Which token an embedding is of."""

    def __init__(self, embedding: Floats) -> None:
        self._embedding = embedding
        halves = embedding.astype(np.float16)
        self._known: dict[bytes, int | None] = {row.tobytes(): i for i, row in enumerate(halves)}

    def __call__(self, row: NDArray[np.float16]) -> int | None:
        """The token of a row (d,); None if it is near none."""
        key = row.tobytes()
        if key not in self._known:
            self._known[key] = self._nearest(row.astype(np.float32))
        return self._known[key]

    def _nearest(self, row: Floats) -> int | None:
        distances = np.linalg.norm(self._embedding - row, axis=1)
        nearest = int(distances.argmin())
        return nearest if distances[nearest] <= AVERAGED * np.linalg.norm(row) else None


def _until_end(rows: NDArray[np.float16], token_of: _Vocabulary, path: Path) -> Tokens:
    tokens: list[int] = []
    for row in rows:
        token = token_of(row)
        if token is None:
            raise CheckpointError(
                f"{path}: a row of token_suffix is no token embedding of this model, though its "
                "token_prefix is. The base model's embeddings were changed"
            )
        if token == END_OF_TEXT:
            return tuple(tokens)
        tokens.append(token)
    raise CheckpointError(f"{path}: token_suffix has no end of text. The file is damaged")


def given_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line. Raises ClassListError for synonyms, which nobody trained."""
    classes = read_class_list(path)
    for synonyms in classes:
        if len(synonyms) > 1:
            raise ClassListError(
                f"class list {path}: {synonyms[0]!r} has synonyms. A prompt is imported for the "
                "names it was trained with: give one a line"
            )
    return tuple(synonyms[0] for synonyms in classes)


def sentence_of(
    classes: Sequence[Tokens] | None,
    *,
    learned: int,
    template: str = "",
    names: Sequence[str] = (),
    keeps_words: bool = False,
) -> Sentence:
    """The template for a checkpoint's header.

    `keeps_words`: the official code can learn fewer tokens than its sentence has words; those that
    are common to all classes are then words of the sentence.

    Raises CheckpointError if `template` has too few words.
    """
    tokenizer = Tokenizer.default()
    if template:
        before = template.partition("{}")[0] if template.count("{}") == 1 else ""
        if len(tokenizer.encode(before)) < learned:
            raise CheckpointError(
                f"-O template={template!r} has {len(tokenizer.encode(before))} tokens before {{}}, "
                f"but {learned} were learned in their place"
            )
        fixed = tokenizer.encode(before)[learned:]
    else:
        fixed = _fixed_words(classes or (), learned, names) if keeps_words else []
    words = tokenizer.decode(fixed).strip()
    placeholders = [PLACEHOLDER] * learned
    return Sentence(template=" ".join([*placeholders, *words.split(), "{}."]), fixed=words)


def _fixed_words(classes: Sequence[Tokens], learned: int, names: Sequence[str]) -> list[int]:
    tokenizer = Tokenizer.default()
    if not classes:
        return tokenizer.encode(OFFICIAL_WORDS)[learned:]
    common = _common_start([tokens[:-2] for tokens in classes])
    if names:
        name = tokenizer.encode(names[0].replace("_", " ") + FULL_STOP)
        before = list(classes[0][: max(0, len(classes[0]) - len(name))])
        if common[: len(before)] == before:
            return before
    official = tokenizer.encode(OFFICIAL_WORDS)[learned:]
    if common[: len(official)] == official:
        return official
    if len(classes) == 1:
        return []
    while common and not tokenizer.decode(common[-1:]).endswith(" "):
        common.pop()  # half a word
    return common


def _common_start(rows: Sequence[Tokens]) -> list[int]:
    columns = zip(*rows, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def recover_names(classes: Sequence[Tokens], sentence: Sentence) -> tuple[str, ...]:
    """Class names as BPE spells them: lower case, digits and punctuation apart."""
    tokenizer = Tokenizer.default()
    skipped = len(tokenizer.encode(sentence.fixed))
    texts = (tokenizer.decode(tokens[skipped:]).strip() for tokens in classes)
    return tuple(text.removesuffix(FULL_STOP).strip() for text in texts)


def check_names(
    names: Sequence[str],
    classes: Sequence[Tokens],
    sentence: Sentence,
    *,
    learned: int,
    context_length: int,
    class_specific: bool,
    given: bool,
) -> None:
    """Raise CheckpointError unless `names`, in this order, make the tokens that were trained."""
    layout = TextLayout(tokens=learned)
    found = [
        _tokens(name, sentence, layout, context_length)[learned:] for name in names
    ]  # one by one: lengths differ
    if found == list(classes):
        return
    recovered = recover_names(classes, sentence)
    if not given:
        index = next(i for i, (a, b) in enumerate(zip(found, classes, strict=True)) if a != b)
        raise CheckpointError(
            f"class {index} is spelled {recovered[index]!r} by its tokens, which is not the name "
            "they were made of. Pass the training class names with --classes"
        )
    raise CheckpointError(_other_classes(names, found, classes, recovered, class_specific))


def _tokens(name: str, sentence: Sentence, layout: TextLayout, context_length: int) -> Tokens:
    rows = text_rows(
        [name],
        sentence.template,
        Tokenizer.default(),
        layout=layout,
        context_length=context_length,
    )
    return tuple(rows.ids[0, 1 : rows.eot[0]].tolist())


def _other_classes(
    names: Sequence[str],
    found: Sequence[Tokens],
    classes: Sequence[Tokens],
    recovered: Sequence[str],
    class_specific: bool,
) -> str:
    pairs = enumerate(zip(found, classes, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(found), len(classes)))
    here = repr(recovered[first]) if first < len(recovered) else "nothing"
    there = repr(names[first]) if first < len(names) else "nothing"
    difference = f"first difference at index {first}: {here} vs {there}"
    if class_specific:
        return (
            f"CoOp(CSC): contexts were trained for {len(classes)} classes {_some(recovered)}; got "
            f"{len(names)} ({difference}). Class-specific contexts cannot be applied to new or "
            "re-ordered classes; retrain or use unified context"
        )
    return (
        f"the prompts were trained for {len(classes)} classes {_some(recovered)}; --classes has "
        f"{len(names)} ({difference}). Give the training classes in their order, or leave "
        "--classes out; other classes are for `vlp classify --classes`"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"[{shown} …]" if len(names) > 3 else f"[{shown}]"
