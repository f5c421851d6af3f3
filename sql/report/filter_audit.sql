-- grain: one row per query with a uniform sample: what the filter missed of it; none without a sample or a filter
-- of all queries, or of the one that $query names
select q.query_id, a.* exclude (query_id)
from run_queries q, lateral (from filter_audit(q.query_id, run := $run)) a
where q.run_id = $run and ($query is null or q.query_id = $query)
order by q.query_id
