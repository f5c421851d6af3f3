-- grain: one row per (query, sequence) of the page, of the run's own method
-- not every candidate: the head by influence, the head by relative influence, and what lowered the completion most
with own as (
    select i.*
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run
),
ranked as (
    select
        *,
        row_number() over (partition by query_id order by relative_influence desc nulls last, sequence_id)
            as relative_rank,
        row_number() over (partition by query_id order by influence, sequence_id) as lowering_rank
    from own
),
shown as (
    select *
    from ranked
    where influence_rank <= $top or relative_rank <= $top or (lowering_rank <= $lowering and influence < 0)
),
strongest as (
    select
        l.query_id,
        l.sequence_id,
        arg_max(l.module, l.influence * sign(s.influence)) as strongest_module,
        arg_max(l.layer, l.influence * sign(s.influence)) as strongest_layer
    from layer_influences l
    join shown s on s.query_id = l.query_id and s.sequence_id = l.sequence_id
    where l.run_id = $run
    group by l.query_id, l.sequence_id
)
select
    r.query_id,
    r.sequence_id,
    s.document_id,
    d.source,
    t.strongest_module,
    substring(
        d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, $excerpt)::bigint
    ) as text,
    s.start_char,
    s.end_char,
    r.influence,
    r.relative_influence,
    r.influence_per_copy,
    r.exact,
    r.influence_rank,
    r.relative_rank,
    r.lowering_rank,
    r.filter_rank,
    t.strongest_layer
from shown r
left join sequences s on s.sequence_id = r.sequence_id
left join documents d on d.document_id = s.document_id
left join strongest t on t.query_id = r.query_id and t.sequence_id = r.sequence_id
order by r.query_id, r.influence_rank
