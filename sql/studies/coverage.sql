-- grain: one row per (query, share of its scored sequences): the part of the positive influence that they hold
with shares as (
    select unnest([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]::double[]) as top_share
)
select
    s.query_id,
    h.top_share,
    count(*) filter (where s.influence_rank <= ceil(h.top_share * s.n)) as n_sequences,
    sum(s.influence) filter (where s.influence_rank <= ceil(h.top_share * s.n)) / nullif(sum(s.influence), 0)
        as share_of_positive_influence
from positive_influences($run) s
cross join shares h
group by s.query_id, h.top_share
order by s.query_id, h.top_share
