"""The command line of a flow: KEY=VALUE words, sorted into what the flow, the curriculum and the placement each own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.config import compose, dotlist
from infra.errors import UserError
from ringworld.strict import from_mapping
from stages.curriculum import Curriculum, Site, load_curriculum, load_site

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


@dataclass(frozen=True)
class FlowArguments:
    """What the flow itself owns."""

    curriculum: str = "tiny"
    placement: str = "local"
    root: str = "runs"
    run: str = ""
    only: str | None = None
    start: str | None = None
    force: str | None = None
    dry_run: bool = False
    hosts: int | None = None

    @property
    def run_name(self) -> str:
        """The run's name: given, or the curriculum's."""
        return self.run or Path(self.curriculum).stem


@dataclass(frozen=True)
class Flow:
    """A parsed command line: the flow's own keys, the curriculum and where it runs."""

    arguments: FlowArguments
    curriculum: Curriculum
    site: Site
    words: tuple[str, ...] = field(default=())


def parse(words: Sequence[str]) -> Flow:
    """Everything a command line says, checked. UserError names the key, the value and what is allowed."""
    own = [word for word in words if word.partition("=")[0] in FlowArguments.__dataclass_fields__]
    placing = [word.removeprefix("placement.") for word in words if word.startswith("placement.")]
    rest = [word for word in words if word not in own and not word.startswith("placement.")]
    arguments = from_mapping(FlowArguments, _texts(own), at="argument")
    _check_root(arguments.root)
    if arguments.hosts is not None:
        placing.append(f"hosts={arguments.hosts}")
    curriculum = load_curriculum(compose(CONFIGS / "curricula", arguments.curriculum, rest))
    site = load_site(compose(CONFIGS / "placements", arguments.placement, placing))
    return Flow(arguments, curriculum, site, tuple(words))


def _texts(words: Sequence[str]) -> dict[str, object]:
    """Values of the flow's own keys. Names stay texts even where they look like numbers: run=2026 is a name."""
    typed = dotlist(words)
    texts = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    fields = FlowArguments.__dataclass_fields__
    return {
        key: value if str(fields[key].type).startswith(("bool", "int")) else texts[key] for key, value in typed.items()
    }


def _check_root(root: str) -> None:
    # Ray starts a submitted job in a temporary copy of the folder, which goes when the cluster does.
    if SUBMITTED in os.environ and "://" not in root and not os.path.isabs(root):
        raise UserError(
            f"root={root}: a submitted job runs in a temporary copy of your folder; give an absolute root=, or gs://"
        )
