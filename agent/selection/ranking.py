"""Rank the variants of a component by a policy and the knowledge about a box."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.selection.decision import Candidate, Decision
from agent.selection.figures import missed_limits
from agent.selection.measurement import Measurement, Prior
from agent.selection.memory_prediction import PROCESS_BYTES, MemoryModel, memory_model
from agent.selection.speed_prediction import Prediction, Predictor, Source
from artifact.device_facts import DeviceFacts
from artifact.manifest import Component, Objective, Quality, SelectionPolicy, Task, Variant
from artifact.sizes import in_bytes


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The facts and measurements that a ranking is based on.

    ``measured`` are probation's measurements on this box, of any model; ``priors`` are medians of
    the hardware class, by variant of the component's model. Without a power meter (``metered``
    False) the objective tokens_per_joule is replaced by tokens_per_second. ``share_bytes`` is the
    part of the box's budget for models that other slots leave; None if it has only one slot.
    """

    facts: DeviceFacts
    measured: Sequence[Measurement] = ()
    priors: Mapping[str, Prior] | None = None
    metered: bool = False
    share_bytes: int | None = None
    process_bytes: Mapping[str, int] = field(default_factory=lambda: PROCESS_BYTES)


def rank(component: Component, policy: SelectionPolicy, known: Knowledge) -> Decision:
    """Rank a component's variants for this box."""
    asked = policy.of(component.slot)
    objective = asked.objective
    if objective is Objective.TOKENS_PER_JOULE and not known.metered:
        objective = Objective.TOKENS_PER_SECOND
    judge = _Judge(component, asked, known)
    candidates = [judge.candidate(variant) for variant in component.model.variants]
    ranked = [c for c in candidates if c.bucket == "ranked"]
    excluded = [c for c in candidates if c.bucket == "excluded"]
    ranked.sort(key=_order(objective))
    departure = _departure(asked, objective)
    return Decision(
        slot=component.slot,
        model=component.model.reference,
        objective=objective,
        memory_budget_bytes=judge.budget,
        min_tokens_per_second=asked.min_tokens_per_second,
        max_candidates=asked.max_candidates,
        rate_unit=rate_unit(component.model.task),
        candidates=(*ranked, *excluded),
        reason=_summary(objective, ranked, excluded) + (departure if ranked else ""),
        departure=departure,
        max_ttft_seconds=asked.max_ttft_seconds,
        max_joules_per_token=asked.max_joules_per_token,
    )


def rate_unit(task: Task) -> str:
    """Return the unit of a rate of this task."""
    return "tokens/s" if task is Task.TEXT_GENERATION else "inferences/s"


def box_budget(facts: DeviceFacts) -> int:
    """Return the bytes that all worker processes together may use on this box; 0 if unknown."""
    return min((each for each in (facts.model_memory_bytes, facts.memory_bytes) if each), default=0)


def memory_budget(component: Component, policy: SelectionPolicy, known: Knowledge) -> int:
    """Return the bytes that this component's worker process may use on this box."""
    bounds = (box_budget(known.facts), component.max_memory_bytes, policy.max_memory_bytes)
    budget = min((bound for bound in bounds if bound), default=0)
    return budget if known.share_bytes is None else min(budget, known.share_bytes)


class _Judge:
    """Judges the variants of one component against the box and the policy."""

    def __init__(self, component: Component, policy: SelectionPolicy, known: Knowledge) -> None:
        model = component.model
        self.budget = memory_budget(component, policy, known)
        self._component = component
        self._policy = policy
        self._known = known
        self._predictor = Predictor(
            model.reference, model.task, known.facts.benchmark, known.measured, known.priors
        )

    def candidate(self, variant: Variant) -> Candidate:
        """Return a variant's bucket, figures and reason."""
        model = self._component.model
        memory = memory_model(
            variant, model.reference, self._known.measured, self._known.process_bytes
        ).with_more(self._component.adapter_bytes)
        context = self._context(memory)
        prediction = self._predictor.predict(variant)
        figures = replace(
            prediction.figures, memory_bytes=memory.bytes_at(context or variant.context_length)
        )
        candidate = Candidate(
            variant=variant.name,
            runtime=variant.runtime,
            quantization=variant.quantization,
            bucket="ranked",
            reason="",
            **figures.named("predicted"),
            source=prediction.source,
            context_length=context,
            quality=_in_words(variant.quality),
            quality_value=_higher_is_better(variant.quality),
        )
        reason = (
            self._excluded_by_policy(variant)
            or self._not_runnable(variant)
            or self._over_budget(memory, context)
            or _quality_too_low(variant, self._component, self._policy)
        )
        doubt = self._doubt(variant, prediction)
        # The bare roofline is an upper bound of the speed, except for embedding models: their
        # token table is part of the size and is looked up, not multiplied.
        is_bound = prediction.source is Source.ROOFLINE and model.task is not Task.EMBEDDING
        if not reason and doubt and is_bound:
            reason = doubt
        if reason:
            return replace(candidate, bucket="excluded", reason=reason)
        return replace(candidate, doubt=doubt, reason=self._explain(candidate, memory, doubt))

    def _explain(self, candidate: Candidate, memory: MemoryModel, doubt: str) -> str:
        speed, unit = candidate.predicted_tokens_per_second, rate_unit(self._component.model.task)
        shorter = ""
        if candidate.context_length:
            whole = memory.variant.context_length
            shorter = f" with a context of {candidate.context_length} instead of {whole}"
        parts = [
            f"fits{shorter}: needs {in_bytes(candidate.predicted_memory_bytes)}",
            f"predicted {speed:.1f} {unit} ({candidate.source})"
            if speed
            else "speed not predicted",
        ]
        if memory.why:
            parts[0] += f" ({memory.why})"
        if doubt:
            parts.append(f"tried last: {doubt}")
        return "; ".join(parts)

    def _excluded_by_policy(self, variant: Variant) -> str:
        slot = self._component.slot
        pin = self._policy.pins.get(slot)
        if pin not in {None, variant.name}:
            return f"the release pins {pin}"
        for exclusion in self._policy.exclude:
            if exclusion.matches(slot, variant):
                return f"the release excludes {exclusion}"
        return ""

    def _not_runnable(self, variant: Variant) -> str:
        facts = self._known.facts
        if variant.runtime not in facts.runtimes:
            return f"runtime {variant.runtime} is not installed here"
        missing = [isa for isa in variant.required_isa if isa not in facts.isa]
        return f"needs {', '.join(missing)}, which this CPU lacks" if missing else ""

    def _context(self, memory: MemoryModel) -> int:
        """Return the shorter context that the variant would serve with; 0 for its full one."""
        longest = memory.longest_context(self.budget)
        least = self._policy.min_context_length
        return longest if 0 < least <= longest < memory.variant.context_length else 0

    def _over_budget(self, memory: MemoryModel, context: int) -> str:
        needed = memory.bytes_at(context or memory.variant.context_length)
        if needed <= self.budget:
            return ""
        reason = f"needs {in_bytes(needed)}, budget {in_bytes(self.budget)}"
        if self._known.share_bytes == self.budget:
            reason += f" of {in_bytes(box_budget(self._known.facts))} for all slots"
        if memory.why:
            reason += f" ({memory.why})"
        longest = memory.longest_context(self.budget)
        if longest:
            least = self._policy.min_context_length or memory.variant.context_length
            reason += f"; fits with context <= {longest}, the release asks for {least}"
        return reason

    def _doubt(self, variant: Variant, prediction: Prediction) -> str:
        """Return the limit that the variant is predicted to miss, in words; empty if none."""
        figures = prediction.figures
        if prediction.source is Source.ROOFLINE:
            # Its TTFT is too rough to cast doubt on a variant.
            figures = replace(figures, ttft_seconds=None)
        misses = missed_limits(figures, self._policy, rate_unit(self._component.model.task))
        if misses:
            return f"predicted {'; '.join(misses)}"
        prior = (self._known.priors or {}).get(variant.name)
        if prior is not None and prior.memory_bytes > self.budget:
            return f"took {in_bytes(prior.memory_bytes)} on devices of this hardware class"
        return ""


def _quality_too_low(variant: Variant, component: Component, policy: SelectionPolicy) -> str:
    allowed = policy.max_quality_loss
    if allowed is None:
        return ""
    if variant.quality is None:
        return "quality is unmeasured, and the policy bounds its loss"
    best = max(
        (
            other.quality
            for other in component.model.variants
            if other.quality and _comparable(other.quality, variant.quality)
        ),
        key=lambda quality: quality.value if quality.higher_is_better else -quality.value,
    )
    # Relative, so that one bound serves accuracies and perplexities.
    loss = abs(best.value - variant.quality.value) / (abs(best.value) or 1.0)
    if loss <= allowed:
        return ""
    return (
        f"{_in_words(variant.quality)} is {loss:.1%} worse than the best"
        f" ({_in_words(best)}), {allowed:.1%} allowed"
    )


def _comparable(one: Quality, other: Quality) -> bool:
    return (one.metric, one.dataset, one.higher_is_better) == (
        other.metric,
        other.dataset,
        other.higher_is_better,
    )


def _order(objective: Objective) -> Callable[[Candidate], tuple[bool, float, float, str]]:
    """Return a sort key, best first; ties go to the faster variant, then to the smaller name."""

    def key(candidate: Candidate) -> tuple[bool, float, float, str]:
        speed = candidate.predicted_tokens_per_second
        quality = candidate.quality_value
        joules = candidate.predicted_joules_per_token
        match objective:
            case Objective.QUALITY:
                first = float("inf") if quality is None else -quality
            case Objective.MEMORY:
                first = float(candidate.predicted_memory_bytes)
            case Objective.TOKENS_PER_JOULE if joules:
                first = joules
            case Objective.TOKENS_PER_JOULE:
                # Unknown energy ranks after known energy, then by speed.
                first = float("inf")
            case _:
                first = -speed
        return (bool(candidate.doubt), first, -speed, candidate.variant)

    return key


def _summary(used: Objective, ranked: list[Candidate], excluded: list[Candidate]) -> str:
    if not ranked:
        reasons = "; ".join(f"{c.variant}: {c.reason}" for c in excluded)
        return f"no variant fits ({reasons})"
    return f"{len(ranked)} of {len(ranked) + len(excluded)} variants fit; ranked by {used.value}"


def _departure(asked: SelectionPolicy, used: Objective) -> str:
    if asked.objective is used:
        return ""
    judged = "; nor is max_joules_per_token judged" if asked.max_joules_per_token else ""
    return f", not {asked.objective.value}, as this box has no power meter{judged}"


def _in_words(quality: Quality | None) -> str:
    return "" if quality is None else f"{quality.metric} {quality.value:.4g}"


def _higher_is_better(quality: Quality | None) -> float | None:
    if quality is None:
        return None
    return quality.value if quality.higher_is_better else -quality.value
