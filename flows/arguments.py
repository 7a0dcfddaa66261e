"""The command line of a flow: KEY=VALUE words, sorted into what the flow, the curriculum and the placement each own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Generic, TypeVar

from infra.config import compose, dotlist
from infra.errors import UserError
from ringworld import errors
from ringworld.planning.roofline import Efficiency
from ringworld.strict import from_mapping
from stages.curriculum import Curriculum, load_curriculum
from stages.site import Site, load_site

# Ray gives it to the entry point of a submitted job, and to nobody else.
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HELP = """\
usage: python flows/full_curriculum.py [KEY=VALUE ...]

  curriculum=tiny      a file of configs/curricula, or a path to one
  placement=local      a file of configs/placements, or a path to one
  root=runs            where runs lie: a folder, or gs://bucket/folder
  run=NAME             the run's name; the curriculum's by default
  only=STAGE           run this stage alone; its inputs must be finished
  start=STAGE          run this stage and all that depends on it
  force=STAGE[,STAGE]  make a finished stage again; nothing is deleted
  dry_run=true         print the plan, write nothing
  hosts=N              trainer processes, over the placement's own number
  placement.KEY=VALUE  change a key of the placement, as in placement.mesh.ring=2
  KEY=VALUE            change a key of the curriculum, as in stages.text-1k.steps=50 or sources.text=books/*.txt
"""
PLAN_HELP = """\
usage: python flows/plan.py [KEY=VALUE ...]

What every training stage of a curriculum needs on a placement: memory, time and money, before anybody pays.

  curriculum=tiny      a file of configs/curricula, or a path to one
  placement=local      a file of configs/placements, or a path to one
  only=STAGE           this stage alone
  aot=true             ask the compiler: memory as it will be, for TPUs (pip install '.[plan]') and this machine
  search=true          propose the mesh and the rungs of the memory ladder that fit with the least time
  price=3.5            of one chip for one hour
  json=FILE            the same figures for programs
  root=runs run=NAME   packing plans of a run, where it has them, say how much attention a row needs
  products=0.7         the share of the peak rate that products with weights reach; attention=0.5: that attention does
  hosts=N, placement.KEY=VALUE, KEY=VALUE   as for flows/full_curriculum.py

Exit code: 0 all fits, 1 something does not, 2 it cannot work as given.
"""


@dataclass(frozen=True)
class Common:
    """Keys that every flow owns."""

    curriculum: str = "tiny"
    placement: str = "local"
    root: str = "runs"
    run: str = ""
    only: str | None = None
    hosts: int | None = None

    @property
    def run_name(self) -> str:
        """The run's name: given, or the curriculum's."""
        return self.run or Path(self.curriculum).stem


@dataclass(frozen=True)
class FlowArguments(Common):
    """What `flows/full_curriculum.py` owns."""

    start: str | None = None
    force: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class PlanArguments(Common):
    """What `flows/plan.py` owns. price: of a chip-hour. The shares are of the peak rate; see `Efficiency`."""

    aot: bool = False
    search: bool = False
    json: str = ""
    price: float | None = None
    products: float = Efficiency.products
    attention: float = Efficiency.attention

    def __post_init__(self) -> None:
        for name in ("products", "attention"):
            if not 0 < getattr(self, name) <= 1:
                raise errors.UserError(f"{name}={getattr(self, name)}: a share of the peak rate, above 0 and at most 1")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise errors.UserError(f"price={self.price}: of one chip for one hour, 0 or more")


Arguments = TypeVar("Arguments", bound=Common)


@dataclass(frozen=True)
class Flow(Generic[Arguments]):
    """A parsed command line: the flow's own keys, the curriculum and where it runs."""

    arguments: Arguments
    curriculum: Curriculum
    site: Site
    words: tuple[str, ...] = field(default=())


def parse(words: Sequence[str]) -> Flow[FlowArguments]:
    """Everything a command line of the curriculum says, checked. UserError names the key, the value and what is
    allowed."""
    return parse_as(FlowArguments, words)


def parse_as(kind: type[Arguments], words: Sequence[str]) -> Flow[Arguments]:
    """As `parse`, for a flow with these keys of its own."""
    names = [found.name for found in fields(kind)]
    own = [word for word in words if word.partition("=")[0] in names]
    placing = [word.removeprefix("placement.") for word in words if word.startswith("placement.")]
    rest = [word for word in words if word not in own and not word.startswith("placement.")]
    arguments = from_mapping(kind, _texts(kind, own), at="argument")
    _check_root(arguments.root)
    if arguments.hosts is not None:
        placing.append(f"hosts={arguments.hosts}")
    curriculum = load_curriculum(compose(CONFIGS / "curricula", arguments.curriculum, rest))
    site = load_site(compose(CONFIGS / "placements", arguments.placement, placing))
    return Flow(arguments, curriculum, site, tuple(words))


def _texts(kind: type[Common], words: Sequence[str]) -> dict[str, object]:
    """Values of a flow's own keys. Names stay texts even where they look like numbers: run=2026 is a name."""
    typed = dotlist(words)
    texts = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    kinds = {found.name: str(found.type) for found in fields(kind)}
    return {
        key: value if kinds[key].startswith(("bool", "int", "float")) else texts[key] for key, value in typed.items()
    }


def _check_root(root: str) -> None:
    # Ray starts a submitted job in a temporary copy of the folder, which goes when the cluster does.
    if SUBMITTED in os.environ and "://" not in root and not os.path.isabs(root):
        raise UserError(
            f"root={root}: a submitted job runs in a temporary copy of your folder; give an absolute root=, or gs://"
        )
