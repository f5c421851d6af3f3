-- grain: one row per query: answered by a complete run, failed, or waiting for the next trace
-- not the failures themselves: of several attempts the last one's error; a retry lets a failed query wait again
create or replace view query_states as
with answered as (
    select q.query_id, arg_max(q.run_id, r.finished_at) as run_id
    from run_queries q
    join runs r on r.run_id = q.run_id
    group by q.query_id
),
failed as (
    select query_id, max(failed_at) as failed_at, count(*) as failures, arg_max(error, failed_at) as error
    from query_failures
    group by query_id
),
retried as (
    select query_id, max(retried_at) as retried_at
    from query_retries
    group by query_id
)
select
    q.query_id,
    case
        when a.query_id is not null then 'answered'
        when f.query_id is not null and (t.retried_at is null or t.retried_at <= f.failed_at) then 'failed'
        else 'waiting'
    end as state,
    a.run_id,
    f.error,
    coalesce(f.failures, 0) as failures,
    f.failed_at,
    t.retried_at,
    q.submitted_at
from queries q
left join answered a on a.query_id = q.query_id
left join failed f on f.query_id = q.query_id
left join retried t on t.query_id = q.query_id
