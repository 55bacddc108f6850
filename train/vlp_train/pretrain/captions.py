"""Turn icon identifiers (`dog-side-outline-24`) into plain captions (`dog side`) or into None.

Icon names carry the drawing style, the size and interface vocabulary. Style and size are cut off;
names about interfaces rather than things (arrows, alignment, file operations) give None.
"""

import re

from vlp_train.pretrain.wordnet import NounLexicon

STYLE_WORDS = frozenset(
    """
    outline outlined fill filled bold duotone duo tone twotone line linear light thin regular solid
    rounded round sharp sharpened broken bulk stroke flat color colored colour mono monochrome
    semibold medium twotones negative alt alternate variant rtl ltr simple fi px sm lg xl xs
    one two three four five six seven eight nine
    """.split()
)

INTERFACE_WORDS = frozenset(
    """
    arrow arrows chevron chevrons caret align alignment cursor border layout git code api html css
    sort text format formatting filter off slash check checked checkmark uncheck plus minus add
    remove delete cancel edit setting settings search refresh sync undo redo upload download
    import export copy paste duplicate align left right up down top bottom vertical horizontal
    forward backward next previous prev first last alpha alphabet letter number numeric roman
    numeral keycap math parenthesis bracket quote comment chat message mail email inbox
    notification notifications user users account profile login logout signin view list grid column
    columns row rows table cell panel sidebar dock tab tabs window page file files folder document
    documents doc form field input checkbox radio toggle switch slider button menu dots ellipsis
    more loading loader spinner progress status info information error warning alert help question
    exclamation circle square rectangle hexagon octagon diamond triangle ring badge
    shape polygon ellipse oval frame crop zoom expand collapse minimize maximize fullscreen resize
    scale rotate flip move drag drop swipe tap click select selection deselect lasso path node
    vector bezier anchor point points stack layer layers group ungroup merge split branch fork
    commit pull push request bug issue deploy pipeline server database db sql cloud network wifi
    bluetooth signal cellular lte 4g 5g 3g nfc usb hdmi link unlink share send reply receive
    open close closed x dollar euro yen rupee bitcoin crypto currency coin percent tax invoice bill
    receipt order payment pay wallet checkout analytics chart graph data report trend statistic
    ai ml app apps application web www http browser url domain seo rss feed social media brand logo
    wechat facebook google microsoft android windows linux emoji flag emoticon play pause stop
    record rewind skip mute unmute volume playlist shuffle repeat loop queue subtitle caption
    translate language font heading paragraph bold italic underline strikethrough indent bullet
    paragraph superscript subscript signature stamp tag label bookmark pin
    schedule event time date today timer history recent pending auto automatic manual mode
    connect connected connection disconnect disconnected enable disable disabled on in out enter
    exit full empty low high min max half quarter size width height space spacing margin padding
    increase decrease above below under over between behind front back beside
    variable function object class type property parameter element component components module
    workspace project task todo ticket kanban scrum agile sprint board dashboard widget
    verified unverified secure security privacy permission access auth authentication token
    hint tip guide tutorial example test debug console terminal command prompt script
    flow workflow process step steps stage status state version release update upgrade install
    archive backup restore save load draft print scan capture detect detection recognition
    block blocked ban banned deny denied allow allowed forbidden prohibited not no none never
    with without and or of for to from by at as via than then a an the is
    aspect ratio crossed dashed dotted broken double single multiple multi all any new old other
    generic misc unknown custom default options option preferences config configuration control
    controls tool tools action actions gesture
    """.split()
) - frozenset(
    {"cloud", "diamond", "bug", "ring", "anchor", "board", "stamp", "space", "wallet", "emoticon"}
)

# Words about faces, deeds and weather that icons draw although they are not concrete nouns.
DRAWABLE_WORDS = frozenset(
    """
    smile smiling laugh laughing grin grinning wink winking cry crying sad happy angry kiss kissing
    surprised sick sleepy sleeping dizzy confused neutral tired nervous scared shocked love
    fire run running walk walking swim swimming climbing dance dancing ski skiing surf surfing
    hiking fishing cycling boxing wrestling archery fencing karate yoga soccer football basketball
    baseball volleyball tennis badminton golf cricket rugby hockey bowling billiards
    snow snowing rain raining fog storm thunderstorm tornado hurricane rainbow sunrise sunset
    flag crown wave hug clap pray birthday wedding christmas halloween party gift magic
    """.split()
)

# Prefixes that sets use for their own variants (`baseline-`, `md-`, `bxs-`).
SET_PREFIXES = frozenset({"baseline", "md", "ios", "bx", "bxs", "ibm", "logo", "mood", "weather"})

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+")
MAX_WORDS = 4
SHORT_WORDS = frozenset({"tv", "ox", "ax"})


def words_of(identifier: str) -> list[str]:
    """Split an identifier at punctuation, digits and camel case; lower case, styles removed."""
    spaced = _CAMEL.sub(" ", identifier).lower()
    words = _WORD.findall(spaced)
    kept = [word for word in words if word not in STYLE_WORDS]
    if len(kept) > 1 and kept[0] in SET_PREFIXES:
        kept = kept[1:]
    return [word for at, word in enumerate(kept) if at == 0 or kept[at - 1] != word]


def caption_of(identifier: str, lexicon: NounLexicon) -> str | None:
    """Return the caption of an icon, or None if the icon is not about a thing.

    Kept are names of at most four words, none of them from the interface vocabulary, in which at
    least one word (or the whole name) is a concrete noun.
    """
    words = words_of(identifier)
    if (
        not words
        or len(words) > MAX_WORDS
        or any(len(word) < 3 for word in words if word not in SHORT_WORDS)
    ):
        return None
    if any(word in INTERFACE_WORDS for word in words):
        return None
    caption = " ".join(words)
    drawable = any(word in DRAWABLE_WORDS or lexicon.is_concrete(word) for word in words)
    return caption if drawable or lexicon.is_concrete(caption) else None
