-- grain: one row per (query, sequence) whose tokens the page carries; influences by band of layers, then position
-- not every exactly scored pair: from the head of either ranking on, until the page holds $cells numbers
-- of all queries, or of the one that $query names
with bands as (
    from layer_bands(run := $run)
),
own as (
    select
        i.query_id,
        i.sequence_id,
        i.influence_rank,
        i.exact,
        row_number() over (partition by i.query_id order by i.relative_influence desc nulls last, i.sequence_id)
            as relative_rank
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and ($query is null or i.query_id = $query)
),
head as (
    select
        o.query_id,
        o.sequence_id,
        least(o.influence_rank, o.relative_rank) as place,
        s.document_id,
        s.start_char,
        s.end_char,
        s.n_tokens * (select count(distinct band) from bands) as n_cells
    from own o
    join sequences s on s.sequence_id = o.sequence_id
    where o.exact and least(o.influence_rank, o.relative_rank) <= $depth
),
added as (
    select
        *,
        sum(n_cells) over (order by place, query_id, sequence_id rows unbounded preceding) as n_cells_so_far
    from head
),
-- Cut before anything else is joined: whole documents, once per row, would fill the memory.
chosen as materialized (
    select
        a.query_id,
        a.sequence_id,
        substring(
            d.text, greatest(a.start_char - $around, 0)::bigint + 1, least(a.start_char, $around)::bigint
        ) as before,
        substring(d.text, (a.end_char + 1)::bigint, $around::bigint) as after,
        a.start_char > $around as begins_earlier,
        a.end_char + $around < length(d.text) as goes_on
    from added a
    left join documents d on d.document_id = a.document_id
    where a.n_cells_so_far <= $cells
),
summed as (
    select t.query_id, t.sequence_id, b.band, t.position, any_value(t.token) as token, sum(t.influence) as influence
    from token_influences t
    join chosen c on c.query_id = t.query_id and c.sequence_id = t.sequence_id
    join bands b on b.layer = t.layer
    where t.run_id = $run and ($query is null or t.query_id = $query)
    group by t.query_id, t.sequence_id, b.band, t.position
),
gathered as (
    select
        query_id,
        sequence_id,
        list(band order by band < 0, band) filter (where position = first_position) as bands,
        list(token order by position) filter (where band = first_band) as tokens,
        list(influence order by band < 0, band, position) as influences
    from (
        select *, min(band) over pair as first_band, min(position) over pair as first_position
        from summed
        window pair as (partition by query_id, sequence_id)
    )
    group by query_id, sequence_id
)
select
    g.query_id,
    g.sequence_id,
    c.before,
    c.after,
    c.begins_earlier,
    c.goes_on,
    g.bands,
    g.tokens,
    g.influences
from gathered g
join chosen c on c.query_id = g.query_id and c.sequence_id = g.sequence_id
order by g.query_id, g.sequence_id
