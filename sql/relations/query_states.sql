-- grain: one row per query of the inbox: answered by a run, failed, or waiting for the next scheduled trace
-- not the queries of a trace by hand that is under way; of several attempts the last one's error
create or replace view query_states as
with answered as (
    select q.query_id, arg_max(q.run_id, r.finished_at) as run_id
    from run_queries q
    join runs r on r.run_id = q.run_id
    group by q.query_id
),
deleted as (
    select query_id, max(deleted_at) as deleted_at
    from deleted_answers
    group by query_id
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
),
submitted as (
    select query_id, min(submitted_at) as submitted_at
    from query_submissions
    group by query_id
)
select
    q.query_id,
    case
        when a.query_id is not null then 'answered'
        -- a null on either side of a comparison says nothing, and the next line is asked
        when t.retried_at > coalesce(greatest(f.failed_at, d.deleted_at), f.failed_at, d.deleted_at) then 'waiting'
        when d.deleted_at > f.failed_at or (d.query_id is not null and f.query_id is null) then 'answered'
        when f.query_id is not null then 'failed'
        else 'waiting'
    end as state,
    a.run_id,
    f.error,
    coalesce(f.failures, 0) as failures,
    f.failed_at,
    t.retried_at,
    d.deleted_at,
    coalesce(s.submitted_at, q.submitted_at) as submitted_at
from queries q
left join answered a on a.query_id = q.query_id
left join deleted d on d.query_id = q.query_id
left join failed f on f.query_id = q.query_id
left join retried t on t.query_id = q.query_id
left join submitted s on s.query_id = q.query_id
where coalesce(a.query_id, d.query_id, f.query_id, s.query_id) is not null
