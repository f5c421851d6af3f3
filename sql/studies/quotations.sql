-- grain: one row per query: how many scored sequences quote it, where the first of them ranks, and the first k
-- a quotation holds at least half of the query's phrases of five words
with found as (
    select *
    from quotations(run := $run)
    where share_of_phrases >= 0.5
),
scored as (
    select i.query_id, count(*) as n_scored
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run
    group by i.query_id
)
select
    s.query_id,
    q.prompt,
    q.completion,
    s.n_scored,
    count(f.sequence_id) as n_quotations,
    min(f.influence_rank) as first_rank,
    count(*) filter (where f.influence_rank <= $k) as n_among_first,
    max(f.share_of_phrases) as largest_share
from scored s
join queries q on q.query_id = s.query_id
left join found f on f.query_id = s.query_id
group by s.query_id, q.prompt, q.completion, s.n_scored
order by first_rank nulls last, s.query_id
