"""ATTRIBUTION.md: who made each file of the pack, under which licence, from where."""

from __future__ import annotations

from collections import defaultdict

from prepare.packages import PACKAGES
from prepare.selection import FILM_FILE, FILM_PACKAGE, Row

INTRODUCTION = """# Attribution

Every file in this pack is CC0, public domain, CC-BY or BSD. Nothing here is CC-BY-SA, GPL or LGPL.
All images were resized and re-encoded; the film was cut, scaled and re-encoded (changes as CC-BY asks to be stated).
"""
FILM = """## Film

- `{file}`: Big Buck Bunny, CC-BY 3.0 (https://creativecommons.org/licenses/by/3.0/)

  (c) copyright 2008, Blender Foundation / www.bigbuckbunny.org

  Obtained from the {package} source distribution (PyPI), which ships the film as documentation media. Title and \
credits removed, shots concatenated, scaled to 512x288.
"""
LICENCE_TEXTS = """Licence texts: CC0-1.0 https://creativecommons.org/publicdomain/zero/1.0/ ; \
CC-BY-x.y https://creativecommons.org/licenses/by/x.y/ .
"""
BSD_HOLDERS = {
    "libjxl-testdata": "Copyright (c) the JPEG XL Project Authors",
    "enlightenment-data": "Copyright (c) 2000-2020 Carsten Haitzler and various contributors "
    "(see AUTHORS in the Enlightenment source)",
    "python3-imageio": "Copyright (c) 2015 imageio contributors",
}
BSD_TERMS = """Redistribution and use in source and binary forms, with or without modification, are permitted provided \
that the following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following \
disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the \
following disclaimer in the documentation and/or other materials provided with the distribution.
3. (BSD-3-Clause only) Neither the name of the copyright holder nor the names of its contributors may be used to \
endorse or promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES, \
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE \
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, \
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR \
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, \
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE \
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""


def attribution(photos: list[Row], sprites: list[Row], fixtures: list[Row], has_film: bool) -> str:
    """Markdown that names every file given; a part that is empty is left out."""
    parts = [INTRODUCTION]
    if has_film:
        parts.append(FILM.format(file=FILM_FILE, package=PACKAGES[FILM_PACKAGE]))
    if sprites:
        parts.append(_sprites(sprites))
    if fixtures:
        lines = [f"- `{row['file']}`: {row['licence']}; {_origin(row)} (package {row['package']})" for row in fixtures]
        parts.append("## Test fixtures\n\n" + "\n".join(lines) + "\n")
    if photos:
        parts.append("## Photographs\n\n" + LICENCE_TEXTS)
        groups = defaultdict(list)
        for row in photos:
            groups[row["package"], row["licence"]].append(row)
        for (package, licence), rows in sorted(groups.items()):
            lines = "\n".join(f"- `{row['file']}`: {_origin(row)}" for row in rows)
            parts.append(f"### {package}, {licence} ({len(rows)})\n\n{lines}\n")
    if notices := _bsd_notices(photos + fixtures):
        parts.append(notices)
    return "\n".join(parts)


def _origin(row: Row) -> str:
    return f"{row['author']}; {row['source_url']}"


def _sprites(rows: list[Row]) -> str:
    lines = [f"- `{row['file']}`: `{row['path'].rsplit('/', 1)[-1]}`" for row in rows]
    return (
        "## Sprites\n\nOpen Clip Art Library, public domain dedication (Debian package "
        f"{PACKAGES['openclipart-png']}, http://www.openclipart.org/). "
        "The original file name often holds the author's name:\n\n" + "\n".join(lines) + "\n"
    )


def _bsd_notices(rows: list[Row]) -> str:
    groups = defaultdict(list)
    for row in rows:
        if row["licence"].startswith("BSD"):
            groups[row["package"], row["licence"].split(" (")[0]].append(f"`{row['file']}`")
    if not groups:
        return ""
    lines = [
        f"{', '.join(files)}: {BSD_HOLDERS[package]}, {licence}."
        for (package, licence), files in sorted(groups.items())
    ]
    return "## BSD licence notices\n\n" + "\n\n".join(lines) + "\n\n" + BSD_TERMS
