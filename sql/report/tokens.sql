-- grain: one row per (query, sequence) whose tokens the page carries; influences by layer, then position
-- not every exactly scored pair: from the head of either ranking on, until the page holds $cells numbers
with own as (
    select
        i.query_id,
        i.sequence_id,
        i.influence_rank,
        row_number() over (partition by i.query_id order by i.relative_influence desc nulls last, i.sequence_id)
            as relative_rank
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run
),
head as (
    select query_id, sequence_id, least(influence_rank, relative_rank) as place
    from own
    where influence_rank <= $depth or relative_rank <= $depth
),
sized as (
    select t.query_id, t.sequence_id, h.place, min(t.layer) as first_layer, count(*) as n_cells
    from token_influences t
    join head h on h.query_id = t.query_id and h.sequence_id = t.sequence_id
    where t.run_id = $run
    group by t.query_id, t.sequence_id, h.place
),
added as (
    select
        *,
        sum(n_cells) over (order by place, query_id, sequence_id rows unbounded preceding) as n_cells_so_far
    from sized
),
chosen as (
    select query_id, sequence_id, first_layer
    from added
    where n_cells_so_far <= $cells
)
select
    t.query_id,
    t.sequence_id,
    list_sort(list(distinct t.layer)) as layers,
    list(t.token order by t.position) filter (where t.layer = c.first_layer) as tokens,
    list(t.influence order by t.layer, t.position) as influences
from token_influences t
join chosen c on c.query_id = t.query_id and c.sequence_id = t.sequence_id
where t.run_id = $run
group by t.query_id, t.sequence_id
order by t.query_id, t.sequence_id
