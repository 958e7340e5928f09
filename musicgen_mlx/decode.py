"""One step of MusicGen over static caches: compiled on a GPU, over fused weights (`musicgen_mlx.fused`) on the CPU.

Guidance runs the condition and its null as one batch, so weights are read once for both. Where it would change nothing
(no condition, nothing said, a factor of 1) the batch is not doubled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from backends.mlx_backend.device import compiles_on_cpu, on_gpu
from backends.mlx_backend.generating import with_weights
from backends.mlx_backend.kv_cache import Recorder, grown
from backends.mlx_backend.lora import adapters
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import condition as conditions
from musicgen_mlx.attention import FixedCache, KeysValues
from musicgen_mlx.condition import Condition
from musicgen_mlx.fused import FusedPath, FusedSteps, Taken, fused_path
from musicgen_mlx.known import UNKNOWN
from musicgen_mlx.model import Memory, MusicGen

SLOTS = 256  # the caches grow by so many steps, so that shapes change rarely
MANY_STEPS = 500  # spare what the kernels cost, which are made once on a machine: a second and more
FEW_SLOTS = 64  # where empty ones cost more than tracing a step again does: on the CPU, compiled

Step = Callable[..., tuple[mx.array, list[KeysValues]]]


class Decoder:
    """The state of a batch that is being generated: caches of what was read, and what is attended to.

    `seeds` holds one seed per item, so that an item's codes do not depend on its batch. `steps` is how many there will
    be: on the CPU weights are joined for some, and unless `compile` says, many are compiled.
    """

    def __init__(
        self, model: MusicGen, sampler: Sampler, seeds: Sequence[int], condition: Condition | None = None,
        guidance: float = 3.0, *, compile: bool | None = None, steps: int = 0,
    ):  # fmt: skip
        self.model, self.sampler, self.seeds = model, sampler, seeds
        self.guided = condition is not None and guidance != 1 and not condition.is_null
        self.guidance = guidance
        self.condition = conditions.both(model, condition) if self.guided and condition is not None else condition
        self.caches: list[KeysValues] = []
        self.taken = self.count = 0
        self.path = fused_path(model, steps)
        many = self.path is not None and steps >= MANY_STEPS
        self.compile = on_gpu() or (many and compiles_on_cpu()) if compile is None else compile
        self.slots = FEW_SLOTS if self.path and self.compile else SLOTS

    def start(self, laid: np.ndarray, known: np.ndarray) -> mx.array:
        """Read the first steps (B, K, S) and return the next one, (B, K); `known` (B, K) is what is given of it."""
        codes = mx.array(np.concatenate([laid, laid]) if self.guided else laid)
        x, mask = self.model.rows(codes, self.condition)
        memory = self.model.memory(self.condition)
        self.taken = x.shape[1]
        recorders = [Recorder(mask) for _ in self.model.layers]
        hidden = self.model.hidden(x, memory, caches=recorders)[:, -1:]
        room = self.slots - self.taken % self.slots
        self.caches = [(grown(layer.keys, room), grown(layer.values, room)) for layer in recorders]
        self.padding, self.seen = self._padding()
        self.step = self._module_steps(memory) if self.path is None else self._fused_steps(self.path, memory)
        return self._queued(self._chosen(self.model.logits(hidden)[:, :, 0], self._noise(), mx.array(known)))

    def advance(self, codes: mx.array, known: np.ndarray) -> mx.array:
        """Read a step (B, K) and return the next one."""
        if self.taken == self.caches[0][0].shape[2]:
            self.caches = [(grown(keys, self.slots), grown(values, self.slots)) for keys, values in self.caches]
            room = [(0, 0), (0, self.slots)]
            self.seen = None if self.seen is None else mx.pad(self.seen, room, constant_values=True)
        # The old caches must have no name left when the new ones are computed: then they are updated in place.
        caches, self.caches = self.caches, []
        rest = self._noise(), mx.array(known), self.padding, self.seen
        chosen, self.caches = self.step(codes, caches, self.taken, *rest)
        del caches
        self.taken += 1
        return self._queued(chosen)

    def _module_steps(self, memory: Memory | None) -> Step:
        """Steps through the model's modules."""
        step = self._compiled() if self.compile else self._bare()._step
        return lambda codes, caches, taken, *rest: step(codes, caches, mx.array(taken), memory, *rest)

    def _fused_steps(self, path: FusedPath, memory: Memory | None) -> Step:
        """Steps over fused weights; compiled, they hold the weights and the condition for as long as this run goes."""
        rows = len(self.seeds) * (1 + self.guided)
        fused = FusedSteps(path, rows, memory, self.condition, guided=self.guided)
        choose = self._bare()._chosen

        def step(codes: mx.array, caches: list[KeysValues], taken: Taken, noise: mx.array, known: mx.array,
                 *rest: Any) -> tuple[mx.array, list[KeysValues]]:  # fmt: skip
            logits, kept = fused(codes, caches, taken, *rest)
            return choose(logits, noise, known), kept

        if not self.compile:
            return step
        compiled = mx.compile(step)
        return lambda codes, caches, taken, *rest: compiled(codes, caches, mx.array(taken), *rest)

    def _step(
        self, codes: mx.array, caches: list[KeysValues], taken: mx.array, memory: Memory | None, noise: mx.array,
        known: mx.array, padding: mx.array | None, seen: mx.array | None,
    ) -> tuple[mx.array, list[KeysValues]]:  # fmt: skip
        model = self.model
        visible = mx.arange(caches[0][0].shape[2]) <= taken
        mask = visible if seen is None else (visible & seen)[:, None, None]
        x = model.embed(codes[:, :, None])
        x = model.placed(
            mx.concatenate([x, x]) if self.guided else x, taken[None] if padding is None else taken - padding
        )
        layers = [FixedCache(keys, values, taken, mask) for keys, values in caches]
        logits = model.logits(model.hidden(x, memory, caches=layers))[:, :, 0]
        return self._chosen(logits, noise, known), [(cache.keys, cache.values) for cache in layers]

    def _chosen(self, logits: mx.array, noise: mx.array, known: mx.array) -> mx.array:
        """Logits (rows, K, V) and noise (B, K, V) -> codes (B, K): those that are known, the others chosen."""
        logits = logits.astype(mx.float32)
        if self.guided:
            said, unsaid = mx.split(logits, 2)
            logits = unsaid + self.guidance * (said - unsaid)
        B, K, V = logits.shape
        chosen = self.sampler(logits.reshape(B * K, V), noise.flatten(0, 1)).reshape(B, K).astype(mx.int32)
        return mx.where(known == UNKNOWN, chosen, known)

    def _noise(self) -> mx.array:
        """The next step's noise (B, K, V), an item's own from its own seed."""
        self.count += 1
        return self.sampler.noise((self.model.config.codebooks, self.model.config.entries), self.seeds, self.count)

    def _padding(self) -> tuple[mx.array | None, mx.array | None]:
        """How many rows of padding an item has before its codes (rows, 1), and which slots are not padding."""
        if self.model.config.condition != "prepend" or self.condition is None:
            return None, None
        mask = self.condition.mask
        seen = mx.pad(mask, [(0, 0), (0, self.caches[0][0].shape[2] - mask.shape[1])], constant_values=True)
        return (~mask).sum(axis=1, keepdims=True), seen

    def _queued(self, codes: mx.array) -> mx.array:
        mx.async_eval(codes, self.caches)
        return codes

    def _bare(self) -> "Decoder":
        """What chooses as this one does, without its caches, which a compiled step must not hold."""
        twin = Decoder.__new__(Decoder)
        twin.model, twin.sampler, twin.guided, twin.guidance = self.model, self.sampler, self.guided, self.guidance
        return twin

    def _compiled(self) -> Step:
        """The compiled step, kept on the model so that later generations of the same kind reuse it."""
        bare = self._bare()

        def step(weights: Any, *arguments: Any) -> tuple[mx.array, list[KeysValues]]:
            traced = bare._bare()
            traced.model = with_weights(bare.model, weights)
            return traced._step(*arguments)

        key = (self.sampler, self.guided, self.guidance, tuple(adapters(self.model).items()))
        compiled, weights = self.model.kept_step(key, step), self.model.parameters()
        return lambda *arguments: compiled(weights, *arguments)
