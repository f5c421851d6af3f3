-- grain: one row per (query, other method): how far it agrees with the run's own on the sequences that both scored
-- the filter always stands beside the run's method, asked for or not: it is the baseline to beat
-- of all queries, or of the one that $query names
with own as (
    select i.query_id, i.sequence_id, i.influence
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and ($query is null or i.query_id = $query)
),
beside as (
    select i.query_id, i.sequence_id, i.method, i.influence
    from influences i
    join runs r on r.run_id = i.run_id and r.method <> i.method
    where i.run_id = $run and ($query is null or i.query_id = $query)
),
filters as (
    select c.query_id, c.sequence_id, c.filter as method, c.filter_score as influence
    from candidates c
    join runs r on r.run_id = c.run_id and r.method <> c.filter
    where c.run_id = $run
      and ($query is null or c.query_id = $query)
      and c.filter_score is not null
      and c.filter not in (select method from beside)
),
others as (
    select * from beside
    union all
    select * from filters
),
shared as (
    select
        t.query_id,
        t.method,
        t.sequence_id,
        rank() over (partition by t.query_id, t.method order by o.influence) as own_order,
        rank() over (partition by t.query_id, t.method order by t.influence) as other_order,
        row_number() over (partition by t.query_id, t.method order by o.influence desc, t.sequence_id) as own_rank,
        row_number() over (partition by t.query_id, t.method order by t.influence desc, t.sequence_id) as other_rank
    from others t
    join own o on o.query_id = t.query_id and o.sequence_id = t.sequence_id
)
select
    h.query_id,
    h.method,
    min(s.document_id) filter (where h.other_rank = 1) as best_document_id,
    min(h.sequence_id) filter (where h.other_rank = 1) as best_sequence_id,
    min(h.own_rank) filter (where h.other_rank = 1) as own_rank_of_best,
    count(*) as n_shared,
    count(*) filter (where h.own_rank <= 10 and h.other_rank <= 10) as shared_top_10,
    corr(h.own_order, h.other_order) as spearman
from shared h
left join sequences s on s.sequence_id = h.sequence_id and h.other_rank = 1
group by h.query_id, h.method
order by h.query_id, h.method
