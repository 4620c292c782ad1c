"""What is to be seen in a figure of a run, in words, computed from what it draws.

`grounds` says what follows and misses mean, and which cells count. Of several systems, and of many rules, titles speak
of the default forms alone. Titles of sweeps are in `sweep_titles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gradbench.plots import look
from gradbench.plots.grounds import (
    FOLLOW,
    LOST,
    NOTHING,
    THROUGHOUT,
    by_rule,
    clauses,
    evidence,
    follows,
    holding,
    nothing,
    only,
    tallied,
)
from gradbench.plots.look import FOLLOWS
from gradbench.plots.wording import (
    BLANK,
    FEW,
    NAMED,
    Predicate,
    cosine,
    default_forms,
    equal,
    first,
    number,
    parameters,
    part,
    percent,
    plain,
    ranked,
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
    for label, rows in by_rule(here, spoken_of):
        worst = _worst(rows, "param", "cosine")
        missed = list(worst[worst < FOLLOWS].index)
        if worst.empty:
            said[label] = Predicate("has", "no cosine in any parameter")
        elif missed and len(worst) > 1 and here["estimator_label"].nunique() > FEW:
            said[label] = Predicate("misses", "some parameter")
        elif len(missed) == len(worst) > 1:
            said[label] = Predicate("misses", parameters(len(worst)))
        elif missed:
            said[label] = Predicate("misses", _missed(missed, list(worst.index)))
        else:
            said[label] = Predicate(FOLLOW, f"in {parameters(len(worst))}")
    return said


def _missed(missed: Sequence[str], every: Sequence[str]) -> str:
    """Parameters by name, or by their number and the names of the others where these are few."""
    others = [name for name in every if name not in missed]
    if len(missed) > NAMED >= len(others):
        return f"{len(missed)} of {len(every)} parameters, all but {listed(others)}"
    return some(missed, len(every))


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
    if alone := only(systems):
        return of_params_row(*alone)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in by_rule(here):
            worst = _worst(rows, "param", "cosine")
            held.setdefault(label, {})[system] = not worst.empty and follows(worst)
    return tally(f"{FOLLOW} in every parameter", held)


def _hidden(system: str, here: DataFrame) -> Iterator[tuple[float, str]]:
    """How far, and in words, the global cosine of a rule is above that of a parameter which it misses."""
    large = dominant(here)
    for label, rows in by_rule(here):
        whole, worst = float(rows["cosine_whole"].min()), _worst(rows, "param", "cosine")
        if worst.empty or not whole >= FOLLOWS or not worst.min() < FOLLOWS:
            continue
        why = f", since {large[0]} holds {percent(large[1])} of |g|²" if large else ""
        reading = f"On {system} the global cosine of {look.words(label)} is {cosine(whole)}"
        yield whole - worst.min(), f"{reading} where that of {worst.idxmin()} is {cosine(float(worst.min()))}{why}"


def by_layer(here: DataFrame, column: str) -> dict[str, Predicate]:
    """In which blocks with credit that of a rule follows BPTT, in its worst seed."""
    said = {}
    for label, rows in by_rule(here[~here["block"].isin(without_credit(here, column))], spoken_of):
        worst = _worst(rows, "block", column)
        lost = list(worst[worst < FOLLOWS].index)
        if not worst.empty:
            followed_at = Predicate("follows BPTT", f"in {part(len(worst), len(worst))}", "blocks")
            said[label] = Predicate("misses BPTT", f"in {some(lost, len(worst))}") if lost else followed_at
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
    if alone := only(systems):
        return of_credit(*alone, credits)
    lost: dict[tuple[str, str, str], None] = {}  # rule, system, blocks: in order, and once for credits that agree
    good: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for column in credits:
            for label, predicate in by_layer(here, column).items():
                follows = predicate.verb == FOLLOW
                good.setdefault(label, {})[system] = good.get(label, {}).get(system, True) and follows
                if not follows:
                    lost[label, system, predicate.more] = None
    if len(lost) > NAMED:
        parts = {label: (sum(on.values()), len(on)) for label, on in good.items()}
        return capital(ranked(f"{FOLLOW} in every block", parts, "on {}", "every system"))
    names = {system.partition(" ")[0] for system in systems}
    everywhere = f"on {part(len(systems), len(systems))} {'systems' if len(names) > 1 else f'forms of {names.pop()}'}"
    told = [f"{look.words(label)} misses BPTT {blocks} of {system}" for label, system, blocks in lost]
    others = f"{'every other rule' if lost else 'every rule'} follows it in every block {everywhere}"
    return capital(clauses(*told, others if lost else others.replace("it", "BPTT", 1)))


def _alike(said: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is said of which credits, those of which the same is said together."""
    groups: dict[str, list[str]] = {}
    for words, told in said.items():
        groups.setdefault(told, []).append(words)
    return [(" and by ".join(words), told) for told, words in groups.items() if told]


def of_matrix(held: Mapping[str, Mapping[str, bool]], systems: Mapping[str, str]) -> str:
    """The title of a matrix of rules and systems: which rules follow BPTT at their best settings, on which systems.

    held: rule to system to whether it follows there, for systems on which the rule has a number
    systems: name to what its Jacobian is, symmetric or asymmetric; empty where that is not known
    """
    known = {label: on for label, on in held.items() if on}
    if not known:
        return f"Nothing is settled on any of {len(systems)} systems, so that no cosine is evidence"
    main = {
        label: Predicate(THROUGHOUT, f"on {_by_kind(known[label], systems)}") for label in look.MAIN if label in known
    }
    several = [label for label in known if len(known[label]) > 1] or list(known)
    labels = sorted(look.in_order(several), key=lambda label: " " in label)  # default forms before others
    always = [look.words(label) for label in labels if all(known[label].values())]
    never = [look.words(label) for label in labels if not any(known[label].values())]
    ends = [("BPTT on every system that settles", always), ("it on none", never)]
    told = " and ".join(f"{len(of)} follow{'s' * (len(of) == 1)} {end} ({first(of)})" for end, of in ends if of)
    rows = "rows" + " on several systems" * (len(several) < len(held))
    lead = "At the best setting each, s and damping included,"
    tallied = f"of {len(labels)} {rows}, {told}" if told and (len(labels) > FEW or not main) else ""
    return f"{lead} {clauses(together(main), tallied)}"


def of_main(claim: str, held: Mapping[str, Mapping[str, bool]], systems: Mapping[str, str]) -> str:
    """On how many systems of each kind a claim holds for the main rules, in a figure of many; empty without them.

    held: rule to system to whether it holds, for systems on which the rule has evidence
    systems: name to what its Jacobian is, as `kind` says
    """
    main = {label: Predicate(claim, f"on {_by_kind(held[label], systems)}") for label in look.MAIN if held.get(label)}
    return together(main)


def kind(cells: DataFrame) -> str:
    """Whether the Jacobian of a system is symmetric or asymmetric in its settled cells; empty where that is unknown."""
    known = cells[cells["status"] == Status.SETTLED]["antisymmetry"].dropna()
    return "" if known.empty else "asymmetric" if known.max() > SYMMETRIC else "symmetric"


def _by_kind(on: Mapping[str, bool], systems: Mapping[str, str]) -> str:
    """On how many systems of each kind a rule follows; on how many of all where there is one kind."""
    kinds = {kind: [on[s] for s in on if systems[s] == kind] for kind in dict.fromkeys(systems[s] for s in on)}
    if "" in kinds:
        return f"{part(sum(on.values()), len(on))} {things(len(on), 'system')}"
    tried = " tried" * (len(on) < len(systems))
    told = [f"{part(sum(good), len(good))} {kind}" for kind, good in kinds.items()]
    return f"{listed(told)}{things(len(on), ' system')}{tried}"


# Over two coordinates


def _settled(rows: DataFrame, axes: Sequence[str]) -> Series:
    return rows.groupby(list(axes))["status"].apply(lambda of: bool((of == Status.SETTLED).all()))


def _followed(here: DataFrame, axes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Rule to the number of points at which it follows BPTT in the worst seed, and that of the settled ones."""
    points = {}
    for label, rows in by_rule(here):
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
        label: Predicate(THROUGHOUT, f"at {part(*points)}", "of these")
        for label, points in _followed(here, axes).items()
    }
    return clauses(f"{system} is settled at {part(int(settled.sum()), len(settled))} points", together(said))


def of_maps(systems: Systems, axes: Sequence[str]) -> str:
    """The title of the maps: which rule follows BPTT wherever a system is settled."""
    if alone := only(systems):
        return of_map(*alone, axes)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, (good, tried) in _followed(here, axes).items():
            held.setdefault(label, {})[system] = good == tried
    names = listed([spoken(axis) for axis in axes])
    return tallied(f"{THROUGHOUT} at every {names} that settles", held, systems)


# Clouds of cells


def counts(cells: DataFrame) -> str:
    """In how many settled cells each rule follows BPTT; empty without evidence."""
    parts = {label: (int((rows["cosine_min"] >= FOLLOWS).sum()), len(rows)) for label, rows in by_rule(evidence(cells))}
    if len(parts) > FEW:
        return ranked(THROUGHOUT, parts, "in {}", "every settled cell")
    said = {
        label: Predicate(THROUGHOUT, f"in {part(good, total)}", things(total, "settled cell"))
        for label, (good, total) in parts.items()
    }
    return together(said)


def in_colour(cells: DataFrame) -> list[str]:
    """Of many rules those that a figure tells apart: the main ones, and the first that always and never follow BPTT."""
    parts = {label: (rows["cosine_min"] >= FOLLOWS) for label, rows in by_rule(evidence(cells))}
    always = [label for label, good in parts.items() if good.all() and label not in look.MAIN]
    never = [label for label, good in parts.items() if not good.any() and label not in look.MAIN]
    return [*(label for label in look.MAIN if label in parts), *always[:2], *never[:1]]


def of_cloud(system: str, cells: DataFrame) -> str:
    """The title of a panel of cells of one system: in how many of the settled ones each rule follows BPTT."""
    return f"{system}: {counts(cells) or nothing(cells)}"


def of_crowd(system: str, cells: DataFrame) -> str:
    """The same of many rules, in short."""
    parts = [bool((rows["cosine_min"] >= FOLLOWS).all()) for _, rows in by_rule(evidence(cells))]
    return f"{system}: {f'{part(sum(parts), len(parts))} rules follow BPTT' if parts else nothing(cells)}"


def of_residuals(cells: DataFrame) -> str:
    """The title of cosines against residuals: which rules miss BPTT at rest, and how many cells are not at rest."""
    known = evidence(cells)
    idle = int((cells["status"] != Status.SETTLED).sum())
    last = f"{part(idle, len(cells))} cells have not settled and are no evidence"
    parts = {label: (int((rows["cosine_min"] >= FOLLOWS).sum()), len(rows)) for label, rows in by_rule(known)}
    if all(good == total for good, total in parts.values()):
        told = together(dict.fromkeys(parts, Predicate(THROUGHOUT, "")))
        lead = f"Wherever the state has settled, {clauses(told, *_forms_that_miss(known, parts))}" if parts else ""
    elif len(parts) > FEW:
        lead = capital(ranked(THROUGHOUT, parts, "in {}", "every settled cell"))
    else:
        missed = _missed_settled(known, parts, cells["system_label"].unique())
        lead = f"Even where the state has settled, {together(missed)}"
    return ". ".join(filter(None, [lead, capital(last) if idle else ""]))


def _forms_that_miss(known: DataFrame, parts: Mapping[str, tuple[int, int]]) -> list[str]:
    """A clause on forms of rules that miss BPTT where the rules in `parts`, of which a title speaks, do not."""
    missed = known[~known["estimator_label"].isin(parts)].groupby("estimator_label")["cosine_min"].min() < FOLLOWS
    names = [look.words(str(label)) for label in missed.index[missed]]
    return [f"{some(names, len(missed))} {'miss' if len(names) > 1 else 'misses'} it somewhere"] if names else []


def _missed_settled(
    known: DataFrame, parts: Mapping[str, tuple[int, int]], systems: Iterable[str]
) -> dict[str, Predicate]:
    """In how many settled cells each rule misses BPTT, and on which systems in all of them."""
    names, said = short(systems), {}
    for label, (good, total) in parts.items():
        rows = known[known["estimator_label"] == label]
        best = rows.groupby("system_label", sort=False)["cosine_min"].max()
        lost = [names[system] for system in best.index[best < FOLLOWS]]
        where = f" (in every one on {some(lost, len(best))})" if lost and len(best) > 1 and good else ""
        said[label] = Predicate("misses BPTT in some parameter", f"in {part(total - good, total)} cells{where}")
    return said


def of_antisymmetry(cells: DataFrame) -> str:
    """The title of errors against antisymmetry: who follows BPTT at an asymmetric Jacobian, and at a symmetric one."""
    large = cells["antisymmetry"] > SYMMETRIC
    kinds = {"asymmetric": cells[large], "symmetric": cells[cells["antisymmetry"] <= SYMMETRIC]}
    told = {kind: counts(rows) for kind, rows in kinds.items()}
    if len(default_forms(evidence(cells)["estimator_label"])) > FEW:
        told = {kind: said for kind, rows in kinds.items() if (said := in_short(rows))}
    return ". ".join(f"Where the Jacobian is {kind}, {said}" for kind, said in told.items() if said) or capital(NOTHING)


def in_short(cells: DataFrame) -> str:
    """How many of many rules follow BPTT in every settled cell, and the main ones in how many; empty without any."""
    parts = {label: (int((rows["cosine_min"] >= FOLLOWS).sum()), len(rows)) for label, rows in by_rule(evidence(cells))}
    if not parts:
        return ""
    every = sum(good == total for good, total in parts.values())
    main = [f"{look.words(label)} in {part(*parts[label])}" for label in look.MAIN if label in parts]
    return clauses(
        f"{part(every, len(parts))} rules follow BPTT in every parameter in every settled cell", ", ".join(main)
    )


def by_cost(here: DataFrame) -> dict[str, Predicate]:
    """What each rule needs to follow BPTT on one system, and which other form of it needs less.

    Rows are settings at their worst seed. Columns: `T1`, `cost`, and `reference_cost`, that of BPTT at the same T1,
    both in evaluations of the force.
    """
    known = evidence(here)
    good = known[known["cosine_min"] >= FOLLOWS].sort_values(["cost", "reference_cost"])
    cheapest = {str(label): rows.iloc[0] for label, rows in good.groupby("estimator_label")}
    said = {}
    for label, rows in by_rule(known):
        name, _, options = label.partition(" ")
        at, least = cheapest.get(label), float("inf")
        asides = []
        if at is not None:
            least, whole = float(at["cost"]), float(at["reference_cost"])
            asides += [f"{least / whole:.2g} times BPTT at {equal('T1', [at['T1']])}"] if whole == whole else []
            asides += [f"global cosine {cosine(float(at['cosine']))}"] if at["cosine"] < LOST else []
        forms = {form: float(of["cost"]) for form, of in cheapest.items() if form.startswith(f"{name} ")}
        if not options and forms and (cost := min(forms.values())) < least:
            asides.append(f"{min(forms, key=lambda form: forms[form]).partition(' ')[2]} for {cost:g}")
        aside = f" ({'; '.join(asides)})" if asides else ""
        if at is None:
            best = cosine(float(rows["cosine_min"].max()))
            where = f"at every T1, T2 and {plain('beta')} here"
            said[label] = Predicate("misses BPTT", f"{where} (worst parameter {best} or less){aside}")
        else:
            said[label] = Predicate(THROUGHOUT, f"for {least:g} evaluations{aside}")
    return said


def of_cost(system: str, here: DataFrame) -> str:
    """The title of a panel of errors against cost: the least cost at which each rule follows BPTT."""
    known = evidence(here)
    rules = default_forms(known["estimator_label"])
    told = _cheapest(known, rules) if len(rules) > FEW else together(by_cost(here))
    return f"{system}: {told or nothing(here)}"


def _cheapest(known: DataFrame, rules: Sequence[str]) -> str:
    """How many of many rules follow BPTT, which one for the least cost, and for which cost the main ones do."""
    good = known[(known["cosine_min"] >= FOLLOWS) & known["estimator_label"].isin(rules)]
    least = good.groupby("estimator_label")["cost"].min().sort_values(kind="stable")
    followers = f"{part(len(least), len(rules))} rules follow BPTT in every parameter"
    if least.empty:
        return followers
    named = [*least.index[:1], *(label for label in look.MAIN if label in rules and label != least.index[0])]
    costs = {label: f"for {least[label]:g} evaluations" if label in least else "never" for label in named}
    return clauses(
        f"{followers}, {look.words(named[0])} {costs[named[0]]}", *(f"{look.words(n)} {costs[n]}" for n in named[1:])
    )


def of_cheapest(system: str, here: DataFrame) -> str:
    """The title of a panel of many rules: which one follows BPTT for the least cost, of the cost of BPTT itself."""
    known = evidence(here)
    if (at := _least(here)) is None:
        return f"{system}: {'no rule follows BPTT' if len(known) else nothing(here)}"
    whole = float(at["reference_cost"])
    cost = f"{at['cost'] / whole:.2g} of BPTT's cost" if whole == whole else f"{at['cost']:g} evaluations"
    return f"{system}: {look.words(at['estimator_label'])} follows for {cost}"


def _least(here: DataFrame) -> Series | None:
    """The setting that follows BPTT for the least cost, of equal ones that with the least error; None: there is none.

    It is the first of the front that does, and so has a mark of its own.
    """
    known = evidence(here)
    good = known[known["cosine_min"] >= FOLLOWS].sort_values(["cost", "error"], kind="stable")
    return None if good.empty else good.iloc[0]


def of_front(systems: Systems, kinds: Mapping[str, str]) -> str:
    """The title of fronts of many rules: which rule is the cheapest one most often, and where the main ones follow."""
    first = [at for here in systems.values() if (at := _least(here)) is not None]
    rules = [str(at["estimator_label"]) for at in first]
    if not rules:
        return capital(NOTHING)
    most = max(look.in_order(set(rules)), key=rules.count)
    shares = sorted(float(at["cost"] / at["reference_cost"]) for at in first if at["reference_cost"] > 0)
    ends = " to ".join(dict.fromkeys(f"{share:.2g}" for share in (shares[:1] + shares[-1:])))
    of_all = f"; the least cost is {ends} of BPTT's" if ends else ""
    where = f"{part(rules.count(most), len(systems))} systems"
    lead = f"{look.words(most)} follows BPTT for the least cost on {where}{of_all}"
    held = holding(systems, lambda rows: bool((rows["cosine_min"] >= FOLLOWS).any()))
    return clauses(lead, of_main(f"{THROUGHOUT} at some cost", held, kinds))


def of_costs(systems: Systems) -> str:
    """The title of errors against cost: who follows BPTT at any cost, on which systems."""
    if alone := only(systems):
        return of_cost(*alone)
    held = holding(systems, lambda rows: bool((rows["cosine_min"] >= FOLLOWS).any()))
    return tallied(f"{THROUGHOUT} at some cost", held, systems)


# Errors and causes


def by_nudge(here: DataFrame, faithful: float) -> dict[str, Predicate]:
    """How the error of the worst parameter goes with beta for each rule, and what the whole gradient hides of it.

    Rows are settled cells with `error` and `rel_error`, that of the whole gradient. It is the worst seed that counts,
    in float32 where there is any.
    """
    said = {}
    for label, rows in by_rule(here):
        rows = rows[rows["dtype"] == rows["dtype"].min()]
        error = rows.groupby("beta")["error"].max()
        whole = float(rows.groupby("beta")["rel_error"].max()[error.idxmin()])
        hidden = f" (the whole gradient by {number(whole)})" if whole <= faithful < error.min() else ""
        alike = list(error[error <= ALIKE * error.min()].index)
        least, betas = number(float(error.min())), list(error.index)
        if len(alike) == len(error) > 1:
            said[label] = Predicate("is off", f"by {least} at every tested {plain('beta')}{hidden}")
        elif alike[0] == betas[0] and alike[-1] >= DECADE * alike[0]:
            said[label] = Predicate(
                "is off", f"by {least} at every tested {plain('beta')}{BLANK}≤{BLANK}{alike[-1]:g}{hidden}"
            )
        else:
            end = {betas[0]: " (the smallest tested)", betas[-1]: " (the largest tested)"}.get(
                best := float(error.idxmin()), ""
            )
            said[label] = Predicate("is best", f"at {equal('beta', [best])}{end}, off by {least}{hidden}")
    return said


def of_nudge(system: str, here: DataFrame, faithful: float) -> str:
    """The title of a panel of errors against beta."""
    only = f"in {here['dtype'].min()}, " if here["dtype"].nunique() > 1 else ""
    return f"{system}: {only}{together(by_nudge(here, faithful)) or NOTHING}"


def of_nudges(systems: Systems, faithful: float) -> str:
    """The title of errors against beta: which rule is faithful in every parameter at some nudge, on which systems."""
    if alone := only(systems):
        return of_nudge(*alone, faithful)
    held: dict[str, dict[str, bool]] = {}
    for system, here in systems.items():
        for label, rows in by_rule(here):
            rows = rows[rows["dtype"] == rows["dtype"].min()]
            held.setdefault(label, {})[system] = bool(rows.groupby("beta")["error"].max().min() <= faithful)
    near = f"comes within {100 * faithful:g}{BLANK}% of BPTT in every parameter"
    return tally(f"{near} at some {spoken('beta')}", held)


def of_budget(system: str, bars: DataFrame, knob: str, faithful: float) -> str:
    """The title of a panel of bars: what each rule, called as at its bars, errs by along a knob, and where.

    bars: estimator_label, the knob, error, leading (the largest cause), settled (whether all seeds are)
    """
    settled = bars[bars["settled"]]
    if len(default_forms(settled["estimator_label"])) > FEW:
        return f"{system}: {together(_most_often(settled, faithful))}"
    said = {}
    for label, rows in by_rule(settled):
        asked = int((bars["estimator_label"] == label).sum())
        every = f"at every {'settled' if len(rows) < asked else 'tested'} {plain(knob)}"
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
    return f"{system}: {together(said) or NOTHING}"


def _most_often(bars: DataFrame, faithful: float) -> dict[str, Predicate]:
    """What each of many rules errs by in most of its long bars."""
    said = {}
    for label, rows in by_rule(bars):
        most = _leading(rows, faithful)[0]
        said[label] = Predicate("errs", f"the most often by {listed(most)}") if most else Predicate("is faithful", "")
    return said


def _by_cause(bars: DataFrame, faithful: float) -> str:
    """Which of many rules err the most often by which causes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, rows in by_rule(bars):
        groups.setdefault(tuple(_leading(rows, faithful)[0]), []).append(look.words(label))
    total, said = sum(map(len, groups.values())), list[str]()
    for causes, names in sorted(groups.items(), key=lambda item: not item[0]):  # faithful rules come last
        many = len(names) > 1
        if not causes:
            said.append(f"{first(names)} {'are' if many else 'is'} faithful wherever settled")
        else:
            verb = "" if said else "err the most often" if many else "errs the most often"
            said.append(" ".join(filter(None, [first(names), verb, f"by {listed(causes)}"])))
    return f"Of {total} rules, {'; '.join(said)}"


def _leading(rows: DataFrame, faithful: float) -> tuple[list[str], Series]:
    """The causes that are the largest one in the most long bars, and in how many each cause is."""
    counted = rows[rows["error"] > faithful]["leading"].value_counts()
    return sorted(counted[counted == counted.max()].index), counted


def _at(values: Sequence[float], asked: int, knob: str) -> str:
    return f"at {equal(knob, values)}" if len(values) < NAMED else f"at {part(len(values), asked)} {plain(knob)}"


def of_budgets(bars: DataFrame, faithful: float) -> str:
    """The title of the budget: what each rule errs by the most often, over all bars that are settled and long."""
    settled = bars[bars["settled"]]
    if len(default_forms(settled["estimator_label"])) > FEW:
        return _by_cause(settled, faithful)
    said = {}
    for label, rows in by_rule(settled):
        most, counted = _leading(rows, faithful)
        if not most:
            said[label] = Predicate("is faithful", "wherever settled")
        else:
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
