"""What stands in the files of a run's folder, field by field: everything that the report uses, with
its type and range.
"""
from run_lib.fields import (
    MOST_LAYERS,
    count,
    each,
    fields,
    flag,
    free,
    maybe,
    number,
    real,
    remark,
    scalar,
)
from run_lib.fields import text, tree, whole

MOST_STEPS = 10**12
MOST_EXPERTS = 1 << 20
MOST_DEVICES = 1 << 16
LONG_TEXT = 1 << 20  # characters of a formula with its values
MOST_ROWS = 1 << 20  # of a table

# --- summary.json and the lines of metrics.jsonl ---

_figures = free(real)  # losses, phases: {name: value}
_volume = tree(count, 5)  # {direction: {what: value, by_level: {level: {what, hop: {what}}}}}
_balance = tree(real, 2)  # {load: {metric: value}}
_step = whole(0, MOST_STEPS)
_per_expert = each(count, MOST_EXPERTS)
_per_device = each(count, MOST_DEVICES)


def _capacity_value(value, found):
    return (
        each(scalar, MOST_EXPERTS)(value, found)
        if isinstance(value, list)
        else scalar(value, found)
    )


def _host_value(value, found):
    """A host has scalars, and in `gemm` a list of libraries, each an object of scalars."""
    return each(free(scalar), 16)(value, found) if isinstance(value, list) else scalar(value, found)


LAYER = fields(
    volume=_volume,
    counts_per_expert=_per_expert,
    kept_per_expert=_per_expert,
    counts_per_device=_per_device,
    distinct_tokens_per_device=_per_device,
    sent_rows=_per_device,
    received_rows=_per_device,
    tokens_by_reach=_per_device,
    loss_ideal=_figures,
    loss_by_scope=free(_figures),
    selections=count,
    dropped=count,
    mean_devices_per_token=number(0, MOST_DEVICES),
    mean_devices_per_token_unlimited=number(0, MOST_DEVICES),
    mean_nodes_per_token=number(0, MOST_DEVICES),
    mean_remote_nodes_per_token=number(0, MOST_DEVICES),
    mean_nodes_per_token_unlimited=number(0, MOST_DEVICES),
    capacity=free(_capacity_value),
)

SUMMARY = fields(
    version=text(64),
    config=tree(scalar, 2),
    devices=count,
    ranks=count,
    steps=_step,
    num_tokens=count,
    comm_matrix_steps=each(_step, 1024),
    over_steps=maybe(tree(real, 2)),
    checks=free(flag),
    check_details=free(remark),
    loss=_figures,
    loss_raw=_figures,
    loss_ideal=_figures,
    volume=_volume,
    counted=free(scalar),
    payload_error=fields(y=real, loss=real, gradient=real),
    compute_error=fields(y=real, loss=real, gradient=real),
    balance=_balance,
    layers=each(LAYER, MOST_LAYERS, instead={}),
    machine=fields(
        hosts=each(free(_host_value), MOST_DEVICES, instead={}),
        ranks=each(free(scalar), MOST_DEVICES, instead={}),
    ),
    time=fields(
        total=real,
        measured=fields(step_mean=real, phases=_figures),
        predicted=_figures,
        balanced=_figures,
        exchange=_figures,
        overlap=fields(
            hidden_share=real,
            ranks=each(fields(hidden_share=real), MOST_DEVICES, instead={}),
        ),
        simulated=free(scalar),
        bottleneck=text(240),
        price_per_million_tokens=real,
    ),
    kv_cache=fields(
        kind=text(16),
        elements_per_token=count,
        bf16_bytes_per_token=count,
        elements_by_kind=free(count),
        gqa_groups=count,
    ),
    generate=tree(real, 3),
    training=fields(
        unigram_entropy=real,
        task_loss=fields(mean_last_20=real),
        validation_loss=fields(last=real),
        bits_per_byte=fields(mean_last_20=real),
        validation_bits_per_byte=fields(last=real),
    ),
)

STEP = fields(
    step=_step,
    num_tokens=count,
    loss=_figures,
    loss_raw=_figures,
    volume=_volume,
    balance=_balance,
    time=fields(
        step=real,
        phases=_figures,
        predicted=fields(step_us=real),
        rebalance=fields(decide=real, move=real),
    ),
    task_loss=real,
    lm_loss=real,
    validation_loss=real,
    bits_per_byte=real,
    gradient_norm=real,
    learning_rate=real,
    dropped=count,
    rebalance=fields(
        experts_moved=count,
        bytes=count,
        cross_node_bytes=count,
        replicas_wasted=count,
        device_max_over_mean_before=real,
        device_max_over_mean_after=real,
        moves=each(each(count, 4), 1 << 16),
        device_load_before=each(each(real, MOST_DEVICES), MOST_LAYERS),
        device_load_after=each(each(real, MOST_DEVICES), MOST_LAYERS),
    ),
)

# --- specialization.json ---

SPECIALIZATION = fields(
    validation_batches=count,
    disabled=each(fields(experts=count, task_loss=real), MOST_ROWS, instead={}),
    shared_replaced=fields(routed_experts=count, task_loss=real),
    domains=each(scalar, 1 << 16),
    layers=each(fields(mutual_information=real, score=real, chance=real), MOST_LAYERS, instead={}),
)

# --- explain.json, read strictly ---

_reals = each(maybe(real), MOST_EXPERTS)
_CHOICE = fields(
    optional=("wanted", "room", "place"),
    expert=whole(0, MOST_EXPERTS),
    device=count,
    score=maybe(real),
    selection=maybe(real),
    weight=maybe(real),
    sent_weight=maybe(real),
    output_norm=maybe(real),
    contribution_norm=maybe(real),
    part_of_y=maybe(real),
    served_by=maybe(count),
    wanted=count,
    room=maybe(count),
    place=maybe(count),
)
_TOKEN_LAYER = fields(
    counted=flag,
    counted_tokens=count,
    logit=maybe(_reals),
    score=maybe(_reals),
    selection=maybe(_reals),
    groups=maybe(
        fields(
            rule=text(),
            are_devices=flag,
            limit=count,
            score=_reals,
            admitted=each(count, MOST_EXPERTS),
        )
    ),
    choices=each(_CHOICE, 4096),
    rows=each(
        fields(
            device=count, rank=count, level=text(), pairs=count, bytes=count, metadata_bytes=count
        ),
        MOST_DEVICES,
    ),
    output=fields(
        x_norm=maybe(real),
        u_norm=maybe(real),
        y_norm=maybe(real),
        residual_norm=maybe(real),
        shared_norm=maybe(real),
        shared_part_of_y=maybe(real),
    ),
    loss=maybe(free(fields(batch=maybe(real), share=maybe(real), alpha=maybe(real)))),
    gradient=maybe(
        free(lambda value, found: (_reals if isinstance(value, list) else real)(value, found))
    ),
)
_TOKEN = fields(
    token=count,
    step=_step,
    num_tokens=count,
    sequence=maybe(count),
    position=maybe(count),
    device=count,
    num_devices=whole(1, MOST_DEVICES),
    micro_batches=count,
    text=maybe(fields(before=text(), token=text(), after=text())),
    layers=each(_TOKEN_LAYER, MOST_LAYERS),
)
_DERIVED = fields(
    part=text(),
    layer=maybe(count),
    micro_batch=maybe(count),
    name=text(),
    formula=text(LONG_TEXT),
    filled=maybe(text(LONG_TEXT)),
    value=maybe(real),
    reported=scalar,
    agrees=flag,
)
EXPLANATION = fields(token=maybe(_TOKEN), step=maybe(each(_DERIVED, MOST_ROWS)))

# --- timeline.json, read strictly: of its events, spans and names of threads ---

_thread = whole(0, 1 << 31)
_microseconds = number(-1e15, 1e15)
SPAN = fields(
    name=text(200),
    ts=_microseconds,
    dur=_microseconds,
    tid=_thread,
    args=fields(
        optional=("step", "layer", "rows", "selections", "rows_sent", "rows_received", "chunk"),
        step=_step,
        layer=whole(-1, MOST_LAYERS),
        rows=count,
        selections=count,
        rows_sent=count,
        rows_received=count,
        chunk=count,
    ),
)
THREAD = fields(tid=_thread, args=fields(name=text(200)))

# --- sweep.json and sweep-run.json, which scripts/sweep writes, read strictly ---

_settings = free(text())
SWEEP = fields(config=text(), ranks=count, set=_settings)
SWEEP_RUN = fields(
    optional=("error", "seconds"),
    status=text(),
    error=text(LONG_TEXT),
    seconds=maybe(real),
    settings=each(each(text(), 2), MOST_ROWS),
)
