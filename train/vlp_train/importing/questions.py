"""What official files do not say, asked for by name with `-O NAME=VALUE`.

Every kind of file has its questions. One without a safe answer must be answered; what is taken for
the others is told to the user and kept in the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import Count, Position
from vlp_deploy.formats.structures import Weight
from vlp_train.importing.detect import ORIGIN, Kind

EPOCH, STAGE1 = "epoch", "stage1"  # decide which files are read
REQUIRED = None


@dataclass(frozen=True)
class Question:
    """What an option means, what it may be, and what is taken where nobody answers.

    That is the answer to the question `follows`, if there is one, or else `default`.
    """

    meaning: str
    type: Any
    default: Any = REQUIRED
    follows: str = ""


Answers = Mapping[str, Any]

POSITION = Question("where the class name stands: end, middle or front", Position, "end")
SENTENCE = Question(
    "the sentence whose words the learned tokens replaced, with {} for the class name", str, ""
)
TEXT = {"template": SENTENCE}

QUESTIONS: Mapping[Kind, Mapping[str, Question]] = {
    "coop": {"position": POSITION, "template": SENTENCE},
    "cocoop": TEXT,
    "kgcoop": TEXT,
    "maple": TEXT,
    "promptsrc": TEXT,
    "ivlp": TEXT,
    "deep_language": TEXT,
    "vpt": {
        "template": Question("the sentence around the class name", str, default="a photo of a {}.")
    },
    "dpt_vpt": {
        "template": Question(
            "the data set's own sentence, such as 'a photo of a {}, a type of pet.', which makes "
            "the class embeddings",
            str,
        )
    },
    "dpt_vlp": {"position": POSITION},
    "dpt": {
        "template": Question(
            "the data set's own sentence, such as 'a photo of a {}, a type of pet.', with which "
            "classes are selected for an image",
            str,
        ),
        "cpn": Question("SELECTED_COVPT.CPN, how many classes an image selects", Count, 10),
        "position": POSITION,
    },
    "cmpa": {
        "template": SENTENCE,
        "depth": Question("PROMPT_DEPTH, how many blocks couple their prompts", Count, 9),
        "fusing": Question(
            "how prompt states of a batch became one", Literal["mean", "first", "max"], "mean"
        ),
        "context": Question(
            "what stands in for the mean over a batch: per_sample, frozen (of --images) or batch",
            Literal["per_sample", "batch", "frozen"],
            "per_sample",
        ),
        "batch_size": Question("images a batch, for context=batch only", Count, 0),
    },
    "dpc": {
        STAGE1: Question("the CoOp run that the second stage started from", Path),
        "mode": Question(
            "the official MODE: converse (the stored tensor is a mixture) or simple",
            Literal["converse", "simple"],
        ),
        "train_weight": Question(
            "the official WEIGHT of the training, which takes the mixture apart", Weight, 0.0
        ),
        "mixing_weight": Question(
            "the share of the tuned prompt for base classes", Weight, 0.2, follows="train_weight"
        ),
        "position": POSITION,
    },
}


def answer(kind: Kind, given: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """All answers of a kind, typed, and what had to be assumed, in words.

    Raises CheckpointError for an option that is unknown, missing or has no such value.
    """
    questions = QUESTIONS[kind]
    for name in given:
        if name not in questions and name != EPOCH:
            raise CheckpointError(_unknown(kind, name))
    open_ones = {name: asked for name, asked in questions.items() if name not in given}
    if missing := {name: a.meaning for name, a in open_ones.items() if a.default is REQUIRED}:
        raise CheckpointError(
            f"files of {ORIGIN[kind]} do not say {', nor '.join(missing.values())}. Pass "
            f"{' '.join(f'-O {name}=' for name in missing)}"
        )
    answers = {name: _typed(kind, name, given[name]) for name in questions if name in given}
    assumed = {name: answers.get(asked.follows, asked.default) for name, asked in open_ones.items()}
    assumptions = [
        f"{name}={value} ({questions[name].meaning})" for name, value in assumed.items() if value
    ]
    return answers | assumed, assumptions


def _typed(kind: Kind, name: str, text: str) -> Any:
    wanted = QUESTIONS[kind][name].type
    if wanted is Path:
        return Path(text)
    try:
        return msgspec.convert(text, type=wanted, strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"-O {name}={text}: {error}. It is {QUESTIONS[kind][name].meaning}"
        ) from None


def _unknown(kind: Kind, name: str) -> str:
    known = [*QUESTIONS[kind], EPOCH]
    close = get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    takes = "; ".join(f"{key}: {asked.meaning}" for key, asked in QUESTIONS[kind].items())
    return (
        f"-O {name}= says nothing about {ORIGIN[kind]}. {hint}It takes {EPOCH}: which of the saved "
        f"epochs; {takes}"
    )
