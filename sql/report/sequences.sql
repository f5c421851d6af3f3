-- grain: one row per (query, sequence) of the page, of the run's own method
-- not every candidate: the head by influence, the head by relative influence, and what lowered the completion most
-- of all queries, or of the one that $query names
with own as (
    select i.*
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and ($query is null or i.query_id = $query)
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
    where l.run_id = $run and ($query is null or l.query_id = $query)
    group by l.query_id, l.sequence_id
),
by_band as (
    select l.query_id, l.sequence_id, b.band, sum(l.influence) as influence
    from layer_influences l
    join shown s on s.query_id = l.query_id and s.sequence_id = l.sequence_id
    join layer_bands(run := $run) b on b.layer = l.layer
    where l.run_id = $run and ($query is null or l.query_id = $query)
    group by l.query_id, l.sequence_id, b.band
),
parts as (
    select
        query_id,
        sequence_id,
        list(band order by band < 0, band) as bands,
        list(influence order by band < 0, band) as parts
    from by_band
    group by query_id, sequence_id
),
by_position as (
    select t.query_id, t.sequence_id, t.position, sum(t.influence) as influence
    from token_influences t
    join shown s on s.query_id = t.query_id and s.sequence_id = t.sequence_id
    where t.run_id = $run and ($query is null or t.query_id = $query)
    group by t.query_id, t.sequence_id, t.position
),
sparse as (
    select
        query_id,
        sequence_id,
        token_sparsity(influence) as sparsity,
        max(abs(influence)) / nullif(sum(abs(influence)), 0) as largest_token_share
    from by_position
    group by query_id, sequence_id
),
-- Cut before anything else is joined: whole documents, once per row, would fill the memory.
texts as materialized (
    select
        s.sequence_id,
        s.document_id,
        d.source,
        substring(d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, $excerpt)::bigint) as text,
        s.start_char,
        s.end_char
    from sequences s
    left join documents d on d.document_id = s.document_id
    where s.sequence_id in (select sequence_id from shown)
)
select
    r.query_id,
    r.sequence_id,
    x.document_id,
    x.source,
    t.strongest_module,
    x.text,
    x.start_char,
    x.end_char,
    r.influence,
    r.relative_influence,
    r.influence_per_copy,
    r.exact,
    r.influence_rank,
    r.relative_rank,
    r.lowering_rank,
    r.filter_rank,
    t.strongest_layer,
    b.bands,
    b.parts,
    p.sparsity,
    p.largest_token_share
from shown r
left join texts x on x.sequence_id = r.sequence_id
left join strongest t on t.query_id = r.query_id and t.sequence_id = r.sequence_id
left join parts b on b.query_id = r.query_id and b.sequence_id = r.sequence_id
left join sparse p on p.query_id = r.query_id and p.sequence_id = r.sequence_id
order by r.query_id, r.influence_rank
