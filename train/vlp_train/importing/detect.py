"""From the keys of checkpoint files to the method that wrote them; folder names are no evidence.

`Kind` names an official layout. Most are one file; DPT's family writes one for the text prompts,
one for the visual prompts (`ctx` alone) and one for the class-aware ones.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.weights import expected_shapes
from vlp_train.importing.reader import OfficialFile, StoredTensor

Kind = Literal[
    "coop",
    "cocoop",
    "kgcoop",
    "vpt",
    "deep_language",
    "ivlp",
    "maple",
    "promptsrc",
    "dpt",
    "dpt_vlp",
    "dpt_vpt",
    "cmpa",
    "dpc",
]
Part = Literal["model", "visual", "class_aware"]

ORIGIN: Mapping[Kind, str] = {
    "coop": "CoOp (KaiyangZhou/CoOp)",
    "cocoop": "CoCoOp (KaiyangZhou/CoOp)",
    "kgcoop": "KgCoOp (htyao89/KgCoOp)",
    "vpt": "VPT (muzairkhattak/multimodal-prompt-learning)",
    "deep_language": "deep language prompting (muzairkhattak/multimodal-prompt-learning)",
    "ivlp": "IVLP (muzairkhattak/multimodal-prompt-learning)",
    "maple": "MaPLe (muzairkhattak/multimodal-prompt-learning)",
    "promptsrc": "PromptSRC (muzairkhattak/PromptSRC)",
    "dpt": "DPT (fanrena/DPT)",
    "dpt_vlp": "VLP, DPT without class-aware prompts (fanrena/DPT)",
    "dpt_vpt": "VPT (fanrena/DPT)",
    "cmpa": "DCP (GingL/CMPA)",
    "dpc": "DPC on CoOp (JREion/DPC)",
}

# The first row whose keys are all there names the file. PromptKD is here to be refused by name.
SIGNS: tuple[tuple[str, str], ...] = (
    ("cmpa", r"prompt_learner\.prompts_visual"),
    ("class_aware", r"meta_nets\.0\.weight"),
    ("cocoop", r"meta_net\.linear2\.weight"),
    ("kgcoop", r"bias_vectors"),
    ("promptkd", r"VPT_image_trans\..*"),
    ("promptsrc", r"prompt_learner\.ZS_image_encoder\.conv1\.weight"),
    ("maple", r"prompt_learner\.(compound_prompts_text\.0|proj\.weight)"),
    ("deep_language", r"prompt_learner\.ctx"),  # with image prompts it is IVLP
    ("vpt", r"image_encoder\.VPT"),
    ("coop", r"token_suffix"),
)

TEXT_BUFFERS = r"token_prefix|token_suffix"
DEEP_TEXT = r"text_encoder\.transformer\.resblocks\.\d+\.VPT_shallow"
DEEP_IMAGE = r"image_encoder\.(VPT|transformer\.resblocks\.\d+\.VPT_shallow)"
INDEPENDENT = rf"prompt_learner\.(ctx|{TEXT_BUFFERS})|{DEEP_TEXT}|{DEEP_IMAGE}"
LINEAR = r"(weight|bias)"

# What each kind's files may hold beside the frozen CLIP.
LEARNED: Mapping[Kind, str] = {
    "coop": rf"ctx|{TEXT_BUFFERS}",
    "cocoop": rf"ctx|{TEXT_BUFFERS}|meta_net\.linear[12]\.{LINEAR}",
    "kgcoop": rf"ctx|{TEXT_BUFFERS}|bias_vectors|meta_net\.linear1\.{LINEAR}",
    "vpt": DEEP_IMAGE,
    "deep_language": INDEPENDENT,
    "ivlp": INDEPENDENT,
    "maple": rf"prompt_learner\.(ctx|{TEXT_BUFFERS}|proj\.{LINEAR}|compound_prompts_text\.\d+"
    rf"|compound_prompt_projections\.\d+\.{LINEAR})",
    "promptsrc": INDEPENDENT,
    "dpt": rf"ctx|{TEXT_BUFFERS}|meta_nets\.\d+\.{LINEAR}|attns\.\d+\.[qkv]mlp\.weight"
    rf"|lns2?\.\d+\.{LINEAR}|classfiers\.\d+\.weight",
    "dpt_vlp": rf"ctx|{TEXT_BUFFERS}",
    "dpt_vpt": "ctx",
    "cmpa": rf"prompt_learner\.(prompts_text|prompts_visual|{TEXT_BUFFERS})"
    r"|encoder\.resblocks\.\d+\.prompt_attn\.((promt_attention|mlp_pa|ln_pa_[12])_(visual|text)"
    r"|proj_(v2t|t2v))\..*",
    "dpc": rf"ctx|{TEXT_BUFFERS}|tokenized_prompts",
}
DPT_PART = "image_encoder.transformer."  # how DPT's folders beside `prompt_learner` start
SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as its authors' code saved it. DPT has several parts, all others only `model`.

    `stage1` is the run that a second stage started from.
    """

    kind: Kind
    parts: Mapping[Part, OfficialFile]
    stage1: "Source | None" = None

    @property
    def model(self) -> OfficialFile:
        """The file with the text prompts, or the only one."""
        return self.parts.get("model") or self.parts["visual"]

    @property
    def stages(self) -> "tuple[Source, ...]":
        """This and what it started from."""
        return (self,) if self.stage1 is None else (self, self.stage1)


def detect(files: Sequence[OfficialFile], *, stage1: Source | None = None) -> Source:
    """What the files are. A second stage of DPC looks like CoOp: `stage1` says that it is one.

    Raises CheckpointError if they are nothing known, or a part is missing.
    """
    found = {_sign(file): file for file in files}
    epochs = {file.epoch for file in files}
    if len(epochs) > 1:
        raise CheckpointError(
            f"the parts in {files[0].path.parent.parent} are of different epochs "
            f"({', '.join(map(str, epochs))}). Choose one that all have with -O epoch="
        )
    if found.keys() & {"visual", "class_aware"}:
        return _of_dpt(found, files)
    ((sign, file),) = found.items()
    if stage1:
        return _second_stage(sign, file, stage1)
    if sign == "promptkd":
        raise CheckpointError(
            f"{file.path} is a student of PromptKD, whose text side lives in a second, larger "
            "CLIP: not supported"
        )
    return Source(kind=sign, parts={"model": file})  # type: ignore[arg-type]


def _second_stage(sign: str, file: OfficialFile, stage1: Source) -> Source:
    """DPC, whose two stages are runs of one method; official code exists for CoOp."""
    for of, path in ((sign, file.path), (stage1.kind, stage1.model.path)):
        if of != "coop":
            raise CheckpointError(
                f"{path} is of {of}: official code of DPC exists for CoOp. Leave out -O stage1= to "
                "import it as it is"
            )
    return Source(kind="dpc", parts={"model": file}, stage1=stage1)


def _of_dpt(found: Mapping[str, OfficialFile], files: Sequence[OfficialFile]) -> Source:
    """DPT, or its baselines, by the parts that are there."""
    kinds: dict[frozenset[str], Kind] = {
        frozenset({"visual"}): "dpt_vpt",
        frozenset({"coop", "visual"}): "dpt_vlp",
        frozenset({"coop", "visual", "class_aware"}): "dpt",
    }
    if kind := kinds.get(frozenset(found)):
        names: dict[str, Part] = {"coop": "model", "visual": "visual", "class_aware": "class_aware"}
        return Source(kind=kind, parts={names[sign]: file for sign, file in found.items()})
    folders = {
        "coop": "prompt_learner",
        "visual": f"{DPT_PART}ctx_learner",
        "class_aware": f"{DPT_PART}extractor",
    }
    missing = [folder for sign, folder in folders.items() if sign not in found]
    raise CheckpointError(
        f"{files[0].path.parent} has class-aware prompts, so this is DPT, whose three folders "
        f"belong together; missing beside it: {', '.join(missing)}. Copy them from the training run"
    )


def _sign(file: OfficialFile) -> str:
    for sign, key in SIGNS:
        if any(re.fullmatch(key, name) for name in file.state):
            has_image_prompts = "image_encoder.VPT" in file.state
            return "ivlp" if sign == "deep_language" and has_image_prompts else sign
    if set(file.state) == {"ctx"}:
        return "visual" if len(file.state["ctx"].shape) == 3 else "coop"
    raise CheckpointError(
        f"{file.path} is of no method known here: its {len(file.state)} tensors start with "
        f"{_some(file.state)}. Known are {', '.join(ORIGIN.values())}"
    )


def frozen_tensors(kind: Kind, config: ClipConfig) -> dict[str, str]:
    """Official name → open_clip's, for every weight of the CLIP itself that a file may hold."""
    names = [name for name in expected_shapes(config) if name != "token_embedding.weight"]
    if kind == "cmpa":
        return {_cmpa_name(name): name for name in names}
    frozen = {_dassl_name(name): name for name in names}
    teacher = {
        f"prompt_learner.ZS_{official}": name
        for official, name in frozen.items()
        if official.startswith("image_encoder.")
    }
    return frozen | (teacher if kind == "promptsrc" else {})


def _dassl_name(name: str) -> str:
    if name == "logit_scale":
        return name
    if name.startswith("visual."):
        return f"image_encoder.{name.removeprefix('visual.')}"
    return f"text_encoder.{name}"


def _cmpa_name(name: str) -> str:
    if name == "logit_scale":
        return name
    tower, bare = ("visual", name[7:]) if name.startswith("visual.") else ("text", name)
    if block := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", bare):
        return f"encoder.resblocks.{block[1]}.{tower}_attn.{block[2]}"
    if tower == "text":
        return f"encoder.{bare}"
    module, dot, rest = bare.partition(".")
    return f"encoder.{module}_visual{dot}{rest}"


def check_keys(source: Source, config: ClipConfig) -> None:
    """Raise CheckpointError if a file holds more than its kind's code saves."""
    known = re.compile(LEARNED[source.kind])
    frozen = frozen_tensors(source.kind, config)
    for file in source.parts.values():
        unknown = [name for name in file.state if name not in frozen and not known.fullmatch(name)]
        if unknown:
            raise CheckpointError(
                f"{file.path} looks like {ORIGIN[source.kind]}, but {len(unknown)} of its tensors "
                f"are not part of that: {_some(unknown)}. It was trained by changed code, which "
                "cannot be imported faithfully"
            )


def check_complete(source: Source, config: ClipConfig) -> None:
    """Raise CheckpointError for what looks like a baseline of DPT, but is DPT with a part missing.

    The baselines prompt all layers; DPT's last ones have class-aware prompts instead.
    """
    if source.kind not in ("dpt_vlp", "dpt_vpt"):
        return
    file, layers = source.parts["visual"], config.vision.layers
    prompted = stored(file, "ctx").shape[0]
    if prompted < layers:
        folders = [f"{DPT_PART}extractor"] + ["prompt_learner"] * (source.kind == "dpt_vpt")
        raise CheckpointError(
            f"{file.path} prompts {prompted} of {layers} layers, so this is DPT, whose last layers "
            f"have class-aware prompts; missing beside it: {', '.join(folders)}. Copy them from "
            "the training run"
        )


def _some(names: Collection[str]) -> str:
    some = ", ".join(list(names)[:SHOWN])
    return f"{some} …" if len(names) > SHOWN else some


def stored(file: OfficialFile, name: str) -> StoredTensor:
    """A tensor of a file. Raises CheckpointError if it is missing."""
    if name not in file.state:
        raise CheckpointError(f"{file.path} lacks {name}: it is not complete. Copy it again")
    return file.state[name]
