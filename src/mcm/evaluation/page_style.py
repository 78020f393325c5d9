"""The style of a report's page: light, dark where the reader's system is, and always light on paper.

Texts have a contrast of at least 4.5 to what they stand on, lines and marks of figures at least 3 (WCAG 2.1, 1.4.3 and
1.4.11); a test reads the colours here.
"""

LIGHT = {
    "paper": "#ffffff", "panel": "#f4f5f7", "ink": "#1a1c1f", "muted": "#565b63", "line": "#c9ccd1",
    "s0": "#0b62c4", "s1": "#b3400e", "s2": "#1b7a34", "s3": "#8b2fa8",
    "s4": "#a8005c", "s5": "#00707a", "s6": "#6b5500", "s7": "#4d4d4d",
}  # fmt: skip
DARK = {
    "paper": "#14161a", "panel": "#1f2227", "ink": "#e8e9eb", "muted": "#abb0b8", "line": "#3d424a",
    "s0": "#6cb2ff", "s1": "#ff9d66", "s2": "#6fd388", "s3": "#d59bf0",
    "s4": "#ff85bd", "s5": "#5fd4de", "s6": "#dcc15a", "s7": "#c4c4c4",
}  # fmt: skip

_LAYOUT = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere }
.lead { font-size: 1.1rem; max-width: 60rem; margin: 0 0 .6rem; overflow-wrap: anywhere }
.note, figcaption, caption, .ends { color: var(--muted) }
.note { max-width: 60rem; margin: .3rem 0 }
.scroll { overflow-x: auto }
.scroll + .scroll, .facts + .facts { margin-top: 1.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .3rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
thead th, thead .number { background: var(--panel); vertical-align: bottom; white-space: normal }
th[scope=row] { font-weight: 600; min-width: 7rem; max-width: 22rem; overflow-wrap: anywhere }
.number { text-align: right; white-space: nowrap }
.ends { display: block; font-size: .82rem }
.facts td { overflow-wrap: anywhere; min-width: 12rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16.5rem), 1fr)); gap: 1rem }
figure { margin: 0; min-width: 0 }
svg { display: block; width: 100%; height: auto; max-width: 30rem; fill: var(--ink) }
svg.wide { max-width: 48rem }
svg text { font: 11px system-ui, sans-serif }
svg path { fill: none; stroke-width: 1.6 }
.grid { stroke: var(--line); stroke-width: 1 }
.target { stroke: var(--muted); stroke-dasharray: 4 4; stroke-width: 1.2 }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: .4rem 0; padding: 0 }
.legend li { display: flex; align-items: center; gap: .4rem }
svg.key { width: 2.2rem; flex: none }
.wall th[scope=row] { font-weight: 400; width: 14rem; min-width: 9rem }
.wall td { padding: .25rem }
.wall img { display: block; width: 7.4rem; height: auto }
.frames img { width: 12rem; image-rendering: pixelated }
pre { background: var(--panel); padding: .8rem; overflow: auto; max-height: 30rem; font-size: .8rem }
@page { size: landscape; margin: 1.2cm }
@media print {
  :root { color-scheme: light }
  body { max-width: none; padding: 0; font-size: 9.5pt }
  .scroll { overflow: visible }
  table { font-size: 8pt }
  th, td { padding: .2rem .35rem }
  th[scope=row] { min-width: 0; overflow-wrap: break-word }
  .ends { font-size: .85em }
  .figures { grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)) }
  .wall { table-layout: fixed; width: 100% }
  .wall th[scope=row], .wall th:first-child { width: 4cm; min-width: 0 }
  section.new { break-before: page }
  h2, h3, caption, thead, .legend, .note { break-after: avoid }
  tr, figure, svg { break-inside: avoid }
  thead { display: table-header-group }
  details { display: none }
  .wall img { width: 100%; max-width: 2.4cm }
  .frames img { max-width: 3.4cm }
}
"""


def style() -> str:
    """The text of the page's <style>."""

    def colours(theme: dict[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in theme.items())

    series = [name for name in LIGHT if name[1:].isdigit()]
    marks = "".join(
        f".{name} path {{ stroke: var(--{name}) }} .{name} .mark {{ fill: var(--{name}) }}\n" for name in series
    )
    return (
        f":root {{ color-scheme: light dark; {colours(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {colours(DARK)} }} }}{_LAYOUT}{marks}"
    )
