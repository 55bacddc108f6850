"""Turn WordNet's noun files into word lists: which nouns name things that can be drawn.

WordNet 3.0 (`index.noun`, `data.noun`; Debian package `wordnet-base`) groups every sense of a
noun under a lexicographer file ("supersense", Miller 1995). A noun is called concrete here if one
of its three most frequent senses is an animal, an artefact, food and so on: what icons show well.
"""

from dataclasses import dataclass
from pathlib import Path

# Lexicographer file numbers (WordNet manual, lexnames(5WN)).
CONCRETE_FILES = {
    3: "Tops",
    5: "animal",
    6: "artifact",
    8: "body",
    13: "food",
    17: "object",
    18: "person",
    19: "phenomenon",
    20: "plant",
    27: "substance",
}

SENSES_CONSIDERED = 3


@dataclass(frozen=True, kw_only=True)
class NounLexicon:
    """Nouns with the lexicographer files of their most frequent senses."""

    files: dict[str, tuple[int, ...]]

    def is_noun(self, lemma: str) -> bool:
        """Tell whether `lemma` (words joined by spaces, lower case) is a noun."""
        return lemma in self.files

    def is_concrete(self, lemma: str) -> bool:
        """Tell whether a frequent sense of `lemma`, or of its singular, can be drawn."""
        return any(
            file in CONCRETE_FILES
            for form in singular_forms(lemma)
            for file in self.files.get(form, ())
        )

    def concrete_lemmas(self) -> list[str]:
        """Return all lemmas whose first sense can be drawn, sorted."""
        return sorted(word for word, files in self.files.items() if files[0] in CONCRETE_FILES)


def singular_forms(word: str) -> list[str]:
    """Return `word` and the singulars that English spelling allows for it."""
    forms = [word]
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms


def read_nouns(folder: Path) -> NounLexicon:
    """Read `index.noun` and `data.noun` under `folder`.

    Raises:
        OSError: a file is missing or unreadable.
    """
    file_of_offset: dict[str, int] = {}
    with (folder / "data.noun").open(encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("  "):
                offset, file_number = line.split(" ", 2)[:2]
                file_of_offset[offset] = int(file_number)
    files: dict[str, tuple[int, ...]] = {}
    with (folder / "index.noun").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):
                continue
            fields = line.split()
            pointer_count = int(fields[3])
            offsets = fields[6 + pointer_count :][:SENSES_CONSIDERED]
            files[fields[0].replace("_", " ")] = tuple(file_of_offset[each] for each in offsets)
    return NounLexicon(files=files)
