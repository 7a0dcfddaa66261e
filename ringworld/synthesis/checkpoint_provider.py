"""Our own sampler: a finished stage of a run, or a Hugging Face folder, in this process and on its devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ringworld.errors import UserError
from ringworld.generate.chat import Prompts
from ringworld.generate.checkpoint import open_checkpoint
from ringworld.generate.sampler import Prompt, open_sampler
from ringworld.generate.sampling import Sampling
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.synthesis.options import SamplerOptions
from ringworld.synthesis.providers import NOT_A_NUMBER, REFUSED, Meter, Patience
from ringworld.synthesis.records import Ask, Reply


class CheckpointProvider:
    """For one thread. UserError where the folder holds no model, or the mesh does not fit the devices."""

    def __init__(self, place: str, mesh: str, options: SamplerOptions) -> None:
        """mesh: as in ringworld.mesh, over all devices that JAX finds."""
        checkpoint = open_checkpoint(place)
        self.model = checkpoint.name
        self._prompts = Prompts(checkpoint)
        self._sampler = open_sampler(
            checkpoint,
            make_mesh(parse_mesh(mesh)),
            slots=options.slots,
            context=min(options.context, checkpoint.context),
            dtype=options.dtype,
            chunk=options.chunk,
        )
        self._patience = Patience(checkpoint.name, options.patience)

    def worst(self, ask: Ask) -> int:
        return len(self._prompts.of_turns(ask.turns)) + ask.max_tokens

    def ask(self, asks: Sequence[Ask], meter: Meter) -> Iterator[tuple[int, Reply]]:
        possible: list[int] = []
        prompts: list[Prompt] = []
        for index, ask in enumerate(asks):
            meter.first()
            sampling = Sampling(temperature=ask.temperature, seed=ask.seed)
            prompt = Prompt(self._prompts.of_turns(ask.turns), ask.max_tokens, sampling)
            try:
                self._sampler.request(prompt)
            except UserError as refused:
                meter.failed(REFUSED, len(prompt.ids) + ask.max_tokens)
                yield index, self._saw(Reply(str(refused), "error", self.model, error=REFUSED))
            else:
                possible.append(index)
                prompts.append(prompt)
        for place, reply in self._sampler.run(prompts):
            said = Reply(reply.text, reply.finish, self.model, reply.prompt_tokens, len(reply.tokens))
            if reply.finish == "error":
                meter.failed(NOT_A_NUMBER, 0)
                said = replace(said, text="the model's output is NaN or infinite", error=NOT_A_NUMBER)
            yield possible[place], self._saw(said)
        self._patience.in_doubt()  # raises where everything was refused

    def close(self) -> None:
        """Nothing outlives the process."""

    def _saw(self, reply: Reply) -> Reply:
        self._patience.saw(reply)
        return reply
