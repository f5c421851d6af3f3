-- grain: one row per share of the scored sequences: which part of the positive influence they hold
-- of the scored candidates, not of the corpus; Grosse et al. 2023, Fig. 9
create or replace macro coverage(query, run := 'latest') as table
with scored as (
    select i.influence_rank, greatest(i.influence, 0) as influence, count(*) over () as n
    from influences i
    join chosen_run(query, run) c on c.run_id = i.run_id and i.method = c.method
    where i.query_id = query
),
shares as (
    select unnest([0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]) as top_share
)
select
    h.top_share,
    count(*) filter (where s.influence_rank <= ceil(h.top_share * s.n)) as n_sequences,
    sum(s.influence) filter (where s.influence_rank <= ceil(h.top_share * s.n)) / nullif(sum(s.influence), 0)
        as share_of_positive_influence
from shares h
cross join scored s
group by h.top_share
order by h.top_share
