"""explain.json (--explain TOKEN, --explain-step) as what the page shows: bars of one token's
scores, outputs, losses and gradients, and texts.
"""
import texts
from run_lib.fields import Found, Wrong
from run_lib.contents import EXPLANATION
from names import LEVELS
from texts import loss_name

BARS = 32  # experts whose scores are drawn
SHOWN = 12  # experts whose gradients are drawn
LIMITS = {
    "max": "its best expert",
    "top2_sum": "the sum of its two best",
    "topk_sum": "the sum of its top_k / topk_group best",
    "quota": "its best expert",
}


def read(found, problems):
    """What is shown of the file's value, or None; what is wrong becomes one of the problems."""
    if found is None:
        return None
    try:
        found = EXPLANATION(found, Found("explain.json", strict=True))
        for index, layer in enumerate(found["token"]["layers"] if found["token"] else []):
            agree(layer, f"token.layers[{index}]")
        return found
    except Wrong as error:
        problems.append(f"explain.json is damaged ({error}).")
        return None


def agree(layer, where):
    """Lists about the experts are of one length, and whoever names an expert names one of these."""
    lists = {name: layer[name] for name in ("score", "logit", "selection") if layer[name]}
    gradient = layer["gradient"] or {}
    lists.update(
        (f"gradient.{name}", value) for name, value in gradient.items() if name != "output_norm"
    )
    lengths = {name: len(value) if isinstance(value, list) else 0 for name, value in lists.items()}
    experts = max(lengths.values(), default=0)
    for name, length in lengths.items():
        if length != experts:
            raise Wrong(f"{where}.{name} has {length} entries, expected are {experts}")
    if layer["selection"] and layer["score"] is None:
        raise Wrong(f"{where}.score is null, expected are {experts} numbers")
    if gradient and ("balance" not in gradient or not layer["score"]):
        raise Wrong(f"{where}.gradient has no field balance, or there are no scores")
    if experts and any(choice["expert"] >= experts for choice in layer["choices"]):
        raise Wrong(f"{where}.choices name an expert from {experts} on")
    groups = len(layer["groups"]["score"]) if layer["groups"] else 1
    if layer["score"] is not None and not 0 < groups <= experts:
        raise Wrong(f"{where}.groups.score has {groups} entries for {experts} experts")


# --- what charts draw ---


def ranked(layer):
    """Experts by what they are ranked by, falling, then index; a disabled one (null) last."""
    values = layer["selection"] or layer["score"]
    return sorted(
        range(len(values)),
        key=lambda expert: (values[expert] is None, -(values[expert] or 0), expert),
    )


def shown(layer, count):
    """The chosen experts and the best others, `count` of them, in falling order."""
    order, chosen = ranked(layer), {choice["expert"] for choice in layer["choices"]}
    kept = set(
        [expert for expert in order if expert in chosen]
        + [expert for expert in order if expert not in chosen][: max(count - len(chosen), 2)]
    )
    return [expert for expert in order if expert in kept]


def kind_of(layer, expert, experts):
    choice = next((choice for choice in layer["choices"] if choice["expert"] == expert), None)
    if choice:
        return "chosen" if choice["served_by"] is not None else "dropped"
    groups = layer["groups"]
    return (
        "not admitted"
        if groups and expert // (experts // len(groups["score"])) not in groups["admitted"]
        else "not chosen"
    )


def scores_of(layer, per_device):
    if layer["score"] is None:
        return None
    logit, selection, experts = layer["logit"], layer["selection"], len(layer["score"])
    return [
        {
            "expert": expert,
            "device": expert // per_device,
            "logit": logit and logit[expert],
            "score": layer["score"][expert],
            "selection": selection and selection[expert],
            "kind": kind_of(layer, expert, experts),
        }
        for expert in shown(layer, BARS)
    ]


def outputs_of(layer):
    """[{"name", "norm", "part"}] of what comes back, the shared experts last."""
    parts = [
        {
            "name": f"expert {choice['served_by']}",
            "norm": choice["contribution_norm"],
            "part": choice["part_of_y"],
        }
        for choice in layer["choices"]
        if choice["served_by"] is not None
    ]
    if layer["output"]["shared_norm"] is not None:
        parts.append(
            {
                "name": "shared experts",
                "norm": layer["output"]["shared_norm"],
                "part": layer["output"]["shared_part_of_y"],
            }
        )
    return parts


def gradient_of(layer):
    """{"expert": [...], "parts": [{"name", "value"}]}; the losses with a coefficient, the task, and
    their sum.
    """
    gradient = layer["gradient"]
    if not gradient:
        return None
    experts = shown(layer, SHOWN)
    named = [
        (name, values)
        for name, values in gradient.items()
        if name not in ("balance", "task", "total", "output_norm")
    ]
    if len(named) > 1 or "task" in gradient:
        named.append(("all balance losses", gradient["balance"]))
    named += [
        (name, gradient[key])
        for key, name in (("task", "task"), ("total", "total"))
        if key in gradient
    ]
    return {
        "expert": experts,
        "parts": [
            {"name": loss_name(name), "value": [values[expert] for expert in experts]}
            for name, values in named
        ],
    }


def layer_of(layer, token):
    experts = len(layer["score"] or layer["logit"] or [])
    return {
        "scores": scores_of(layer, max(experts // token["num_devices"], 1)),
        "outputs": outputs_of(layer),
        "gradient": gradient_of(layer),
        "groups": layer["groups"]
        and {
            "score": layer["groups"]["score"],
            "admitted": layer["groups"]["admitted"],
            "unit": "device" if layer["groups"]["are_devices"] else "group",
        },
    }


def digest(found):
    """What the charts draw of a token, or None."""
    token = found and found["token"]
    return token and {
        "token": token["token"],
        "layers": [layer_of(layer, token) for layer in token["layers"]],
    }


# --- tables ---


def place_text(token):
    text = (
        f"Token {texts.count_text(token['token'])} of {texts.count_text(token['num_tokens'])} in"
        f" step {token['step']}, at home on device {token['device']}; sequence"
        f" {texts.count_text(token['sequence'])}, place"
        f" {texts.count_text(token['position'])} in it."
    )
    return text + (
        f" It is one of the last of the step's {token['micro_batches']} micro-batches."
        if token["micro_batches"] > 1
        else ""
    )


def group_text(layer):
    groups = layer["groups"]
    unit = "device" if groups["are_devices"] else "group"
    return (
        f"A {unit}'s score is {LIMITS.get(groups['rule'], groups['rule'])}; the best"
        f" {groups['limit']} of {len(groups['score'])} are admitted."
    )


def output_text(layer):
    """Norms of what goes into the layer and of what comes out of it."""
    output = layer["output"]
    named = [("|x|", "x_norm"), ("|u|", "u_norm"), ("|y|", "y_norm")]
    if output["residual_norm"] is not None:
        named.append(("|y + x|", "residual_norm"))
    parts = [f"{sign} = {texts.real_text(output[name])}" for sign, name in named]
    if output["shared_norm"] is not None:
        share = texts.share_text(output["shared_part_of_y"])
        parts.append(f"shared experts {texts.real_text(output['shared_norm'])} ({share} of y)")
    return ", ".join(parts) + "."


def choice_rows(layer):
    """(columns, rows); with a capacity also what each choice met."""
    limited = any("wanted" in choice for choice in layer["choices"])
    columns = [
        "expert",
        "device",
        "score s",
        "ranked by",
        "weight g",
        "sent with",
        "|FFN(u)|",
        "|g FFN(u)|",
        "part of y",
    ]
    rows = []
    for choice in layer["choices"]:
        row = [
            str(choice["expert"]),
            str(choice["device"]),
            *(
                texts.real_text(choice[key])
                for key in (
                    "score",
                    "selection",
                    "weight",
                    "sent_weight",
                    "output_norm",
                    "contribution_norm",
                )
            ),
            texts.share_text(choice["part_of_y"]),
        ]
        if limited:
            room = "all" if choice["room"] is None else texts.count_text(choice["room"])
            served = (
                "dropped"
                if choice["served_by"] is None
                else (
                    "kept"
                    if choice["served_by"] == choice["expert"]
                    else f"moved to expert {choice['served_by']}"
                )
            )
            row.append(
                f"no. {texts.count_text(choice['place'])} of"
                f" {texts.count_text(choice['wanted'])}, room for {room}: {served}"
            )
        rows.append(row)
    return columns + ["its place in the order"] * limited, rows


def row_rows(layer):
    return [
        [
            str(row["device"]),
            str(row["rank"]),
            LEVELS.get(row["level"], row["level"]),
            str(row["pairs"]),
            texts.bytes_text(row["bytes"]),
            texts.bytes_text(row["metadata_bytes"]),
        ]
        for row in layer["rows"]
    ]


def loss_rows(layer):
    """Losses of which a token has a share, first those that are trained."""
    rows, tokens = [], layer["counted_tokens"]
    for name, loss in (layer["loss"] or {}).items():
        if loss["share"] is None or loss["batch"] is None:
            continue
        own = loss["share"] * tokens
        rows.append(
            [
                loss_name(name),
                texts.real_text(loss["batch"]),
                texts.real_text(loss["share"]),
                texts.real_text(own),
                texts.real_text(own / loss["batch"], 3) if loss["batch"] else texts.NONE,
                texts.real_text(loss["alpha"]),
                texts.real_text(loss["alpha"] * loss["share"]) if loss["alpha"] else texts.NONE,
            ]
        )
    return rows


def derived_row(one, layers=1):
    """(figure, formula with its values, value, does it agree)."""
    where = [
        f"{what.replace('_', '-')} {one[what]}"
        for what in ("layer", "micro_batch")
        if one[what] is not None and (what != "layer" or layers > 1)
    ]
    filled = f"{one['formula']} = {one['filled']}" if one["filled"] else one["formula"]
    return (
        one["name"] + (f" ({', '.join(where)})" if where else ""),
        filled,
        texts.real_text(one["value"], 10),
        "✓" if one["agrees"] else f"✗ reported: {one['reported']}",
    )


def derived_parts(found):
    """[(heading, rows)] of a step's derivation."""
    parts, layers = {}, 1 + max([one["layer"] or 0 for one in found["step"]], default=0)
    for one in found["step"]:
        parts.setdefault(one["part"], []).append(derived_row(one, layers))
    return list(parts.items())
