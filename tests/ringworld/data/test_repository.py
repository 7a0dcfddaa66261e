"""A repository's files follow what they import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given, settings

from ringworld.data.repository import imports_first

PROJECT = {
    "app/main.py": "import app.view\nfrom app import model\n",
    "app/view.py": "from .model import Model\nfrom . import tools\nimport os\n",
    "app/model.py": "def late():\n    from app.base import Base\n",
    "app/base.py": "",
    "app/tools/__init__.py": "from .deep import thing\n",
    "app/tools/deep.py": "from ..base import Base\nfrom ...nowhere import x\n",
    "app/old.py": "print 'python two'\n",
    "app/NOTES.md": "import app.main",
    "app-1.dist-info/METADATA": "Name: app",
}


def test_every_file_follows_what_it_imports_and_the_description_comes_first() -> None:
    order = imports_first(PROJECT)
    assert sorted(order) == sorted(PROJECT)
    assert order[0] == "app-1.dist-info/METADATA"
    before = [
        ("app/view.py", "app/main.py"),
        ("app/model.py", "app/main.py"),
        ("app/model.py", "app/view.py"),
        ("app/base.py", "app/model.py"),
        ("app/tools/__init__.py", "app/view.py"),
        ("app/tools/deep.py", "app/tools/__init__.py"),
        ("app/base.py", "app/tools/deep.py"),
    ]
    for first, second in before:
        assert order.index(first) < order.index(second)


def test_the_order_does_not_depend_on_the_order_given() -> None:
    assert imports_first(dict(reversed(PROJECT.items()))) == imports_first(PROJECT)


def test_a_cycle_is_entered_at_the_smallest_path_and_breaks_nothing_else() -> None:
    files = {"a.py": "import b", "b.py": "import c", "c.py": "import a, d", "d.py": ""}
    assert imports_first(files) == ["d.py", "c.py", "b.py", "a.py"]


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda edge: edge[0] != edge[1]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_only_imports_within_a_cycle_are_ever_out_of_order(edges: set[tuple[int, int]]) -> None:
    files = {f"m{n:02d}.py": "\n".join(f"import m{b:02d}" for a, b in edges if a == n) for n in range(12)}
    order = [int(path[1:3]) for path in imports_first(files)]
    assert sorted(order) == list(range(12))
    reached = {a: {b for x, b in edges if x == a} for a in range(12)}
    for _ in range(12):
        reached = {a: seen | {c for b in seen for c in reached[b]} for a, seen in reached.items()}
    for a, b in edges:
        assert order.index(b) < order.index(a) or a in reached[b]


def test_a_real_package_keeps_its_imports_in_order() -> None:
    spec = importlib.util.find_spec("fsspec")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    files = {f"fsspec/{path.relative_to(folder)}": path.read_text() for path in folder.rglob("*.py")}
    order = imports_first(files)
    assert sorted(order) == sorted(files)
    assert order.index("fsspec/utils.py") < order.index("fsspec/spec.py") < order.index("fsspec/asyn.py")
