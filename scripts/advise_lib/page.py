"""The page: what was looked at, the questions with their answers, and the settings to take."""
import json
import textwrap
from dataclasses import asdict

from advise_lib import judge, search
from run_lib.units import scale_of_bytes

WIDTH = 79


# --- figures ---


def seconds(value):
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def size(value):
    unit, name = scale_of_bytes(value)
    return f"{value / unit:.3g} {name}"


def percent(share):
    return f"{100 * share:.1f} %"


def interval(verdict):
    """The gain with its interval, where several steps say how sure it is."""
    if verdict.low is None:
        return f"{percent(verdict.gain)} of a step"
    low, high = 100 * verdict.low, 100 * verdict.high
    return f"{percent(verdict.gain)} of a step ({low:.1f} to {high:.1f} % in 95 of 100 cases)"


def wrapped(text, indent=2):
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space)


def table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        )
        for row in [head, *rows]
    ]
    return ["    " + line.rstrip() for line in lines]


def question(text, answer, lines=()):
    return ["", text, *wrapped(answer), *lines]


# --- what a choice is called ---


def name_of(choice, now):
    """What differs from the configuration as it is; its placement always."""
    parts = [choice.policy]
    if choice.group != now.group:
        parts.append(f"EP {choice.group}")
    if choice.redundant != now.redundant:
        parts.append(f"{choice.redundant} replicas")
    if choice.limit != now.limit:
        parts.append(f"M = {choice.limit}")
    parts += [text for text in (choice.mode, choice.payload) if text]
    return ", ".join(parts)


def settings_of(choice, now):
    """--set of what differs."""
    keys = (
        ("cluster.devices", choice.group, now.group),
        ("placement.redundant_experts", choice.redundant, now.redundant),
        ("placement.policy", choice.policy, now.policy),
        ("exchange.mode", choice.mode, now.mode),
    )
    return [f"{key}={value}" for key, value, before in keys if value != before]


class Page:
    """The answers as lines of text, and the same figures for a program."""

    def __init__(self, advice, bench, times, memory, title):
        self.advice, self.bench, self.times, self.memory = advice, bench, times, memory
        self.config, self.title = bench.config, title
        self.now, self.best = advice.now, advice.best
        self.placements = advice.of(self.now.choice)

    # --- what was looked at ---

    def head(self):
        config, hidden = self.config, search.widths(self.config)
        per_node = self.bench.per_node
        nodes = (self.bench.devices + per_node - 1) // per_node
        tokens = self.bench.tokens(1)
        first = (
            f"{_layers(search.layers_of(config))} of {search.experts_of(config)} experts, top"
            f" {config['router.top_k']}, widths {hidden[0]} and {hidden[1]},"
            f" {config['exchange.payload']}; {self.bench.devices} devices on {nodes}"
            f" node{'s' if nodes > 1 else ''}, {tokens} tokens on each in a step."
        )
        return [self.title, *wrapped(first), *wrapped(self.windows())]

    def windows(self):
        bench = self.bench
        looked = f"{bench.layers} of {_layers(search.layers_of(self.config))}"
        last = len(self.now.held_out)
        if bench.recording and bench.recording.halves:
            how = (
                "One step was recorded: the first half of each device's tokens decides, the other"
                " is judged, and times are those of half a step."
            )
        else:
            how = (
                f"Of {bench.num_steps} steps the first {bench.fit} decide where experts live; by the"
                f" next {self.now.middle} a choice was made, and what is said of it is of the last"
                f" {last}."
            )
        return f"Looked at: {looked}. {how} Times are of a forward pass, predicted."

    # --- balance and placement ---

    def balance(self):
        now = self.now
        possible = 1 - min(now.balanced / now.seconds, 1)
        lines = table(
            ["placement", "step", "saved", "busiest", "sent/token", "to move", "decides"],
            [self._placement_row(one) for one in sorted(self.placements, key=_by_time)],
        )
        text = (
            f"A step takes {seconds(now.seconds)} with {now.choice.policy}, and"
            f" {seconds(now.balanced)} if every device had the same. "
        )
        if possible < judge.WORTH:
            return question(
                "Is balance worth anything here?",
                f"Not worth it. {text}That is {percent(possible)}: {self.times['bottleneck']}.",
                lines,
            )
        answer, why = self._best_placement()
        return question(
            "Is balance worth anything here?",
            f"{answer}. {text}That is {percent(possible)} to be won. {why}",
            lines,
        )

    def _placement_row(self, one):
        return [
            one.choice.policy + ("" if one.usable else " *"),
            seconds(one.seconds),
            percent(1 - one.seconds / self.now.seconds),
            f"{one.busiest:.2f}x",
            size(one.bytes_per_token),
            f"{one.moved:.0f}",
            one.decides,
        ]

    def _best_placement(self):
        """(answer, reason) about the best placement with nothing else changed."""
        best = judge.best(self.placements)
        if best.choice == self.now.choice:
            return judge.NO, f"No placement that a run can use is faster than {best.choice.policy}."
        verdict = judge.compare(self.now, best)
        if verdict.answer == judge.UNKNOWN:
            return verdict.answer, (
                f"{best.choice.policy} would save {interval(verdict)}, which may be chance: more"
                " steps would tell."
            )
        if verdict.answer == judge.NO:
            return verdict.answer, f"{best.choice.policy} saves {interval(verdict)}."
        return self._lasting(verdict), (
            f"{best.choice.policy} saves {interval(verdict)}. {self._moving(best)}"
        )

    def _lasting(self, verdict):
        if verdict.low is not None:
            return verdict.answer
        return f"{verdict.answer}, by one judged step, which says nothing of how long it lasts"

    def _moving(self, best):
        """When the copies of experts have paid for themselves."""
        config = self.config
        across = self.bench.devices > self.bench.per_node
        rate = 1e9 * float(config["cluster.link_efficiency"])
        rate *= float(config["cluster.inter_gbps" if across else "cluster.intra_gbps"])
        copies = best.moved * search.layers_of(config) / self.bench.layers
        cost = copies * search.expert_bytes(config) / best.choice.group / rate
        gain = self.now.seconds - best.seconds
        steps = max(1, round(cost / gain))
        return (
            f"Copying {copies:.0f} experts takes about {seconds(cost)}, as much as is saved in"
            f" {steps} step{'s' if steps > 1 else ''}."
        )

    # --- the other questions ---

    def replicas(self):
        found = self.advice.replicas
        if len(found) < 2:
            return question(
                "How many redundant experts?",
                "Not enough evidence: no other number divides among the devices.",
            )
        fewest = found[0]
        best = min(found, key=lambda one: one.chosen_by)
        verdict = judge.compare(fewest, best)
        rows = [
            [
                str(one.choice.redundant),
                one.choice.policy,
                seconds(one.seconds),
                self._experts(one),
            ]
            for one in found
        ]
        text = (
            f"{best.choice.redundant} instead of {fewest.choice.redundant} save"
            f" {interval(verdict)}"
            if best is not fewest
            else f"{fewest.choice.redundant} are as fast as more"
        )
        answer = judge.NO if best is fewest else verdict.answer
        return question(
            f"How many redundant experts, EP {fewest.choice.group}?",
            f"{answer}: {text}.",
            table(["replicas", "best placement", "step", "experts of a device"], rows),
        )

    def sizes(self):
        found = self.advice.sizes
        rows = [
            [
                str(one.choice.group),
                one.choice.policy,
                seconds(one.seconds),
                size(one.bytes_per_token),
                self._experts(one),
            ]
            for one in found
        ]
        head = ["EP", "best placement", "step", "sent/token", "experts of a device"]
        here = next(one for one in found if one.choice.group == self.now.choice.group)
        return question(
            "Over how many devices should the experts be spread (EP)?",
            self._size_answer(found, here),
            table(head, rows),
        )

    def _size_answer(self, found, here):
        best = min(found, key=lambda one: one.chosen_by)
        if len(found) < 2:
            return f"Not enough evidence: {here.choice.group} devices do not divide into nodes."
        verdict = judge.compare(here, best)
        if best is here or verdict.answer == judge.NO:
            return f"Not worth it to change: EP {here.choice.group} is as fast as any other."
        needed = self._experts(best)
        if self.memory:
            chosen = self.best.choice.group
            return (
                f"EP {chosen}, of those whose experts fit into {size(self.memory)}; by time alone"
                f" EP {best.choice.group} saves {interval(verdict)}, with {needed} of experts on"
                " each device."
            )
        return (
            f"Not enough evidence: EP {best.choice.group} saves {interval(verdict)} if a device"
            f" has room for {needed} of experts, which no cluster file says (--memory GIB)."
            f" EP {here.choice.group} is kept."
        )

    def limits(self):
        title = "To how many devices may a token go (M)?"
        if self.config["data.source"] == "routing":
            return question(
                title,
                "Not enough evidence: recorded choices cannot be chosen anew. A recording of logits"
                " (data.source = logits) can.",
            )
        found = self.advice.limits
        if not found:
            return question(title, "Not enough evidence: no other limit goes with this router.")
        fastest = min(found, key=lambda one: one.chosen_by)
        verdict = judge.compare(self.now, fastest)
        rows = [
            [
                str(one.choice.limit or "as it is"),
                seconds(one.seconds),
                size(one.bytes_per_token),
                f"{one.busiest:.2f}x",
            ]
            for one in sorted([*found, self.now], key=lambda one: one.choice.limit)
        ]
        gain = f"M = {fastest.choice.limit} saves {interval(verdict)}"
        text = (
            f"Not worth it: {gain}."
            if verdict.answer == judge.NO
            else f"Not enough evidence: {gain}, but what a model loses by it is not known before"
            " it is trained so (scripts/sweep --vary router.topk_group)."
        )
        return question(title, text, table(["M", "step", "sent/token", "busiest"], rows))

    def mode(self):
        title = "Which exchange mode?"
        here = self.config["exchange.mode"]
        if not self.advice.modes:
            return question(title, f"{here}: the other does not run here.")
        other = self.advice.modes[0]
        verdict = judge.compare(self.now, other)
        figures = (
            f"{other.choice.mode} takes {seconds(other.seconds)} and sends"
            f" {size(other.bytes_per_token)} a token, {here} {seconds(self.now.seconds)} and"
            f" {size(self.now.bytes_per_token)}"
        )
        answer = f"{other.choice.mode}" if verdict.answer == judge.YES else f"{here}"
        return question(title, f"{answer}: {figures}.")

    def payload(self):
        title, here = "Which payload?", self.config["exchange.payload"]
        found = self.advice.payloads
        if not found:
            reasons = [why for choice, why in self.advice.refused.items() if choice.payload]
            return question(title, f"Not enough evidence: {reasons[0].removeprefix('--set: ')}.")
        parts = [f"{one.choice.payload} takes {seconds(one.seconds)}" for one in found]
        return question(
            title,
            f"Not enough evidence: {', '.join(parts)}, {here} {seconds(self.now.seconds)}; what a"
            " model loses by it is not known from its routing.",
        )

    # --- together ---

    def front(self):
        found = judge.front(
            [
                one
                for one in self.advice.outcomes
                if one.usable and search.deploys(one, self.now.choice)
            ]
        )
        rows = [
            [
                name_of(one.choice, self.now.choice),
                seconds(one.seconds),
                size(one.bytes_per_token),
            ]
            for one in found[:8]
        ]
        return [
            "",
            "Time against traffic: nothing that leaves the model as it is beats these",
            *table(["", "step", "sent/token"], rows),
        ]

    def conclusion(self):
        verdict = judge.compare(self.now, self.best)
        sets = settings_of(self.best.choice, self.now.choice)
        if not sets or verdict.answer == judge.NO:
            return question("What to change", "Nothing. No change is worth its trouble here.")
        if verdict.answer == judge.UNKNOWN:
            return question(
                "What to change",
                f"Nothing yet. {name_of(self.best.choice, self.now.choice)} looks best, but saves"
                f" {interval(verdict)}, which may be chance. To try it:",
                ["    --set " + word for word in sets],
            )
        per_token = self.best.bytes_per_token
        text = (
            f"{name_of(self.best.choice, self.now.choice)}: {seconds(self.best.seconds)} instead"
            f" of {seconds(self.now.seconds)}, which saves {interval(verdict)}; {size(per_token)}"
            f" a token go to other devices instead of {size(self.now.bytes_per_token)}."
        )
        if self._experts(self.best) != self._experts(self.now):
            text += (
                f" The experts of a device take {self._experts(self.best)} instead of"
                f" {self._experts(self.now)}."
            )
        if verdict.low is None:
            text += " One judged step says nothing of how long that lasts."
        return question("What to change", text, ["    --set " + word for word in sets])

    def _experts(self, one):
        choice = one.choice
        return size(search.weights_bytes(self.config, choice.group, choice.redundant))

    def lines(self):
        note = wrapped(
            "* compared only, no run places so. busiest: selections of the busiest device over the"
            " mean. to move: experts to be copied, of the layers that were looked at.",
            4,
        )
        return [
            *self.head(),
            *self.conclusion(),
            *self.balance(),
            *note,
            *self.replicas(),
            *self.sizes(),
            *self.limits(),
            *self.mode(),
            *self.payload(),
            *self.front(),
        ]

    def json(self):
        """The same figures, for a program."""
        verdict = judge.compare(self.now, self.best)
        return json.dumps(
            {
                "devices": self.bench.devices,
                "layers": self.bench.layers,
                "steps": self.bench.num_steps,
                "fit_steps": self.bench.fit,
                "now": _figures(self.now),
                "balanced_step_us": 1e6 * self.now.balanced,
                "best": _figures(self.best),
                "answer": verdict.answer,
                "gain": verdict.gain,
                "gain_low": verdict.low,
                "gain_high": verdict.high,
                "settings": settings_of(self.best.choice, self.now.choice),
                "bottleneck": self.times["bottleneck"],
                "choices": [_figures(one) for one in self.advice.outcomes],
            },
            indent=1,
        )


def _layers(number):
    return f"{number} layer{'s' if number > 1 else ''}"


def _by_time(one):
    return one.seconds


def _figures(one):
    return {
        **asdict(one.choice),
        "step_us": 1e6 * one.seconds,
        "step_us_by_step": [1e6 * value for value in one.steps],
        "bytes_per_token": one.bytes_per_token,
    }
