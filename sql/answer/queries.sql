-- grain: one row per query of a run, with what the line under its table says
with compressed as (
    select query_id, max(rank) as rank
    from query_compressions
    where run_id = $run
    group by query_id
),
filters as (
    -- of several filters none gives the column its name
    select query_id, case when count(distinct filter) = 1 then min(filter) end as filter
    from candidates
    where run_id = $run and filter_score is not null
    group by query_id
)
select
    q.query_id,
    q.prompt,
    q.completion,
    r.log_probability,
    r.n_candidates,
    r.compression_correlation,
    c.rank,
    s.top_share,
    f.filter
from run_queries r
join queries q on q.query_id = r.query_id
left join compressed c on c.query_id = r.query_id
left join top_shares($run) s on s.query_id = r.query_id
left join filters f on f.query_id = r.query_id
where r.run_id = $run
order by q.submitted_at, q.query_id
