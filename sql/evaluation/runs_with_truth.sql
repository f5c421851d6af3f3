-- grain: one row per complete run that has not been evaluated and whose queries' metadata name a document's, the latest first
-- not every run without figures: those of other questions, such as what annotators said, are no evaluation
with asked as (
    select query_id, truth_of(metadata) as truth
    from queries
),
truths as (
    select a.query_id
    from asked a
    where exists (select 1 from documents d where json_contains(d.metadata, a.truth))
)
select r.run_id
from runs r
where r.run_id in (select q.run_id from run_queries q join truths t on t.query_id = q.query_id)
  and r.run_id not in (select run_id from evaluations where metric = 'mrr')
order by r.finished_at desc, r.run_id
limit $most
