"""How many layers go to the GPUs: the decision of llama.cpp's `--fit` (common/fit.cpp), replayed.

The engine measures every attempt and keeps a margin free on each device. A user-set context is never
changed. Dense models are filled layer by layer from the back. Mixtures of experts first put everything
but the experts on the GPU, then turn layers into full ones from the front, and at last try part of one more.
"""

from __future__ import annotations

from collections.abc import Callable

from .memory import MIB, Estimate, Placement, Settings, estimate
from .model import Model

MARGIN_BYTES = 1024 * MIB


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest n in [low, high] that fits; `low` is taken as given. Use grows with n."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _dense(model: Model, s: Settings, targets: list[int], hosted: bool) -> list[int]:
    """Layers of each GPU, filled from the last device to the first; `hosted`: experts stay on the host."""
    count = len(model.layers) + 1
    split = [0] * len(targets)
    experts = frozenset(range(len(model.layers))) if hosted else frozenset()
    for device in range(len(targets) - 1, -1, -1):

        def fits(n: int, device: int = device) -> bool:
            trial = [*split[:device], n, *split[device + 1 :]]
            return estimate(model, s, Placement(tuple(trial), experts)).gpus[device].total <= targets[device]

        split[device] = _most(0, count - sum(split[device + 1 :]), fits)
    return split


def _experts(model: Model, s: Settings, split: list[int], target: int) -> Placement:
    """One device: make layers full from the front while they fit, then part of one more."""
    repeating = len(model.layers)
    first = repeating + 1 - sum(split)
    on_gpu = list(range(max(first, 0), repeating))

    def placed(n: int, tail: tuple[int, int] = (0, 0)) -> Placement:
        return Placement(tuple(split), frozenset(on_gpu[n:]), tail)

    def used(placement: Placement) -> int:
        return estimate(model, s, placement).gpus[0].total

    n = _most(0, len(on_gpu), lambda k: used(placed(k)) <= target)
    best = placed(n)
    if n < len(on_gpu):
        gate, up, down = model.weights.ffn[on_gpu[n]]
        # fractions that stay on the host: gate and down; then, if that fits, down alone; else all three
        for order in ((gate + down, down), (gate + up + down,)):
            fitted = False
            for moved in order:
                trial = placed(n + 1, (on_gpu[n], moved))
                if used(trial) >= target:
                    break
                best, fitted = trial, True
            if fitted:
                break
    return best


def fit(model: Model, s: Settings, free: tuple[int, ...], margin: int = MARGIN_BYTES) -> Estimate:
    """The placement that the engine chooses with `free` bytes on each GPU, and what it takes.

    No GPU (`free` empty) gives the CPU-only estimate.
    """
    if not free:
        return estimate(model, s, Placement(()))
    count = len(model.layers) + 1
    targets = [f - margin for f in free]
    whole = spread(model, s, free)
    full = estimate(model, s, whole)
    if all(part.total <= target for part, target in zip(full.gpus, targets, strict=True)):
        return full
    if not model.experts:
        return estimate(model, s, Placement(tuple(_dense(model, s, targets, hosted=False))))
    split = _dense(model, s, targets, hosted=True)
    experts = frozenset(range(len(model.layers)))
    dense_only = estimate(model, s, Placement(tuple(split), experts))
    spare = estimate(model, s, Placement(whole.split, experts)).gpus
    surplus = sum(target - part.total for target, part in zip(targets, spare, strict=True))
    if surplus <= 0 or len(free) > 1 or sum(split) < count:
        return dense_only
    return estimate(model, s, _experts(model, s, split, targets[0]))


def spread(model: Model, s: Settings, free: tuple[int, ...]) -> Placement:
    """All layers on the GPUs, split in proportion to free memory, as the engine does by default."""
    count = len(model.layers) + 1
    total = sum(free)
    if len(free) == 1 or total <= 0:
        return Placement((count, *[0] * (len(free) - 1)))
    split, done, seen = [], 0, 0
    for bytes_free in free:
        seen += bytes_free
        upto = sum(1 for i in range(count) if i / count < seen / total)
        split.append(upto - done)
        done = upto
    return Placement(tuple(split))


def forced(model: Model, s: Settings, gpus: int, layers: int) -> Estimate:
    """Exactly `layers` layers (the output layer counts as one) on the GPUs, evenly split."""
    layers = max(0, min(layers, len(model.layers) + 1))
    if not gpus or not layers:
        return estimate(model, s, Placement((0,) * gpus))
    split = [layers // gpus + (1 if i < layers % gpus else 0) for i in range(gpus)]
    return estimate(model, s, Placement(tuple(split)))
