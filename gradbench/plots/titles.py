"""What is to be seen in a figure of a run, in words, computed from what it draws.

A rule *follows* BPTT in cells that are settled and whose smallest cosine over parameters is `FOLLOWS` or more; where it
is less, the rule *misses* BPTT. Of several seeds the worst one counts, here and in what is drawn. Cells that are not
settled are no evidence, and nothing is said of them but that there are such. Of several systems, and of many rules,
titles speak of the default forms alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gradbench.plots import look
from gradbench.plots.look import FOLLOWS
from gradbench.plots.wording import (
    BLANK,
    NAMED,
    Predicate,
    cosine,
    default_forms,
    equal,
    number,
    part,
    percent,
    plain,
    short,
    some,
    spoken,
    spoken_of,
    tally,
    things,
    together,
)
from gradbench.tables.text import capital, listed
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    Systems = Mapping[str, DataFrame]  # the cells of every system that a figure shows

DOMINATES = 0.5  # share of |g|² above which a parameter decides the global cosine
ALIKE = 2.0  # errors within this factor
DECADE = 10 * (1 - 1e-9)  # so far apart are the nudges at which an error levels off
SYMMETRIC = 1e-3  # of |A|/|J|: below, the Jacobian counts as symmetric
NOTHING = "nothing is settled here, so that no cosine is evidence"
COLLAPSED = "the state shrinks to 0 in {} cells (collapsed), so that no cosine is evidence"
FOLLOW = "follows BPTT"


def evidence(cells: DataFrame) -> DataFrame:
    """The cells that say something about a rule: settled ones that have a smallest cosine."""
    return cells[(cells["status"] == Status.SETTLED) & cells["cosine_min"].notna()]


def nothing(cells: DataFrame) -> str:
    """What is said of cells without evidence: that they collapsed, where most did, or that nothing is settled."""
    gone = int((cells["status"] == Status.COLLAPSED).sum())
    return COLLAPSED.format(part(gone, len(cells))) if 2 * gone > len(cells) else NOTHING


def _by_rule(
    rows: DataFrame, spoken: Callable[[Iterable[str]], list[str]] = default_forms
) -> Iterator[tuple[str, DataFrame]]:
    """The labels that a title speaks of, each with its rows."""
    for label in spoken(rows["estimator_label"]):
        yield label, rows[rows["estimator_label"] == label]


def _follows(cosines: Series) -> bool:
    return bool((cosines >= FOLLOWS).all())


def _held(systems: Systems, holds: Callable[[DataFrame], bool]) -> dict[str, dict[str, bool]]:
    """Rule to system to whether something holds of its evidence there."""
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in _by_rule(evidence(here)):
            held.setdefault(label, {})[system] = holds(rows)
    return held


def _silent(systems: Systems) -> str:
    """A clause that names the systems without evidence; empty where all have some."""
    names, told = [name for name, here in systems.items() if evidence(here).empty], short(systems)
    gone = names and all(nothing(systems[name]) != NOTHING for name in names)
    where = some([told[name] for name in names], len(systems)) if names else ""
    return "" if not names else f"{where} collapsed" if gone else f"nothing is settled on {where}"


def _tallied(claim: str, held: dict[str, dict[str, bool]], systems: Systems) -> str:
    """On which systems a claim holds, of those with evidence, and which have none."""
    silent = _silent(systems)
    return _clauses(tally(claim, held, "settled systems" if silent else "systems", systems), silent)


def _alone(systems: Systems) -> tuple[str, DataFrame] | None:
    """The system of a figure that has one; what is to be seen there is all that there is to be seen."""
    return next(iter(systems.items())) if len(systems) == 1 else None


def _clauses(*clauses: str) -> str:
    return "; ".join(filter(None, clauses))


# Along a coordinate


def along(here: DataFrame, x: str) -> dict[str, Predicate]:
    """What each rule does along a coordinate on one system."""
    return {label: _along(rows, x, here) for label, rows in _by_rule(evidence(here), spoken_of)}


def _along(rows: DataFrame, x: str, here: DataFrame) -> Predicate:
    by = rows.groupby(x)["cosine_min"]
    good = by.apply(_follows)
    values, at = list(good.index), list(good[good].index)
    asked = here[here["estimator_label"].isin(rows["estimator_label"])][x].nunique()
    every = f"at every {'settled ' * (len(values) < asked)}{plain(x)}" if len(values) > 1 else f"at {equal(x, values)}"
    if good.all():
        return Predicate(FOLLOW, every)
    if at and at == values[-len(at) :]:
        return Predicate(FOLLOW, f"from {equal(x, at[:1])} on")
    if at and at == values[: len(at)]:
        return Predicate(FOLLOW, f"up to {equal(x, at[-1:])}")
    if at:
        return Predicate(FOLLOW, f"at {part(len(at), len(values))} {plain(x)}")
    worst = rows.loc[rows.groupby(x)["cosine_min"].idxmin()]
    return Predicate("misses " + _culprit(worst), f"{every}{_unseen(worst)}")


def _culprit(rows: DataFrame) -> str:
    """How many parameters are missed, and which one is the worst in all rows. Rows have `missed` and `compared`."""
    names = set(rows["worst"].fillna(""))
    name = names.pop() if len(names) == 1 else ""
    low, high, total = int(rows["missed"].min()), int(rows["missed"].max()), int(rows["compared"].max())
    if high <= 1:
        return name or "a parameter"
    many = _parameters(total) if low == total else f"{low if low == high else f'{low} to {high}'} of {total} parameters"
    return f"{many} ({name} worst)" if name else many


def _unseen(rows: DataFrame) -> str:
    """That the global cosine does not show what is missed, where it is large in all rows."""
    least = float(rows["cosine"].min())
    return f", though its global cosine is {cosine(least)} or more" if least >= FOLLOWS else ""


def of_sweep(system: str, here: DataFrame, x: str) -> str:
    """The title of a row of a sweep: what every rule does along x on one system."""
    return f"{system}: {together(along(here, x)) or nothing(here)}"


def of_sweeps(systems: Systems, x: str) -> str:
    """The title of a sweep: on which systems each rule follows BPTT at some value; of one system, at which."""
    if alone := _alone(systems):
        return of_sweep(*alone, x)
    held = _held(systems, lambda rows: bool(rows.groupby(x)["cosine_min"].apply(_follows).any()))
    return _tallied(f"{FOLLOW} at some {spoken(x)}", held, systems)


# By parameter and by layer


def dominant(here: DataFrame) -> tuple[str, float] | None:
    """The parameter that decides the global cosine, with its share of |g|² in the median cell; None where none does.

    Rows are cells and parameters, with `reference_norm`.
    """
    power = here["reference_norm"].astype(float) ** 2
    share = (power / power.groupby(here["cell"]).transform("sum")).groupby(here["param"], sort=False).median().dropna()
    if len(share) < 2 or share.max() <= DOMINATES:
        return None
    return str(share.idxmax()), float(share.max())


def _worst(rows: DataFrame, by: str, column: str) -> Series:
    """The smallest cosine over seeds, where there is one."""
    return rows.groupby(by, sort=False)[column].min().dropna()


def by_parameter(here: DataFrame) -> dict[str, Predicate]:
    """What each rule does in the parameters of one system, in the worst seed of each, as the bars are."""
    said = {}
    for label, rows in _by_rule(here, spoken_of):
        worst = _worst(rows, "param", "cosine")
        missed = list(worst[worst < FOLLOWS].index)
        if worst.empty:
            said[label] = Predicate("has", "no cosine in any parameter")
        elif len(missed) == len(worst) > 1:
            said[label] = Predicate("misses", _parameters(len(worst)))
        elif missed:
            said[label] = Predicate("misses", _missed(missed, list(worst.index)))
        else:
            said[label] = Predicate(FOLLOW, f"in {_parameters(len(worst))}")
    return said


def _missed(missed: Sequence[str], every: Sequence[str]) -> str:
    """Parameters by name, or by their number and the names of the others where these are few."""
    others = [name for name in every if name not in missed]
    if len(missed) > NAMED >= len(others):
        return f"{len(missed)} of {len(every)} parameters, all but {listed(others)}"
    return some(missed, len(every))


def _parameters(number: int) -> str:
    return {1: "its one parameter", 2: "both parameters"}.get(number, f"all {number} parameters")


def of_params_row(system: str, here: DataFrame) -> str:
    """The title of a row of bars: what every rule does in which parameter."""
    return f"{system}: {together(by_parameter(here)) or NOTHING}"


def of_params(systems: Systems) -> str:
    """The title of the figure of parameters: what a global cosine hides; where it hides nothing, who follows BPTT.

    Rows are settled cells and parameters, with `cosine` and, of the whole gradient, `cosine_whole`.
    """
    names = short(systems)
    if hidden := [one for system, here in systems.items() for one in _hidden(names[system], here)]:
        return max(hidden)[1]
    if alone := _alone(systems):
        return of_params_row(*alone)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in _by_rule(here):
            worst = _worst(rows, "param", "cosine")
            held.setdefault(label, {})[system] = not worst.empty and _follows(worst)
    return tally(f"{FOLLOW} in every parameter", held)


def _hidden(system: str, here: DataFrame) -> Iterator[tuple[float, str]]:
    """How far, and in words, the global cosine of a rule is above that of a parameter which it misses."""
    large = dominant(here)
    for label, rows in _by_rule(here):
        whole, worst = float(rows["cosine_whole"].min()), _worst(rows, "param", "cosine")
        if worst.empty or not whole >= FOLLOWS or not worst.min() < FOLLOWS:
            continue
        why = f", since {large[0]} holds {percent(large[1])} of |g|²" if large else ""
        reading = f"On {system} the global cosine of {look.words(label)} is {cosine(whole)}"
        yield whole - worst.min(), f"{reading} where that of {worst.idxmin()} is {cosine(float(worst.min()))}{why}"


def by_layer(here: DataFrame, column: str) -> dict[str, Predicate]:
    """In which blocks with credit that of a rule follows BPTT, in its worst seed."""
    said = {}
    for label, rows in _by_rule(here[~here["block"].isin(without_credit(here, column))], spoken_of):
        worst = _worst(rows, "block", column)
        lost = list(worst[worst < FOLLOWS].index)
        if not worst.empty:
            followed_at = Predicate("follows BPTT", f"in {part(len(worst), len(worst))}", "blocks")
            said[label] = Predicate("misses it", f"in {some(lost, len(worst))}") if lost else followed_at
    return said


def without_credit(here: DataFrame, column: str) -> list[str]:
    """The blocks in which the credit of every rule has cosine 0, as that of a clamped block has: it does not move."""
    known = here.dropna(subset=[column])
    zero = (known[column] == 0).groupby(known["block"], sort=False).all()
    return list(zero[zero].index)


def of_credit(system: str, here: DataFrame, credits: Mapping[str, str]) -> str:
    """The title of a row of layers: where which rule follows BPTT, by each credit (column to words)."""
    told = _alike({words: together(by_layer(here, column)) for column, words in credits.items()})
    return f"{system}: " + "; ".join(f"credit by {words}: {said}" for words, said in told)


def of_credits(systems: Systems, credits: Mapping[str, str]) -> str:
    """The title of the figure of layers: which rules miss which blocks."""
    if alone := _alone(systems):
        return of_credit(*alone, credits)
    lost: dict[tuple[str, str, str], None] = {}  # rule, system, blocks: in order, and once for credits that agree
    for system, here in systems.items():
        for column in credits:
            for label, predicate in by_layer(here, column).items():
                if predicate.verb != FOLLOW:
                    lost[look.words(label), system, predicate.more] = None
    names = {system.partition(" ")[0] for system in systems}
    everywhere = f"on {part(len(systems), len(systems))} {'systems' if len(names) > 1 else f'forms of {names.pop()}'}"
    if len(lost) > NAMED:
        told = f"Rules miss BPTT in some block {len(lost)} times {everywhere}"
    else:
        clauses = [f"{label} misses BPTT {blocks} of {system}" for label, system, blocks in lost]
        others = f"{'every other rule' if lost else 'every rule'} follows it in every block {everywhere}"
        told = _clauses(*clauses, others if lost else others.replace("it", "BPTT", 1))
    return capital(told)


def _alike(said: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is said of which credits, those of which the same is said together."""
    groups: dict[str, list[str]] = {}
    for words, told in said.items():
        groups.setdefault(told, []).append(words)
    return [(" and by ".join(words), told) for told, words in groups.items() if told]


def of_matrix(held: Mapping[str, Mapping[str, bool]], systems: Sequence[str]) -> str:
    """The title of a matrix of rules and systems: rule to system to whether it follows BPTT at its best setting there.

    Systems are those on which the rule has a number.
    """
    known = {label: on for label, on in held.items() if on}
    if not known:
        return f"Nothing is settled on any of {len(systems)} systems, so that no cosine is evidence"
    known = {label: known[label] for label in default_forms(known)}
    always = [look.words(label) for label, on in known.items() if all(on.values())]
    never = [look.words(label) for label, on in known.items() if not any(on.values())]
    fewest = min(known, key=lambda label: sum(known[label].values()) / len(known[label]))
    good, total = sum(known[fewest].values()), len(known[fewest])
    least = f"{look.words(fewest)} on {part(good, total)}" if good < total else ""
    if len(never) > 1:
        least = f"{some(never, len(known))} on none"
    told = some(always, len(known)) if always else "no rule"
    several = len(always) > 1
    best = (
        f"At {'their best settings' if several else 'its best setting'}, {told} {'follow' if several else 'follows'} "
        f"BPTT on every system on which {'they settle' if several else 'it settles'}"
    )
    return _clauses(best, least)


# Over two coordinates


def _settled(rows: DataFrame, axes: Sequence[str]) -> Series:
    return rows.groupby(list(axes))["status"].apply(lambda of: bool((of == Status.SETTLED).all()))


def _followed(here: DataFrame, axes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Rule to the number of points at which it follows BPTT in the worst seed, and that of the settled ones."""
    points = {}
    for label, rows in _by_rule(here):
        worst = rows.groupby(list(axes))["cosine_min"].min()[_settled(rows, axes)].dropna()
        if len(worst):
            points[label] = int((worst >= FOLLOWS).sum()), len(worst)
    return points


def of_map(system: str, here: DataFrame, axes: Sequence[str]) -> str:
    """The title of a row of maps over two coordinates: where it settles, and where each rule follows BPTT."""
    settled = _settled(here, axes)
    if not settled.any():
        return f"{system}: nothing is settled at any of {len(settled)} points, so that no cosine is evidence"
    said = {
        label: Predicate(FOLLOW, f"at {part(*points)}", "of these") for label, points in _followed(here, axes).items()
    }
    return _clauses(f"{system} is settled at {part(int(settled.sum()), len(settled))} points", together(said))


def of_maps(systems: Systems, axes: Sequence[str]) -> str:
    """The title of the maps: which rule follows BPTT wherever a system is settled."""
    if alone := _alone(systems):
        return of_map(*alone, axes)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, (good, tried) in _followed(here, axes).items():
            held.setdefault(label, {})[system] = good == tried
    names = listed([spoken(axis) for axis in axes])
    return _tallied(f"{FOLLOW} at every {names} that settles", held, systems)


# Clouds of cells


def counts(cells: DataFrame) -> dict[str, Predicate]:
    """In how many settled cells each rule follows BPTT."""
    said = {}
    for label, rows in _by_rule(evidence(cells)):
        good = int((rows["cosine_min"] >= FOLLOWS).sum())
        said[label] = Predicate(FOLLOW, f"in {part(good, len(rows))}", things(len(rows), "settled cell"))
    return said


def of_cloud(system: str, cells: DataFrame) -> str:
    """The title of a panel of cells of one system: in how many of the settled ones each rule follows BPTT."""
    return f"{system}: {together(counts(cells)) or nothing(cells)}"


def of_residuals(cells: DataFrame) -> str:
    """The title of cosines against residuals: how many cells are no evidence, and what the others say."""
    idle = int((cells["status"] != Status.SETTLED).sum())
    lead = f"{part(idle, len(cells))} cells are no evidence, since they are not settled"
    systems = {str(system): rows for system, rows in cells.groupby("system_label")}
    if _alone(systems):
        told = together(counts(cells))
    else:
        told = _tallied(
            f"{FOLLOW} in every settled cell", _held(systems, lambda rows: _follows(rows["cosine_min"])), systems
        )
    return ". ".join(filter(None, [capital(lead) if idle else "Every cell is settled", capital(told) if told else ""]))


def of_antisymmetry(cells: DataFrame) -> str:
    """The title of errors against antisymmetry: who follows BPTT at an asymmetric Jacobian, and at a symmetric one."""
    large = cells["antisymmetry"] > SYMMETRIC
    kinds = {"asymmetric": cells[large], "symmetric": cells[cells["antisymmetry"] <= SYMMETRIC]}
    told = {kind: together(counts(rows)) for kind, rows in kinds.items()}
    return ". ".join(f"Where the Jacobian is {kind}, {said}" for kind, said in told.items() if said) or capital(NOTHING)


def by_cost(here: DataFrame) -> dict[str, Predicate]:
    """What each rule needs to follow BPTT on one system, and which other form of it needs less.

    Rows are settings at their worst seed. Columns: `T1`, `cost`, and `reference_cost`, that of BPTT at the same T1,
    both in evaluations of the force.
    """
    known = evidence(here)
    good = known[known["cosine_min"] >= FOLLOWS].sort_values(["cost", "reference_cost"])
    cheapest = {str(label): rows.iloc[0] for label, rows in good.groupby("estimator_label")}
    said = {}
    for label, rows in _by_rule(known):
        name, _, options = label.partition(" ")
        at, least = cheapest.get(label), float("inf")
        asides = []
        if at is not None:
            least, whole = float(at["cost"]), float(at["reference_cost"])
            asides += [f"{least / whole:.2g} times BPTT at {equal('T1', [at['T1']])}"] if whole == whole else []
        forms = {form: float(of["cost"]) for form, of in cheapest.items() if form.startswith(f"{name} ")}
        if not options and forms and (cost := min(forms.values())) < least:
            asides.append(f"{min(forms, key=lambda form: forms[form]).partition(' ')[2]} for {cost:g}")
        aside = f" ({'; '.join(asides)})" if asides else ""
        if at is None:
            best = cosine(float(rows["cosine_min"].max()))
            said[label] = Predicate("reaches a smallest cosine", f"of {best} at best{aside}")
        else:
            said[label] = Predicate(FOLLOW, f"for {least:g} evaluations{aside}")
    return said


def of_cost(system: str, here: DataFrame) -> str:
    """The title of a panel of errors against cost: the least cost at which each rule follows BPTT."""
    return f"{system}: {together(by_cost(here)) or nothing(here)}"


def of_costs(systems: Systems) -> str:
    """The title of errors against cost: who follows BPTT at any cost, on which systems."""
    if alone := _alone(systems):
        return of_cost(*alone)
    held = _held(systems, lambda rows: bool((rows["cosine_min"] >= FOLLOWS).any()))
    return _tallied(f"{FOLLOW} at some cost", held, systems)


# Errors and causes


def by_nudge(here: DataFrame, faithful: float) -> dict[str, Predicate]:
    """How the error of the worst parameter goes with beta for each rule, and what the whole gradient hides of it.

    Rows are settled cells with `error` and `rel_error`, that of the whole gradient. It is the worst seed that counts,
    in float32 where there is any.
    """
    said = {}
    for label, rows in _by_rule(here):
        rows = rows[rows["dtype"] == rows["dtype"].min()]
        error = rows.groupby("beta")["error"].max()
        whole = float(rows.groupby("beta")["rel_error"].max()[error.idxmin()])
        hidden = f" (the whole gradient by {number(whole)})" if whole <= faithful < error.min() else ""
        alike = list(error[error <= ALIKE * error.min()].index)
        least, betas = number(float(error.min())), list(error.index)
        if len(alike) == len(error) > 1:
            said[label] = Predicate("is off", f"by {least} at every {plain('beta')}{hidden}")
        elif alike[0] == betas[0] and alike[-1] >= DECADE * alike[0]:
            said[label] = Predicate("is off", f"by {least} however small {plain('beta')} is{hidden}")
        else:
            end = {betas[0]: " (the smallest)", betas[-1]: " (the largest)"}.get(best := float(error.idxmin()), "")
            said[label] = Predicate("is best", f"at {equal('beta', [best])}{end}, off by {least}{hidden}")
    return said


def of_nudge(system: str, here: DataFrame, faithful: float) -> str:
    """The title of a panel of errors against beta."""
    only = f"in {here['dtype'].min()}, " if here["dtype"].nunique() > 1 else ""
    return f"{system}: {only}{together(by_nudge(here, faithful)) or NOTHING}"


def of_nudges(systems: Systems, faithful: float) -> str:
    """The title of errors against beta: which rule is faithful in every parameter at some nudge, on which systems."""
    if alone := _alone(systems):
        return of_nudge(*alone, faithful)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in _by_rule(here):
            rows = rows[rows["dtype"] == rows["dtype"].min()]
            held.setdefault(label, {})[system] = bool(rows.groupby("beta")["error"].max().min() <= faithful)
    near = f"comes within {100 * faithful:g}{BLANK}% of BPTT in every parameter"
    return tally(f"{near} at some {spoken('beta')}", held)


def of_budget(system: str, bars: DataFrame, knob: str, faithful: float) -> str:
    """The title of a panel of bars: what each rule, called as at its bars, errs by along a knob, and where.

    bars: estimator_label, the knob, error, leading (the largest cause), settled (whether all seeds are)
    """
    said = {}
    for label, rows in _by_rule(bars[bars["settled"]]):
        asked = int((bars["estimator_label"] == label).sum())
        every = f"at every {'settled ' * (len(rows) < asked)}{plain(knob)}"
        long = rows[rows["error"] > faithful].sort_values(knob)
        if long.empty:
            said[label] = Predicate("is faithful", every)
            continue
        of = {cause: list(at[knob]) for cause, at in long.groupby("leading", sort=False)}
        told = [
            f"by {cause} {every if len(values) == len(rows) else _at(values, len(rows), knob)}"
            for cause, values in sorted(of.items(), key=lambda item: -len(item[1]))
        ]
        said[label] = Predicate("errs", listed(told))
    return f"{system}: {together(said, str) or NOTHING}"


def _at(values: Sequence[float], asked: int, knob: str) -> str:
    return f"at {equal(knob, values)}" if len(values) < NAMED else f"at {part(len(values), asked)} {plain(knob)}"


def of_budgets(bars: DataFrame, faithful: float) -> str:
    """The title of the budget: what each rule errs by the most often, over all bars that are settled and long."""
    said = {}
    for label, rows in _by_rule(bars[bars["settled"]]):
        counted = rows[rows["error"] > faithful]["leading"].value_counts()
        if counted.empty:
            said[label] = Predicate("is faithful", "wherever settled")
        else:
            most = sorted(counted[counted == counted.max()].index)
            share = f"in {part(int(counted.max()), int(counted.sum()))}{' each' * (len(most) > 1)}"
            said[label] = Predicate("errs", f"by {listed(most)} {share}", f"bars above {number(faithful)}")
    return capital(together(said) or NOTHING)


def of_gap(states: DataFrame) -> str:
    """The title of gaps between the references: how far they are apart at rest, and elsewhere."""
    return f"Backpropagation through T1 steps and the implicit gradient differ {gaps(states)}"


def gaps(states: DataFrame) -> str:
    """The largest gap in settled states, and in the others."""
    settled = states["status"] == Status.SETTLED
    said = [
        f"by at most {_in_percent(rows['reference_gap'].max())} in {look.count(len(rows), what)}"
        for what, rows in (("settled state", states[settled]), ("other state", states[~settled]))
        if len(rows)
    ]
    return " and ".join(said)


def _in_percent(share: float) -> str:
    """A share of any size in percent: two digits, or all before the point."""
    return f"{100 * share:.2g}{BLANK}%" if share < 1 else f"{100 * share:.0f}{BLANK}%"
