"""How a page looks: light and dark as the reader's system has it, one column on a phone.

The colours of series differ in lightness as well as hue (after Okabe and Ito's palette), so that
they can be told apart with any kind of colour vision; markers and dashes differ as well.
"""

LIGHT = ("#0072b2", "#c44a00", "#00795a", "#a8408a", "#8a6100", "#4d4d4d", "#2b8cc4")
DARK = ("#62baf0", "#ff9d5c", "#3ecf9e", "#eba3d2", "#f0cf5e", "#c9c9c9", "#a9d8ff")


def _series(colours: tuple[str, ...]) -> str:
    return " ".join(f"--s{index}: {colour};" for index, colour in enumerate(colours))


MARKS = "\n".join(f".s{index} {{ --mark: var(--s{index}); }}" for index in range(len(LIGHT)))

STYLE = f"""
:root {{ color-scheme: light dark; --paper: #f6f5f2; --card: #fff; --ink: #1b1b1e;
  --faint: #63636a; --line: #e2e0da; --axis: #8c8c92; --count: #c9c6bd; --warn: #fff3d6;
  {_series(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #131315; --card: #1d1d20;
  --ink: #ececef; --faint: #a3a3ab; --line: #35353b; --axis: #7d7d85; --count: #4a4a52;
  --warn: #3b3118; {_series(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1.2rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.08rem; line-height: 1.3; margin: 0 0 .2rem; }}
header p, .figure > p {{ color: var(--faint); margin: 0 0 .7rem; overflow-wrap: anywhere; }}
.figure > p {{ font-size: .87rem; line-height: 1.4; }}
header .kind {{ font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; margin: 0; }}
header .warning {{ background: var(--warn); color: var(--ink); border-radius: .4rem;
  padding: .5rem .8rem; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(7.7rem, 1fr)); gap: .7rem;
  margin: 1rem 0; }}
.facts div, .figure {{ background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .8rem 1rem; }}
dt {{ font-size: .84rem; color: var(--faint); }}
dd {{ margin: 0; font-size: .8rem; color: var(--faint); }}
.facts div {{ display: flex; flex-direction: column; }}
dd.value {{ order: -1; font-size: 1.45rem; font-weight: bold; line-height: 1.3; color: var(--ink);
  font-variant-numeric: tabular-nums; }}
dt {{ line-height: 1.3; }}
#others table {{ min-width: 100%; }}
.figures {{ columns: 2 26rem; column-gap: .9rem; }}
.figure {{ break-inside: avoid; margin: 0 0 .9rem; }}
svg {{ display: block; width: 100%; height: auto; }}
.figure > svg {{ max-width: 40rem; margin: 0 auto; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: 0 0 .4rem;
  padding: 0; font-size: .84rem; }}
.legend li {{ display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }}
.swatch {{ width: 2rem; flex: none; }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.axis {{ stroke: var(--axis); stroke-width: 1.2; }}
.tick, .label, .name {{ font-size: 12px; fill: var(--faint); font-variant-numeric: tabular-nums; }}
.label {{ fill: var(--ink); }}
.name {{ fill: var(--mark, var(--ink)); paint-order: stroke; stroke: var(--card); stroke-width: 3px;
  stroke-linejoin: round; }}
@media (max-width: 30rem) {{ .tick, .label, .name {{ font-size: 14px; }} }}
.line {{ fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }}
.mark {{ fill: var(--mark); stroke: var(--card); stroke-width: .3; }}
.fill {{ fill: var(--mark); }}
.count {{ fill: var(--count); }}
.ideal, .mean {{ stroke: var(--axis); stroke-width: 1.3; stroke-dasharray: 4 4; }}
.whisker {{ fill: none; stroke: var(--mark); stroke-width: 1.4; opacity: .7; }}
.frontier {{ fill: none; stroke: var(--count); stroke-width: 6; stroke-linejoin: round; }}
.span {{ stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }}
{MARKS}
table {{ border-collapse: collapse; font-size: .84rem; }}
th, td {{ padding: .25rem .6rem .25rem 0; text-align: right; font-weight: normal;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); vertical-align: top; }}
thead th {{ color: var(--faint); }}
tbody th, thead th:first-child {{ text-align: left; }}
.wide {{ overflow-x: auto; }}
.wide td, .wide thead th {{ white-space: nowrap; }}
.wide tbody th {{ min-width: 8rem; }}
.machine td, .machine thead th:last-child {{ text-align: left; white-space: normal;
  overflow-wrap: anywhere; }}
.bars {{ width: 100%; table-layout: fixed; }}
.bars th, .bars td {{ padding: .15rem .5rem .15rem 0; vertical-align: middle;
  overflow-wrap: anywhere; line-height: 1.25; border: 0; }}
.what {{ width: 36%; }}
.shown {{ width: 5.2rem; }}
.bars td:last-child {{ padding-right: 0; }}
.bars svg {{ height: .95rem; }}
details {{ margin-top: .5rem; }}
summary {{ cursor: pointer; font-size: .84rem; color: var(--faint); }}
.mistakes {{ display: grid; gap: .6rem; list-style: none; margin: 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }}
.mistakes li {{ display: grid; grid-template-columns: 1fr auto 1fr 2.2rem; align-items: center;
  gap: .5rem; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }}
.mistakes figure {{ margin: 0; text-align: center; min-width: 0; }}
.mistakes img, .none {{ display: block; width: 3.5rem; height: 3.5rem; object-fit: contain;
  margin: 0 auto .2rem; border-radius: .3rem; background: #fff; }}
.none {{ background: var(--line); }}
figcaption {{ font-size: .78rem; line-height: 1.2; overflow-wrap: anywhere; }}
.mistakes b {{ text-align: right; }}
.arrow {{ color: var(--faint); }}
"""
